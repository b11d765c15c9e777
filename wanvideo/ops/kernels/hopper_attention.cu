// Attention on Hopper GPUs in bf16 or fp8: FlashAttention-3, with sums of regions of keys beside the output.
//
// Terms of the FlashAttention papers (Dao et al. 2022, 2023; Shah et al. 2024) and where they are here:
//   Q                 query[], rows of a warpgroup in its registers for the whole kernel
//   tiles of K and V  KEYS keys in shared memory, STAGES of them ahead; one indicator tile beside each (below)
//   S = Q K^T         score[], by score_products
//   m, row maximum    row_max[], of scaled scores in powers of two; it lags behind, see below
//   P = exp(S - m)    weight[], by exp_weights: rounded to the type of V, packed as a product takes it from registers
//   O = P V           out[], by weighted_sums, unnormalised until the epilogue
//   l, row sum of P   indicator_sum[], column 0
//   log-sum-exp       m + log l, written where it is asked for
//   producer          the last warpgroup: `produce` has the copy engine (TMA) fill stages
//   consumers         GROUPS warpgroups: `first_tile`, then for each tile P V of the last one and S of this one in
//                     flight together, then its exponentials, while others have the tensor cores (`consume`)
//   epilogue          `write_results`: O / l, log-sum-exp and shares
//
// What differs from the papers:
// - A lagging maximum. m is raised only when a weight no longer fits its type, so that no maximum is taken over most
//   tiles. A score at m weighs 2^REFERENCE.
// - Indicator columns. P is also multiplied by INDICATORS columns of zeros and ones: one of all keys, whose sum is l
//   exactly as the products see P; those of the regions; one of the frame that the regions are of.
// - Tiles that hold keys of the frame are visited first (tile_order), and have indicator tiles of their own; all others
//   share the last indicator tile. Sums of the frame so meet no maximum that keys outside of it have set.
// - Promotion. Tensor cores keep sums of fp8 products in about 14 bits: in a long sum that grows evenly, further
//   products vanish. Values in fp8 therefore come without their mean, and after PROMOTE_EVERY tiles the accumulator is
//   added to a float32 one in shared memory.
// - Keys in fp8 come without what all of them have in common (rms_norm_keys in ops/norm.py), which softmax does not see;
//   the log-sum-exp is that of the keys as they come.
//
// A thread holds columns of rows lane / 4 and lane / 4 + 8 of its warp's 16 queries; arrays of [2] stand for these two,
// and of an accumulator's registers i % 4 < 2 belong to the first, the others to the second.
// Names in capitals that are not defined here, and *_product, come from hopper_attention.py; instructions are in
// hopper_instructions.cu, which the compiler reads before this.

constexpr int WARP = 32, WARPGROUP = 128, WARPS = WARPGROUP / WARP;
constexpr int WARP_ROWS = 16;                    // queries of a warp, in a product of ROWS
constexpr int ROW_BYTES = 128;                   // of a swizzled row in shared memory, the widest there is
constexpr int SWIZZLE_ATOM = 8 * ROW_BYTES;      // bytes after which its pattern repeats
constexpr int STEP_BYTES = 32;                   // of a row that one product takes
constexpr int STEPS_IN_ROW = ROW_BYTES / STEP_BYTES;
constexpr u32 ALL_LANES = 0xffffffff;

constexpr int D = WIDTH;                         // of a head
constexpr bool IN_FP8 = BYTES == 1;              // else bf16
constexpr int PARTS = D * BYTES / ROW_BYTES;     // of a tile, each with rows of ROW_BYTES
constexpr int PACK = 4 / BYTES;                  // numbers in a register
constexpr int QUERIES = D * BYTES / 8;           // registers of a thread for its queries
constexpr int SCORES = KEYS / 2;                 // registers of a thread for its scores
constexpr int WEIGHTS = SCORES / PACK;           // registers of a thread for its weights
constexpr int OUTS = D / 2;                      // registers of a thread for its accumulator
constexpr int SUMS = INDICATORS / 2;             // registers of a thread for its sums under indicator columns
constexpr int PROMOTED_BYTES = WARPGROUP * OUTS * 4;  // of a warpgroup's float32 accumulator in shared memory

// A score at its row's maximum weighs 2^REFERENCE; fp8 reaches from 2^-10, rounded up, to 448.
constexpr float REFERENCE = IN_FP8 ? 6.0f : -64.0f;
// Bits that only a weight has which is too large: of fp8 after the addition, since 448 is 0x7e; bf16 has 2 at 0x4000.
constexpr u32 FP8_CARRY = 0x02020202, FP8_LARGE = 0x80808080, BF16_LARGE = 0x40004000;
constexpr float LOWEST = -1.0e30f;               // score of a key that is none
constexpr float LEAST_RESCALE = 1.0e-9f;         // of sums of the frame, which must not vanish beside other keys
constexpr float LEAST_SUM = 1.0e-37f;
constexpr float LN_2 = 0.6931471805599453f;

static_assert(D == 128 && ROWS == WARPS * WARP_ROWS, "a product takes 64 rows, a head has 128 columns");
static_assert(PARTS * ROW_BYTES == D * BYTES, "rows of a tile are whole swizzled rows");
static_assert(KEYS % 8 == 0 && KEYS <= 256, "columns of a product of scores");
static_assert(KEYS * BYTES % STEP_BYTES == 0, "keys of a tile are whole steps of the second product");
static_assert(!IN_FP8 || KEYS == INDICATOR_ROW, "fp8 values of a column are one swizzled row, as indicators are");
static_assert(INDICATORS == 8, "a thread holds two columns, and the fewest that a product can have");
static_assert(INDICATOR_ROW == 32 || INDICATOR_ROW == 64 || INDICATOR_ROW == 128, "a width that can be swizzled");
static_assert(TILE == KEYS * D * BYTES && TILE % SWIZZLE_ATOM == 0, "tiles begin where the swizzle does");
static_assert(INDICATOR_BYTES % 16 == 0 && 2 * TILE + INDICATOR_BYTES <= STAGE, "a stage holds three tiles");
static_assert(STAGE % SWIZZLE_ATOM == 0, "stages begin where the swizzle does");
static_assert(IN_FP8 == (PROMOTE_EVERY > 0), "sums of bf16 products are float32, those of fp8 are promoted");
static_assert(WARPGROUP * (GROUPS * REGISTERS + PRODUCER_REGISTERS) <= 65536, "registers of a multiprocessor");

// A place in the ring of stages, and how often it came around.
struct Ring {
    int stage, phase;

    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};

// What the kernel works on. tiles: of all keys; marked_tiles: of those that hold keys of the frame, visited first.
struct Shape {
    int length, num_keys, heads, tiles, marked_tiles, num_regions, partial_step;
    int head, batch;
    float scale;
};

// Addresses in shared memory: in each stage a tile of keys, one of values, one of indicators.
struct Shared {
    u32 stages, full, free, promoted;

    __device__ __forceinline__ u32 keys(int stage) const { return stages + stage * STAGE; }
    __device__ __forceinline__ u32 values(int stage) const { return keys(stage) + TILE; }
    __device__ __forceinline__ u32 indicators(int stage) const { return keys(stage) + 2 * TILE; }
    __device__ __forceinline__ u32 full_barrier(int stage) const { return full + 8 * stage; }
    __device__ __forceinline__ u32 free_barrier(int stage) const { return free + 8 * stage; }
};

// The matrix descriptor (PTX, wgmma): address, leading and stride byte offsets in units of 16 bytes, swizzle mode in
// the two uppermost bits. Of a tile whose swizzled rows have ROW bytes, each group of 8 rows behind the other.
template <int ROW>
__device__ __forceinline__ u64 descriptor(u32 address) {
    constexpr u32 swizzle = ROW == 128 ? 1 : ROW == 64 ? 2 : 3;
    u64 description;
    asm("mov.b64 %0, {%1, %2};" : "=l"(description)
        : "r"(address / 16 | 1 << 16), "n"(8 * ROW / 16 | swizzle << 30));
    return description;
}
// The same of bf16 values, which lie key by key, 64 columns in each part; a product takes them column by column.
__device__ __forceinline__ u64 value_descriptor(u32 address) {
    u64 description;
    asm("mov.b64 %0, {%1, %2};" : "=l"(description)
        : "r"(address / 16 | KEYS * ROW_BYTES / 16 << 16), "n"(SWIZZLE_ATOM / 16 | 1 << 30));
    return description;
}

// Keys beyond the last of the `left` in this tile weigh nothing.
__device__ __forceinline__ void mask(float (&score)[SCORES], int left) {
#pragma unroll
    for (int i = 0; i < SCORES; i++)
        if (i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 >= left) score[i] = LOWEST;
}

// Raises row maxima to the highest scores. rescale: what sums of earlier weights are to be multiplied by.
__device__ __forceinline__ void update_row_max(
    const float (&score)[SCORES], float (&row_max)[2], float (&rescale)[2], float scale) {
    float top[2] = {score[0], score[2]};
#pragma unroll
    for (int i = 0; i < SCORES; i++) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], score[i]);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        top[r] = fmaxf(top[r], __shfl_xor_sync(ALL_LANES, top[r], 1));
        top[r] = fmaxf(top[r], __shfl_xor_sync(ALL_LANES, top[r], 2));
        const float higher = fmaxf(row_max[r], top[r] * scale);
        rescale[r] = power_of_two(row_max[r] - higher);
        row_max[r] = higher;
    }
}

// P of a tile as a product takes it from registers, in fp8 in an order in which values and indicators lie as well.
// Returns whether a weight is too large: in fp8 perhaps beyond its largest number, in bf16 2^65 times the maximum's.
__device__ __forceinline__ bool exp_weights(
    u32 (&weight)[WEIGHTS], const float (&score)[SCORES], const float (&row_max)[2], float scale) {
    u32 large = 0;
#pragma unroll
    for (int i = 0; i < WEIGHTS; i++) {
        const int first = i / 2 * 2 * PACK + i % 2 * 2;
        const float below = REFERENCE - row_max[i % 2];
        float power[4];
#pragma unroll
        for (int n = 0; n < PACK; n++) power[n] = power_of_two(fmaf(score[first + n / 2 * 4 + n % 2], scale, below));
        if constexpr (IN_FP8) {
            weight[i] = four_fp8(power[0], power[1], power[2], power[3]);
            large |= (weight[i] + FP8_CARRY) & FP8_LARGE;
        } else {
            weight[i] = two_bf16(power[0], power[1]);
            large |= weight[i] & BF16_LARGE;
        }
    }
    return large;
}

// S of a tile.
__device__ __forceinline__ void score_products(float (&score)[SCORES], const u32 (&query)[QUERIES], u32 keys) {
#pragma unroll
    for (int i = 0; i < D * BYTES / STEP_BYTES; i++) {
        const u32 place = keys + i / STEPS_IN_ROW * KEYS * ROW_BYTES + i % STEPS_IN_ROW * STEP_BYTES;
        score_product(score, &query[4 * i], descriptor<ROW_BYTES>(place), i > 0);
    }
}

// Adds P V to `out`, while `tile_sum` is of this tile alone: its weights under each indicator column.
__device__ __forceinline__ void weighted_sums(
    float (&out)[OUTS], float (&tile_sum)[SUMS], const u32 (&weight)[WEIGHTS], u32 values, u32 indicators) {
    constexpr int keys_in_step = STEP_BYTES / BYTES;
#pragma unroll
    for (int i = 0; i < WEIGHTS / 4; i++) {
        const u64 place = IN_FP8 ? descriptor<INDICATOR_ROW>(values + STEP_BYTES * i)
                                 : value_descriptor(values + keys_in_step * ROW_BYTES * i);
        const u32 column = indicators + i / STEPS_IN_ROW * SWIZZLE_ATOM + i % STEPS_IN_ROW * STEP_BYTES;
        value_product(out, &weight[4 * i], place, true);
        indicator_product(tile_sum, &weight[4 * i], descriptor<INDICATOR_ROW>(column), i > 0);
    }
}

// Moves the accumulator to the float32 one at `place`, whose sums belong to the row maxima of that moment.
__device__ __forceinline__ void promote(
    float (&out)[OUTS], u32 place, float (&promoted_max)[2], const float (&row_max)[2]) {
    promoted_max[0] = row_max[0];
    promoted_max[1] = row_max[1];
#pragma unroll
    for (int i = 0; i < OUTS; i += 4) {
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
            ::"r"(place + i * WARPGROUP * 4), "f"(out[i]), "f"(out[i + 1]), "f"(out[i + 2]), "f"(out[i + 3]));
        out[i] = out[i + 1] = out[i + 2] = out[i + 3] = 0;
    }
}
__device__ __forceinline__ void add_promoted(
    float (&out)[OUTS], u32 place, const float (&promoted_max)[2], const float (&row_max)[2]) {
    const float rescale[2] = {power_of_two(promoted_max[0] - row_max[0]), power_of_two(promoted_max[1] - row_max[1])};
#pragma unroll
    for (int i = 0; i < OUTS; i += 4) {
        float promoted[4];
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
            : "=f"(promoted[0]), "=f"(promoted[1]), "=f"(promoted[2]), "=f"(promoted[3])
            : "r"(place + i * WARPGROUP * 4));
#pragma unroll
        for (int n = 0; n < 4; n++) out[i + n] = fmaf(promoted[n], rescale[n / 2], out[i + n]);
    }
}

// The producer: one thread fills stage after stage with the tiles in their order.
__device__ __forceinline__ void produce(
    const TensorMap* key_map, const TensorMap* value_map, const unsigned char* indicators, const int* tile_order,
    const Shared& shared, const Shape& shape) {
    Ring ring = {0, 1};
    for (int step = 0; step < shape.tiles; step++) {
        const u32 full = shared.full_barrier(ring.stage), values = shared.values(ring.stage);
        const int first = (tile_order ? tile_order[step] : step) * KEYS;
        barrier_wait(shared.free_barrier(ring.stage), ring.phase);
        barrier_expect(full, 2 * TILE + INDICATOR_BYTES);
        for (int part = 0; part < PARTS; part++) {
            const int column = (shape.head * PARTS + part) * ROW_BYTES, at = part * KEYS * ROW_BYTES;
            copy_box(shared.keys(ring.stage) + at, key_map, column, first, shape.batch, full);
            if (!IN_FP8) copy_box(values + at, value_map, column, first, shape.batch, full);
        }
        if (IN_FP8) copy_box(values, value_map, first, shape.head * D, shape.batch, full);
        const unsigned char* tile = indicators + min(step, shape.marked_tiles) * INDICATOR_BYTES;
        copy_bytes(shared.indicators(ring.stage), tile, INDICATOR_BYTES, full);
        ring.advance();
    }
}

// What a consumer's thread holds of its two rows between tiles.
struct Rows {
    // Sums begin with zeros: compilers before CUDA 12.9 otherwise let every product wait for the one before.
    float out[OUTS], tile_sum[SUMS], indicator_sum[SUMS], row_max[2];
    u32 weight[WEIGHTS];
};

__device__ __forceinline__ void load_queries(
    u32 (&query)[QUERIES], const unsigned char* queries, int row, const Shape& shape) {
    const u64 rows = (u64)shape.batch * shape.length;
#pragma unroll
    for (int i = 0; i < QUERIES; i++) {
        const int token = row + i % 2 * 8, place = i / 2 * 16 + threadIdx.x % 4 * 4;
        const unsigned char* from = queries + ((rows + token) * shape.heads + shape.head) * D * BYTES + place;
        query[i] = token < shape.length ? *(const u32*)from : 0;
    }
}

// A tile visited in step `step` may be the one with the last keys, which are not KEYS.
__device__ __forceinline__ void mask_partial(float (&score)[SCORES], int step, const Shape& shape) {
    if (step == shape.partial_step) mask(score, shape.num_keys - (shape.tiles - 1) * KEYS);
}

// The consumers' prologue: S, m and P of the first tile.
__device__ __forceinline__ void first_tile(
    Rows& rows, float (&score)[SCORES], const u32 (&query)[QUERIES], const Shared& shared, const Shape& shape) {
    float rescale[2];
    barrier_wait(shared.full, 0);
    products_begin();
    score_products(score, query, shared.keys(0));
    products_commit();
    products_wait<0>();
    fence_registers(score);
    mask_partial(score, 0, shape);
    update_row_max(score, rows.row_max, rescale, shape.scale);
    exp_weights(rows.weight, score, rows.row_max, shape.scale);
}

// Raises the maxima, and brings all sums so far to them. in_frame: of the tiles with keys of the frame, whose sums are
// compared with one another only: they must not vanish beside keys of a tile behind them.
__device__ __forceinline__ void rescale_sums(Rows& rows, const float (&score)[SCORES], float scale, bool in_frame) {
    float rescale[2];
    update_row_max(score, rows.row_max, rescale, scale);
    exp_weights(rows.weight, score, rows.row_max, scale);
#pragma unroll
    for (int n = 0; n < OUTS; n++) rows.out[n] *= rescale[n / 2 % 2];
#pragma unroll
    for (int n = 0; n < SUMS; n++) {
        const float of_frame = in_frame ? fmaxf(rescale[n / 2], LEAST_RESCALE) : 1.0f;
        rows.indicator_sum[n] *= threadIdx.x % 4 + n % 2 == 0 ? rescale[n / 2] : of_frame;
    }
}

// The consumers' main loop, and P V of the last tile.
__device__ __forceinline__ void consume(
    Rows& rows, const u32 (&query)[QUERIES], const Shared& shared, const Shape& shape) {
    float score[SCORES];
    first_tile(rows, score, query, shared, shape);
    float promoted_max[2] = {rows.row_max[0], rows.row_max[1]};
    int until_promoted = PROMOTE_EVERY;
    bool any_promoted = false;
    Ring ring = {0, 0};
    for (int step = 1; step < shape.tiles; step++) {
        const int last_stage = ring.stage;
        ring.advance();
        barrier_wait(shared.full_barrier(ring.stage), ring.phase);
        products_begin();
        weighted_sums(rows.out, rows.tile_sum, rows.weight, shared.values(last_stage), shared.indicators(last_stage));
        products_commit();
        score_products(score, query, shared.keys(ring.stage));
        products_commit();
        products_wait<1>();
        fence_registers(rows.out);
        fence_registers(rows.tile_sum);
        if (threadIdx.x % WARP == 0) barrier_arrive(shared.free_barrier(last_stage));
#pragma unroll
        for (int n = 0; n < SUMS; n++) rows.indicator_sum[n] += rows.tile_sum[n];
        if (IN_FP8 && --until_promoted == 0) {
            if (any_promoted) add_promoted(rows.out, shared.promoted, promoted_max, rows.row_max);
            promote(rows.out, shared.promoted, promoted_max, rows.row_max);
            until_promoted = PROMOTE_EVERY, any_promoted = true;
        }
        products_wait<0>();
        fence_registers(score);
        mask_partial(score, step, shape);
        if (__any_sync(ALL_LANES, exp_weights(rows.weight, score, rows.row_max, shape.scale)))
            rescale_sums(rows, score, shape.scale, step < shape.marked_tiles);
    }
    products_begin();
    weighted_sums(rows.out, rows.tile_sum, rows.weight, shared.values(ring.stage), shared.indicators(ring.stage));
    products_commit();
    products_wait<0>();
    fence_registers(rows.out);
    fence_registers(rows.tile_sum);
    if (any_promoted) add_promoted(rows.out, shared.promoted, promoted_max, rows.row_max);
#pragma unroll
    for (int n = 0; n < SUMS; n++) rows.indicator_sum[n] += rows.tile_sum[n];
}

// Where rows of results belong: to `ranks` ranks, whose rows [tokens, num_heads, D] are at `places`, the first of them
// token starts[rank] of all; heads here begin with number first_head. Without ranks all of it is at `out`.
struct Owners {
    void* out;
    const u64* places;
    const int* starts;
    int ranks, first_head, num_heads;
};

// Columns 8 * i + 2 * (lane % 4) and the next one of a row, of which this thread holds the sums.
__device__ __forceinline__ float2 result(
    const Rows& rows, int r, int i, float share, const float* value_scale, const float* value_mean, const Shape& shape) {
    const int column = shape.head * D + 8 * i + threadIdx.x % 4 * 2;
    const float2 factor = *(const float2*)(value_scale + column), mean = *(const float2*)(value_mean + column);
    const float* pair = &rows.out[4 * i + 2 * r];
    return make_float2(fmaf(pair[0] * share, factor.x, mean.x), fmaf(pair[1] * share, factor.y, mean.y));
}

__device__ __forceinline__ void write_bf16(
    const Rows& rows, int r, float share, const float* value_scale, const float* value_mean, u32* out,
    const Shape& shape) {
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        const float2 pair = result(rows, r, i, share, value_scale, value_mean, shape);
        out[4 * i + threadIdx.x % 4] = two_bf16(pair.x, pair.y);
    }
}

// The four lanes of a row give each other what they have, so that each writes 32 columns that lie together: over NVLink
// a word of two columns would take as much time as these.
__device__ __forceinline__ void write_fp8(
    const Rows& rows, int r, float share, const float* value_scale, const float* value_mean, uint4* out, bool is_token,
    const Shape& shape) {
    u32 pairs[D / 16];  // two words of columns 8 * i, of even i in the lower half; 4 * q to 4 * q + 3 are for lane q
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        const float2 lower = result(rows, r, 2 * i, share, value_scale, value_mean, shape);
        const float2 upper = result(rows, r, 2 * i + 1, share, value_scale, value_mean, shape);
        pairs[i] = four_fp8(lower.x, lower.y, upper.x, upper.y);
    }
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            if (i & 2 * bit) continue;
            const bool is_upper = threadIdx.x & bit;
            const u32 sent = is_upper ? pairs[i] : pairs[i + 2 * bit];
            const u32 got = __shfl_xor_sync(ALL_LANES, sent, bit);
            pairs[i] = is_upper ? got : pairs[i];
            pairs[i + 2 * bit] = is_upper ? pairs[i + 2 * bit] : got;
        }
    if (!is_token) return;
    out += threadIdx.x % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u32* of_lane = pairs + half;
        out[half] = make_uint4(
            __byte_perm(of_lane[0], of_lane[2], 0x5410), __byte_perm(of_lane[4], of_lane[6], 0x5410),
            __byte_perm(of_lane[0], of_lane[2], 0x7632), __byte_perm(of_lane[4], of_lane[6], 0x7632));
    }
}

// The epilogue: O / l times value_scale plus value_mean, the shares of regions, and the log-sum-exp where it is wanted.
__device__ __forceinline__ void write_results(
    const Rows& rows, int row, const float* value_scale, const float* value_mean, const Owners& owners, int out_in_fp8,
    float* shares, float* lse, const Shape& shape) {
    const int lane = threadIdx.x % WARP, quad = lane & ~3;  // four lanes share a row
    const u64 head_row = (u64)(shape.batch * shape.heads + shape.head);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int token = row + 8 * r, frame = shape.num_regions + 1;
        // Indicator column 2 * (lane % 4) + n is this thread's indicator_sum[2 * r + n].
        const float sum[2] = {rows.indicator_sum[2 * r], rows.indicator_sum[2 * r + 1]};
        const float all = __shfl_sync(ALL_LANES, sum[0], quad);
        const float of_frame = __shfl_sync(ALL_LANES, frame % 2 ? sum[1] : sum[0], quad + frame / 2);
        const float share = 1.0f / all;
        const bool is_token = token < shape.length;
        if (is_token && lse != nullptr && lane == quad)
            lse[head_row * shape.length + token] = LN_2 * (logarithm_of_two(all) + (rows.row_max[r] - REFERENCE));
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const int region = lane % 4 * 2 + n - 1;
            if (is_token && region >= 0 && region < shape.num_regions)
                shares[(head_row * shape.num_regions + region) * shape.length + token] =
                    sum[n] / fmaxf(of_frame, LEAST_SUM);
        }
        // Not the 64-bit sum of load_queries: the compiler would keep that for here, and spill it.
        int place = shape.batch * shape.length + token, owner = 0;
        if (owners.ranks > 0) {
            while (owner + 1 < owners.ranks && token >= owners.starts[owner + 1]) owner++;
            place = token - owners.starts[owner];
        }
        void* const out = owners.ranks > 0 ? (void*)owners.places[owner] : owners.out;
        const u64 head = (u64)place * owners.num_heads + owners.first_head + shape.head;
        if (out_in_fp8)
            write_fp8(rows, r, share, value_scale, value_mean, (uint4*)out + head * (D / 16), is_token, shape);
        else if (is_token)
            write_bf16(rows, r, share, value_scale, value_mean, (u32*)out + head * (D / 2), shape);
    }
}

// A block of threads has ROWS * GROUPS queries of a head.
// queries [B, length, heads, D], keys and values [B, num_keys, heads, D]; values in fp8 are [B, heads, D, num_keys
// rounded up] in the order of `exp_weights`. What comes of values is multiplied by value_scale and added to value_mean
// [heads, D]; out [B, length, heads, D] is bf16, or fp8 where `out_in_fp8`. scale: log2(e) / sqrt(D).
// indicators [marked_tiles + 1, parts, 8, keys of a part], rows swizzled: column 0 has every key, columns 1 to
// num_regions are the regions, the next one is all of these regions' frame; the last tile is of tiles without a key of
// the frame. shares [B, heads, num_regions, length]: of the weights in the frame those in each region.
// tile_order [tiles]: which tile of keys is visited in which step, those with keys of the frame first; null where that
// is their own order. partial_step: in which step the tile with the last keys comes. lse [B, heads, length] or null.
// places, starts, ranks, first_head, num_heads: see Owners; without ranks, num_heads is heads.
extern "C" __global__ void __launch_bounds__(WARPGROUP * (GROUPS + 1), 1)
attention(const __grid_constant__ TensorMap key_map, const __grid_constant__ TensorMap value_map,
          const unsigned char* queries, const float* value_scale, const float* value_mean, void* out, int out_in_fp8,
          const unsigned char* indicators, const int* tile_order, float* shares, float* lse, int partial_step,
          int marked_tiles, int num_regions, int length, int num_keys, int heads, float scale, const u64* places,
          const int* starts, int ranks, int first_head, int num_heads) {
    extern __shared__ unsigned char memory[];
    __shared__ alignas(8) u64 barriers[2 * STAGES];
    const int group = threadIdx.x / WARPGROUP;
    const Shape shape = {length, num_keys, heads, (num_keys + KEYS - 1) / KEYS, marked_tiles, num_regions, partial_step,
                         (int)blockIdx.y, (int)blockIdx.z, scale};
    Shared shared;
    shared.stages = (shared_address(memory) + SWIZZLE_ATOM - 1) & ~(SWIZZLE_ATOM - 1);
    shared.full = shared_address(barriers);
    shared.free = shared.full + 8 * STAGES;
    shared.promoted = shared.stages + STAGES * STAGE + group * PROMOTED_BYTES + threadIdx.x % WARPGROUP * 16;

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(shared.full_barrier(i), 1);
            barrier_init(shared.free_barrier(i), WARPS * GROUPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();

    if (group == GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
        if (threadIdx.x % WARPGROUP == 0) produce(&key_map, &value_map, indicators, tile_order, shared, shape);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
    const int row = blockIdx.x * ROWS * GROUPS + threadIdx.x / WARP * WARP_ROWS + threadIdx.x % WARP / 4;
    u32 query[QUERIES];
    Rows rows = {};
    rows.row_max[0] = rows.row_max[1] = LOWEST;
    load_queries(query, queries, row, shape);
    consume(rows, query, shared, shape);
    const Owners owners = {out, places, starts, ranks, first_head, num_heads};
    write_results(rows, row, value_scale, value_mean, owners, out_in_fp8, shares, lse, shape);
}
