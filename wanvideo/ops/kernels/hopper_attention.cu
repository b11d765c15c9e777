// Attention on Hopper GPUs in bf16 or fp8, a block of threads for ROWS * GROUPS queries of a head.
//
// One warp group copies tiles of KEYS keys and values to shared memory, STAGES ahead. Each of the other GROUPS has ROWS
// queries in its registers and does, for every tile: weights of the last tile by its values, queries by keys, and the
// exponentials of these scores. While one group takes exponentials, others have the tensor cores.
//
// Peaks of scores move only when a weight no longer fits its type, not with every larger score, so that no maximum is
// taken. Weights are also multiplied by marks of their keys: one that all have, and so the softmax's denominator, and
// those of the regions in which keys of the first frame lie.
//
// Tensor cores keep sums of fp8 products in about 14 bits: in a long sum that grows evenly, further products vanish.
// Values in fp8 therefore come without their mean, and after MOVE_EVERY tiles the sums are added to others in float32.
//
// A thread holds columns of rows lane / 4 and lane / 4 + 8 of its warp's 16 queries; [2] stands for these two. Names in
// capitals that are not defined here, and the functions *_product, come from hopper_attention.py.

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int D = WIDTH;                  // of a head
constexpr bool IN_FP8 = BYTES == 1;       // else bf16
constexpr int PARTS = D * BYTES / 128;    // of a tile, each with rows of 128 bytes
constexpr int PACK = 4 / BYTES;           // weights in a register
constexpr int WEIGHTS = KEYS / 2 / PACK;  // registers of them
// A score at its row's peak weighs 2^REFERENCE; fp8 reaches from 2^-10, rounded up, to 448.
constexpr float REFERENCE = IN_FP8 ? 6.0f : -64.0f;
constexpr float LOWEST = -1.0e30f;

struct alignas(64) TensorMap {
    u64 words[16];
};

__device__ __forceinline__ u32 shared_address(const void* place) { return (u32)__cvta_generic_to_shared(place); }

__device__ __forceinline__ void barrier_init(u32 barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ __forceinline__ void barrier_expect(u32 barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 barrier, int phase) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\nbra again;\nover:\n}" ::"r"(barrier), "r"(phase) : "memory");
}
__device__ __forceinline__ void copy_tile(u32 to, const TensorMap* map, int x, int y, int z, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier) : "memory");
}

__device__ __forceinline__ void copy_bytes(u32 to, const void* from, int bytes, u32 barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
// Products write registers behind the compiler's back; nothing may read these before the wait in front of this.
template <int N>
__device__ __forceinline__ void written(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}

// What a product is told of a tile in shared memory whose swizzled rows have ROW bytes.
template <int ROW>
__device__ __forceinline__ u64 described(u32 address) {
    constexpr u32 swizzle = ROW == 128 ? 1 : ROW == 64 ? 2 : 3;
    u64 description;
    asm("mov.b64 %0, {%1, %2};" : "=l"(description) : "r"(address / 16 | 1 << 16), "n"(ROW / 2 | swizzle << 30));
    return description;
}

__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// The same of bf16 values, which lie key by key, 64 columns in each part; a product takes them column by column.
__device__ __forceinline__ u64 described_values(u32 address) {
    u64 description;
    asm("mov.b64 %0, {%1, %2};" : "=l"(description) : "r"(address / 16 | KEYS * 8 << 16), "n"(64 | 1 << 30));
    return description;
}

__device__ __forceinline__ u32 four_fp8(float a, float b, float c, float d) {
    u32 packed;
    asm("{\n.reg .b16 low, high;\ncvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\ncvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
        "mov.b32 %0, {low, high};\n}" : "=r"(packed) : "f"(a), "f"(b), "f"(c), "f"(d));
    return packed;
}
__device__ __forceinline__ u32 two_bf16(float a, float b) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(packed) : "f"(a), "f"(b));
    return packed;
}

// Keys beyond the last of `left` weigh nothing.
__device__ __forceinline__ void mask(float (&score)[KEYS / 2], int left) {
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++)
        if (i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 >= left) score[i] = LOWEST;
}

// Raises peaks to the highest scores; what sums of earlier weights are to be multiplied by.
__device__ __forceinline__ void raise(
    const float (&score)[KEYS / 2], float (&peak)[2], float (&fade)[2], float scale) {
    float top[2] = {score[0], score[2]};
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], score[i]);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffff, top[r], 1));
        top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffff, top[r], 2));
        const float higher = fmaxf(peak[r], top[r] * scale);
        fade[r] = power_of_two(peak[r] - higher);
        peak[r] = higher;
    }
}

// The weights of a tile as a product takes them from registers, those in fp8 in an order in which values lie as well.
// Returns whether a weight is too large: in fp8 perhaps larger than its largest number, in bf16 2^65 times the peak's.
__device__ __forceinline__ bool weigh(
    u32 (&weight)[WEIGHTS], const float (&score)[KEYS / 2], const float (&peak)[2], float scale) {
    u32 large = 0;
#pragma unroll
    for (int i = 0; i < WEIGHTS; i++) {
        const int first = i / 2 * 2 * PACK + i % 2 * 2;
        const float below = REFERENCE - peak[i % 2];
        float power[4];
#pragma unroll
        for (int n = 0; n < PACK; n++) power[n] = power_of_two(fmaf(score[first + n / 2 * 4 + n % 2], scale, below));
        if constexpr (IN_FP8) {
            weight[i] = four_fp8(power[0], power[1], power[2], power[3]);
            large |= (weight[i] + 0x02020202) & 0x80808080;  // 448 is 0x7e
        } else {
            weight[i] = two_bf16(power[0], power[1]);
            large |= weight[i] & 0x40004000;  // 2 is 0x4000
        }
    }
    return large;
}

__device__ __forceinline__ void scores(float (&score)[KEYS / 2], const u32 (&query)[D * BYTES / 8], u32 keys) {
#pragma unroll
    for (int i = 0; i < D * BYTES / 32; i++)
        score_product(score, &query[4 * i], described<128>(keys + i / 4 * KEYS * 128 + i % 4 * 32), i > 0);
}

// Adds to sums, while `marked` is of this tile alone: the weights of its keys under each of eight marks.
__device__ __forceinline__ void weighted(
    float (&sum)[D / 2], float (&marked)[4], const u32 (&weight)[WEIGHTS], u32 values, u32 marks) {
#pragma unroll
    for (int i = 0; i < WEIGHTS / 4; i++) {
        const u64 place = IN_FP8 ? described<MARK_ROW>(values + 32 * i) : described_values(values + 2048 * i);
        value_product(sum, &weight[4 * i], place, true);
        mark_product(marked, &weight[4 * i], described<MARK_ROW>(marks + i / 4 * 1024 + i % 4 * 32), i > 0);
    }
}

// Sums at `place` belong to the peaks at which they were moved there.
__device__ __forceinline__ void move(float (&sum)[D / 2], u32 place, float (&moved_peak)[2], const float (&peak)[2]) {
    moved_peak[0] = peak[0];
    moved_peak[1] = peak[1];
#pragma unroll
    for (int i = 0; i < D / 2; i += 4) {
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
            ::"r"(place + i * 512), "f"(sum[i]), "f"(sum[i + 1]), "f"(sum[i + 2]), "f"(sum[i + 3]));
        sum[i] = sum[i + 1] = sum[i + 2] = sum[i + 3] = 0;
    }
}
__device__ __forceinline__ void add_moved(
    float (&sum)[D / 2], u32 place, const float (&moved_peak)[2], const float (&peak)[2]) {
    const float fade[2] = {power_of_two(moved_peak[0] - peak[0]), power_of_two(moved_peak[1] - peak[1])};
#pragma unroll
    for (int i = 0; i < D / 2; i += 4) {
        float moved[4];
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
            : "=f"(moved[0]), "=f"(moved[1]), "=f"(moved[2]), "=f"(moved[3]) : "r"(place + i * 512));
#pragma unroll
        for (int n = 0; n < 4; n++) sum[i + n] = fmaf(moved[n], fade[n / 2], sum[i + n]);
    }
}

// queries [B, length, heads, D], keys and values [B, num_keys, heads, D]; values in fp8 are [B, heads, D, num_keys
// rounded up] in the order of `weigh`. What comes of values is multiplied by value_scale and added to value_mean
// [heads, D]; out [B, length, heads, D] is bf16, or fp8 where `rounded`. scale: log2(e) / sqrt(D).
// marks [marked_tiles + 1, parts, 8, keys of a part], rows swizzled: mark 0 has every key, marks 1 to num_regions are
// the regions of the first tiles and the next one is all of these regions' frame; the last tile stands for all further
// ones. shares [B, heads, num_regions, length]: of the weights in the frame those in each region.
extern "C" __global__ void __launch_bounds__(128 * (GROUPS + 1), 1)
attention(const __grid_constant__ TensorMap key_map, const __grid_constant__ TensorMap value_map,
          const unsigned char* queries, const float* value_scale, const float* value_mean, void* out, int rounded,
          const unsigned char* marks, float* shares, int marked_tiles, int num_regions,
          int length, int num_keys, int heads, float scale) {
    extern __shared__ unsigned char memory[];
    __shared__ alignas(8) u64 barriers[2 * STAGES];
    const u32 stages = (shared_address(memory) + 1023) & ~1023u;  // in each a tile of keys, one of values, one of marks
    const u32 moved = stages + STAGES * STAGE;
    const u32 full = shared_address(barriers), free = full + 8 * STAGES;
    const int group = threadIdx.x / 128, head = blockIdx.y, batch = blockIdx.z;
    const int tiles = (num_keys + KEYS - 1) / KEYS;

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(free + 8 * i, 4 * GROUPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();

    if (group == GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COPY_REGISTERS));
        if (threadIdx.x % 128 == 0) {
            int stage = 0, phase = 1;
            for (int tile = 0; tile < tiles; tile++) {
                const u32 to = stages + stage * STAGE, arrived = full + 8 * stage;
                barrier_wait(free + 8 * stage, phase);
                barrier_expect(arrived, 2 * TILE + MARK_BYTES);
                for (int part = 0; part < PARTS; part++) {
                    const int from = (head * PARTS + part) * 128, at = to + part * KEYS * 128;
                    copy_tile(at, &key_map, from, tile * KEYS, batch, arrived);
                    if (!IN_FP8) copy_tile(at + TILE, &value_map, from, tile * KEYS, batch, arrived);
                }
                if (IN_FP8) copy_tile(to + TILE, &value_map, tile * KEYS, head * D, batch, arrived);
                copy_bytes(to + 2 * TILE, marks + min(tile, marked_tiles) * MARK_BYTES, MARK_BYTES, arrived);
                if (++stage == STAGES) stage = 0, phase ^= 1;
            }
        }
        return;
    }

    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
    const int lane = threadIdx.x % 32, row = blockIdx.x * ROWS * GROUPS + threadIdx.x / 32 * 16 + lane / 4;
    const u32 place = moved + group * 128 * D / 2 * 4 + threadIdx.x % 128 * 16;
    const u64 rows = (u64)batch * length;
    u32 query[D * BYTES / 8], weight[WEIGHTS];
    // Sums begin with zeros: compilers before CUDA 12.9 otherwise let every product wait for the one before.
    float score[KEYS / 2], sum[D / 2] = {}, tile_marked[4] = {};
    float marked[4] = {}, peak[2] = {LOWEST, LOWEST}, fade[2];
#pragma unroll
    for (int i = 0; i < D * BYTES / 8; i++) {
        const int token = row + i % 2 * 8, place = i / 2 * 16 + lane % 4 * 4;
        query[i] = token < length ? *(const u32*)(queries + ((rows + token) * heads + head) * D * BYTES + place) : 0;
    }

    barrier_wait(full, 0);
    products_begin();
    scores(score, query, stages);
    products_commit();
    products_wait<0>();
    written(score);
    mask(score, num_keys);
    raise(score, peak, fade, scale);
    weigh(weight, score, peak, scale);
    float moved_peak[2] = {peak[0], peak[1]};
    int stage = 0, phase = 0, before_move = MOVE_EVERY;
    bool any_moved = false;

    for (int i = 1; i < tiles; i++) {
        const int last_stage = stage;
        if (++stage == STAGES) stage = 0, phase ^= 1;
        barrier_wait(full + 8 * stage, phase);
        products_begin();
        weighted(sum, tile_marked, weight, stages + last_stage * STAGE + TILE, stages + last_stage * STAGE + 2 * TILE);
        products_commit();
        scores(score, query, stages + stage * STAGE);
        products_commit();
        products_wait<1>();
        written(sum);
        written(tile_marked);
        if (lane == 0) barrier_arrive(free + 8 * last_stage);
#pragma unroll
        for (int n = 0; n < 4; n++) marked[n] += tile_marked[n];
        if (IN_FP8 && --before_move == 0) {
            if (any_moved) add_moved(sum, place, moved_peak, peak);
            move(sum, place, moved_peak, peak);
            before_move = MOVE_EVERY, any_moved = true;
        }
        products_wait<0>();
        written(score);
        if (i == tiles - 1) mask(score, num_keys - i * KEYS);
        if (__any_sync(0xffffffff, weigh(weight, score, peak, scale))) {
            raise(score, peak, fade, scale);
            weigh(weight, score, peak, scale);
#pragma unroll
            for (int n = 0; n < D / 2; n++) sum[n] *= fade[n / 2 % 2];
            // Marks of the frame are compared with one another only: they must not vanish beside keys behind it.
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const float in_frame = i < marked_tiles ? fmaxf(fade[n / 2], 1e-9f) : 1.0f;
                marked[n] *= lane % 4 + n % 2 == 0 ? fade[n / 2] : in_frame;
            }
        }
    }

    products_begin();
    weighted(sum, tile_marked, weight, stages + stage * STAGE + TILE, stages + stage * STAGE + 2 * TILE);
    products_commit();
    products_wait<0>();
    written(sum);
    written(tile_marked);
    if (any_moved) add_moved(sum, place, moved_peak, peak);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        // Column 2 * (lane % 4) + n of the marks is this thread's marked[2 * r + n].
        const float here[2] = {marked[2 * r] + tile_marked[2 * r], marked[2 * r + 1] + tile_marked[2 * r + 1]};
        const float share = 1.0f / __shfl_sync(0xffffffff, here[0], lane & ~3);
        const int frame = num_regions + 1;
        const float inside = __shfl_sync(0xffffffff, frame % 2 ? here[1] : here[0], (lane & ~3) + frame / 2);
        if (row + 8 * r >= length) continue;
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const int region = lane % 4 * 2 + n - 1;
            if (region >= 0 && region < num_regions)
                shares[((u64)(batch * heads + head) * num_regions + region) * length + row + 8 * r] = here[n] / fmaxf(inside, 1e-37f);
        }
        const u64 first = ((rows + row + 8 * r) * heads + head) * (D / 2) + lane % 4;  // in pairs of columns
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const int column = head * D + 8 * i + lane % 4 * 2;
            const float2 factor = *(const float2*)(value_scale + column), mean = *(const float2*)(value_mean + column);
            const float* pair = &sum[4 * i + 2 * r];
            const float a = fmaf(pair[0] * share, factor.x, mean.x), b = fmaf(pair[1] * share, factor.y, mean.y);
            if (rounded)
                ((unsigned short*)out)[first + 4 * i] = (unsigned short)four_fp8(a, b, 0, 0);
            else
                ((u32*)out)[first + 4 * i] = two_bf16(a, b);
        }
    }
}
