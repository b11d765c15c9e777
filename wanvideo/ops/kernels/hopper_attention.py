"""Attention in bf16 and fp8 for Hopper GPUs (`hopper_attention.cu`): instructions, layouts of its operands, launch.

Legend: B batch, L query tokens, M key tokens, K keys of a frame, N heads, E head width, R regions.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.regions import FrameRegions
from ..quantized import FP8, QuantizedRows
from . import cuda_driver, softmax_scale
from .hopper_tiles import TileOrder, tile_order
from .hopper_values import Fp8Values, fp8_values, token_at

WIDTH, ROWS, INDICATORS = 128, 64, 8
MAX_REGIONS = INDICATORS - 2
SWIZZLE_ROW, SWIZZLE_ATOM = 128, 1024  # bytes of the widest swizzled row, and after which its pattern repeats
TILES = {
    FP8: {
        "BYTES": 1, "KEYS": 64, "GROUPS": 3, "STAGES": 5, "PROMOTE_EVERY": 48,
        "REGISTERS": 160, "PRODUCER_REGISTERS": 32,
    },
    torch.bfloat16: {
        "BYTES": 2, "KEYS": 112, "GROUPS": 2, "STAGES": 3, "PROMOTE_EVERY": 0,
        "REGISTERS": 240, "PRODUCER_REGISTERS": 24,
    },
}  # fmt: skip
ARCHITECTURE = "sm_90a"
SOURCES = ("hopper_instructions.cu", "hopper_attention.cu")


class Attended(NamedTuple):
    """What `attend` computes. out [B, L, N, E] bf16, or rows [B * L, N * E] in fp8, or None where they are elsewhere;
    shares [B, R, L] float32 and lse [B, N, L] float32 where they are asked for."""

    out: Tensor | QuantizedRows | None
    shares: Tensor | None
    lse: Tensor | None


def _constants(dtype: torch.dtype) -> dict[str, int]:
    """What the kernel is compiled with; TILE, INDICATOR_BYTES and STAGE are bytes of shared memory."""
    tiles = TILES[dtype]
    keys = tiles["KEYS"] * tiles["BYTES"]
    row, tile = min(keys, SWIZZLE_ROW), keys * WIDTH
    indicators = triton.cdiv(keys, SWIZZLE_ROW) * INDICATORS * row
    stage = 2 * tile + triton.cdiv(indicators, SWIZZLE_ATOM) * SWIZZLE_ATOM
    sizes = {"TILE": tile, "INDICATOR_ROW": row, "INDICATOR_BYTES": indicators, "STAGE": stage}
    return {"WIDTH": WIDTH, "ROWS": ROWS, "INDICATORS": INDICATORS, **sizes, **tiles}


def _product(name: str, columns: int, types: str, transposed: str) -> str:
    """A device function around one tensor-core product: 64 rows of 32 bytes in registers, times [32 bytes, columns] by
    a descriptor of shared memory, added to 64 x columns sums or written over them."""
    count = columns // 2
    sums = ", ".join(f"%{i}" for i in range(count))
    rows = ", ".join(f"%{count + i}" for i in range(4))
    instruction = f"wgmma.mma_async.sync.aligned.m64n{columns}{types}"
    return f"""
__device__ __forceinline__ void {name}(float (&sum)[{count}], const unsigned int* a, unsigned long long b, bool add) {{
    asm volatile("{{.reg .pred add; setp.ne.b32 add, %{count + 5}, 0; "
        "{instruction} {{{sums}}}, {{{rows}}}, %{count + 4}, add, 1, 1{transposed};}}"
        : {", ".join(f'"+f"(sum[{i}])' for i in range(count))}
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add) : "memory");
}}
"""


def compiled(dtype: torch.dtype) -> tuple[bytes, str]:
    """The kernel's machine code, and what the compiler said."""
    constants = _constants(dtype)
    if dtype == FP8:
        types, plain, transposed = "k32.f32.e4m3.e4m3", "", ""
    else:
        types, plain, transposed = "k16.f32.bf16.bf16", ", 0", ", 1"
    source = _product("score_product", constants["KEYS"], types, plain)
    source += _product("value_product", WIDTH, types, transposed)
    source += _product("indicator_product", INDICATORS, types, plain)
    source += "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in SOURCES)
    return cuda_driver.compile_source(source, ARCHITECTURE, constants)


@cache
def _kernel(device: torch.device, dtype: torch.dtype) -> cuda_driver.Kernel:
    constants = _constants(dtype)
    promoted = constants["GROUPS"] * ROWS * WIDTH * 4 if constants["PROMOTE_EVERY"] else 0
    shared = SWIZZLE_ATOM + constants["STAGES"] * constants["STAGE"] + promoted
    with torch.cuda.device(device):
        return cuda_driver.Kernel(compiled(dtype)[0], "attention", shared)


@triton.jit
def _indicator_tiles(
    members, columns, order, out, K, R,
    SCATTERED: tl.constexpr, INDICATORS: tl.constexpr, KEYS: tl.constexpr, BYTES: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """members [R, K] -> out [tiles of KEYS keys, parts, INDICATORS, ROW bytes], swizzled as tensor cores read rows.

    SCATTERED: tile i of all but the last is tile order[i] of the keys, and columns [keys] int32 says which column of
    members a key has, or -1; else the frame's keys are the first K.
    """
    indicator, place = tl.arange(0, INDICATORS)[:, None], tl.arange(0, ROW // BYTES)[None, :]
    CHUNK: tl.constexpr = 16 // BYTES
    tile, part = tl.program_id(0), tl.program_id(1)
    inside = (place // CHUNK ^ indicator * ROW // 128 % (ROW // 16)) * CHUNK + place % CHUNK + part * ROW // BYTES
    if BYTES == 1:
        inside = token_at(inside)
    if SCATTERED:
        of_keys = tile < tl.num_programs(0) - 1
        key = tl.load(order + tile, mask=of_keys, other=0) * KEYS + inside
        column = tl.load(columns + key, mask=of_keys & (inside < KEYS), other=-1)
        counts = column >= 0
    else:
        column = tile * KEYS + inside
        counts = (inside < KEYS) & (column < K)
    of_region = (indicator > 0) & (indicator <= R) & counts
    region = tl.load(members + (indicator - 1) * K + column, mask=of_region, other=0.0)
    value = tl.where(indicator == R + 1, tl.where(counts, 1.0, 0.0), region)
    value = tl.where(indicator == 0, 1.0, value)
    row = (tile * tl.num_programs(1) + part) * INDICATORS + indicator
    tl.store(out + row * (ROW // BYTES) + place, value.to(out.dtype.element_ty))


def indicator_tiles(members: Tensor, order: TileOrder, dtype: torch.dtype) -> Tensor:
    """members [R, K] of zeros and ones -> the kernel's [tiles with frame's keys + 1, parts, 8, keys of a part]."""
    (num_regions, num_keys), constants = members.shape, _constants(dtype)
    keys, size, row = (constants[name] for name in ("KEYS", "BYTES", "INDICATOR_ROW"))
    tiles, parts = order.marked_tiles + 1, triton.cdiv(keys * size, SWIZZLE_ROW)
    out = torch.empty(tiles, parts, INDICATORS, row // size, dtype=dtype, device=members.device)
    members, scattered = members.float().contiguous(), order.columns is not None
    _indicator_tiles[(tiles, parts)](
        members, order.columns if scattered else members, order.marked if scattered else members, out,
        num_keys, num_regions,
        SCATTERED=scattered, INDICATORS=INDICATORS, KEYS=keys, BYTES=size, ROW=row, num_warps=1,
    )  # fmt: skip
    return out


@cache
def _unscaled(heads: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The scale and mean of values that are as they are."""
    return torch.ones(heads, WIDTH, device=device), torch.zeros(heads, WIDTH, device=device)


def _tile_map(x: Tensor) -> cuda_driver.TensorMap:
    """Tiles of keys or values [B, M, N, 128]: 128 bytes of a head at a time."""
    batch, length, heads, width = x.shape
    row = heads * width * x.element_size()
    box = SWIZZLE_ROW, TILES[x.dtype]["KEYS"], 1
    return cuda_driver.tensor_map(x, (row, length, batch), (row, length * row), box)


class RowPlaces(NamedTuple):
    """Where the ranks are that the rows of queries belong to.

    addresses: [P] int64, of each rank's rows [tokens, num_heads, 128]. starts: [P] int32, its first token of all.
    first_head: of the heads that are attended to here, among all num_heads.
    """

    addresses: Tensor
    starts: Tensor
    first_head: int
    num_heads: int


def attend(
    query: Tensor, key: Tensor, value: Tensor | Fp8Values, regions: FrameRegions | None = None,
    out_in_fp8: bool = False, needs_lse: bool = False, value_bound: Tensor | None = None,
    places: RowPlaces | None = None,
) -> Attended:  # fmt: skip
    """query [B, L, N, 128], key [B, M, N, 128], both fp8 or bf16, value [B, M, N, 128] bf16 or as `fp8_values`.

    regions: up to MAX_REGIONS of a frame: also the share of its attention to that frame that each query pays to each
    of them, averaged over heads. In a tile that holds other keys too, keys of the frame whose weight is below what P
    can hold beside the others' (2^-15 in fp8) do not count.
    out_in_fp8: rows with one scale, that of the largest value, which no result exceeds; for fp8 only. value_bound: in
    place of the largest value, a float32 number. places: rows are written there, and `Attended.out` is None.
    Queries and keys in fp8 come normalized, so they have no scale, and keys without what they have in common.
    Raises: ValueError for another dtype or width.
    """
    batch, length, heads, width = query.shape
    num_keys, columns = key.shape[1], heads * width
    known = isinstance(value, Fp8Values) or value.dtype == torch.bfloat16
    if width != WIDTH or query.dtype not in TILES or not known:
        raise ValueError(f"heads of {width} columns in {query.dtype} are not known to this kernel, or not such values")
    query, key, tiles = query.contiguous(), key.contiguous(), TILES[query.dtype]
    if query.dtype == FP8:
        if isinstance(value, Tensor):
            value = fp8_values(value, out_in_fp8, value_bound)
        values, scale, offset, row_scale = (
            value.data,
            value.scaling.scale,
            value.scaling.offset,
            value.scaling.row_scale,
        )
        padded = values.shape[-1]
        value_map = cuda_driver.tensor_map(
            values, (padded, columns, batch), (padded, columns * padded), (tiles["KEYS"], WIDTH, 1)
        )
    else:
        assert isinstance(value, Tensor), "values in fp8 are attended to by queries in fp8"
        values, (scale, offset) = value.contiguous(), _unscaled(heads, query.device)
        value_map = _tile_map(values)
    members = scale.new_empty(0, 0) if regions is None else regions.members
    order = tile_order(() if regions is None else regions.spans, num_keys, tiles["KEYS"], query.device)
    num_regions, indicators = len(members), indicator_tiles(members, order, query.dtype)
    out = None if places else torch.empty_like(query, dtype=FP8 if out_in_fp8 else torch.bfloat16)
    shares = scale.new_empty(batch, heads, num_regions, length)
    lse = scale.new_empty(batch, heads, length) if needs_lse else None
    sizes = (order.partial_step, order.marked_tiles, num_regions, length, num_keys, heads)
    owners = (None, None, 0, 0, heads) if places is None else (*places[:2], len(places.starts), *places[2:])
    arguments = (
        _tile_map(key), value_map, query, scale, offset, out, ctypes.c_int(out_in_fp8), indicators, order.steps, shares,
        lse, *(ctypes.c_int(size) for size in sizes), ctypes.c_float(softmax_scale(width)), *owners[:2],
        *(ctypes.c_int(number) for number in owners[2:]),
    )  # fmt: skip
    grid = (triton.cdiv(length, ROWS * tiles["GROUPS"]), heads, batch)
    with torch.cuda.device(query.device):
        _kernel(query.device, query.dtype).launch(grid, 128 * (tiles["GROUPS"] + 1), arguments)
    rows: Tensor | QuantizedRows | None = out
    if out is not None and out_in_fp8:
        rows = QuantizedRows.of_one_scale(out.view(-1, columns), row_scale)
    return Attended(rows, shares.mean(1) if num_regions else None, lse)
