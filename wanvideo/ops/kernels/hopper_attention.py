"""Attention in bf16 and fp8 for Hopper GPUs (`hopper_attention.cu`): instructions, layouts of its operands, launch."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantized import FP8, LARGEST, SMALLEST_PEAK, QuantisedRows
from . import cuda_driver, softmax_scale

WIDTH, ROWS, KEY_GROUP, MARKS = 128, 64, 32, 8
MOST_REGIONS = MARKS - 2
TILES = {
    FP8: {"BYTES": 1, "KEYS": 64, "GROUPS": 3, "STAGES": 5, "MOVE_EVERY": 48, "REGISTERS": 160, "COPY_REGISTERS": 32},
    torch.bfloat16: {
        "BYTES": 2, "KEYS": 112, "GROUPS": 2, "STAGES": 3, "MOVE_EVERY": 0, "REGISTERS": 240, "COPY_REGISTERS": 24,
    },
}  # fmt: skip
ARCHITECTURE = "sm_90a"


def _constants(dtype: torch.dtype) -> dict[str, int]:
    """What the kernel is compiled with; TILE, MARK_BYTES and STAGE are bytes of shared memory."""
    tiles = TILES[dtype]
    keys = tiles["KEYS"] * tiles["BYTES"]
    row, tile = min(keys, 128), keys * WIDTH
    marks = triton.cdiv(keys, 128) * MARKS * row
    stage = 2 * tile + triton.cdiv(marks, 1024) * 1024
    sizes = {"TILE": tile, "MARK_ROW": row, "MARK_BYTES": marks, "STAGE": stage}
    return {"WIDTH": WIDTH, "ROWS": ROWS, **sizes, **tiles}


def _product(name: str, columns: int, types: str, transposed: str) -> str:
    """A device function around one tensor-core product: 64 rows of 32 bytes in registers, times [32 bytes, columns]
    described in shared memory, added to 64 x columns sums or written over them."""
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
    source += _product("mark_product", MARKS, types, plain)
    source += Path(__file__).with_name("hopper_attention.cu").read_text(encoding="utf-8")
    return cuda_driver.compile_source(source, ARCHITECTURE, constants)


@cache
def _kernel(device: torch.device, dtype: torch.dtype) -> cuda_driver.Kernel:
    constants = _constants(dtype)
    moved = constants["GROUPS"] * ROWS * WIDTH * 4 if constants["MOVE_EVERY"] else 0
    shared = 1024 + constants["STAGES"] * constants["STAGE"] + moved
    with torch.cuda.device(device):
        return cuda_driver.Kernel(compiled(dtype)[0], "attention", shared)


@triton.jit
def _column_ranges(x, lowest, highest, total, L, C, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    low, high = tl.full((BLOCK,), float("inf"), tl.float32), tl.full((BLOCK,), float("-inf"), tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    for step in range(ROWS):
        row = tl.program_id(0).to(tl.int64) * ROWS + step
        inside = (columns < C) & (row < L)
        value = tl.load(x + row * C + columns, mask=inside, other=0.0).to(tl.float32)
        low, high = tl.where(inside, tl.minimum(low, value), low), tl.where(inside, tl.maximum(high, value), high)
        sums += value
    place = tl.program_id(0) * C + columns
    tl.store(lowest + place, low, mask=columns < C)
    tl.store(highest + place, high, mask=columns < C)
    tl.store(total + place, sums, mask=columns < C)


@triton.jit
def _token_at(place):
    """Values and marks lie in the order in which `weigh` leaves 32 weights."""
    return place // 16 * 16 + place % 4 // 2 * 8 + place % 16 // 4 * 2 + place % 2


@triton.jit
def _turned(x, mean, factor, out, L, padded, N, D: tl.constexpr, BLOCK: tl.constexpr):
    """x [B, L, N, D] -> out [B, N, D, padded]: (x - mean) * factor, tokens in the order of `_token_at`."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    place, columns = tl.arange(0, BLOCK), tl.arange(0, D)
    first = tl.program_id(0) * BLOCK
    token = first + _token_at(place)
    source = x + ((batch * L + token[:, None]) * N + head) * D + columns[None, :]
    value = tl.load(source, mask=token[:, None] < L, other=0.0).to(tl.float32)
    value = (value - tl.load(mean + head * D + columns)[None, :]) * tl.load(factor + head * D + columns)[None, :]
    value = tl.where(token[:, None] < L, value, 0.0)
    target = out + ((batch * N + head) * D + columns[:, None]) * padded + first + place[None, :]
    tl.store(target, tl.trans(value).to(out.dtype.element_ty), mask=first + place[None, :] < padded)


def turned_values(value: Tensor, dtype: torch.dtype = FP8) -> tuple[Tensor, Tensor, Tensor]:
    """value [B, L, N, D] -> values [B, N, D, L rounded up to 32] as the kernel takes them, scale and mean [N, D].

    value = scale * result + mean. Without the mean the sums of an even attention stay small, which fp8 products need.
    """
    value = value.contiguous()
    batch, length, heads, width = value.shape
    rows, columns = batch * length, heads * width
    blocks = triton.cdiv(rows, 128)
    lowest, highest, total = value.new_empty(3, blocks, columns, dtype=torch.float32)
    _column_ranges[(blocks, triton.cdiv(columns, 1024))](
        value, lowest, highest, total, rows, columns, ROWS=128, BLOCK=1024, num_warps=4
    )
    mean = total.sum(0) / rows
    peak = torch.maximum(highest.amax(0) - mean, mean - lowest.amin(0)).clamp_min(SMALLEST_PEAK)
    scale = peak / LARGEST[FP8]
    padded = triton.cdiv(length, KEY_GROUP) * KEY_GROUP
    out = value.new_empty(batch, heads, width, padded, dtype=dtype)
    _turned[(triton.cdiv(padded, 128), heads, batch)](
        value, mean, scale.reciprocal(), out, length, padded, heads, D=width, BLOCK=128, num_warps=4
    )
    return out, scale.view(heads, width), mean.view(heads, width)


@triton.jit
def _tiles_of_marks(
    regions, out, M, R, MARKS: tl.constexpr, KEYS: tl.constexpr, BYTES: tl.constexpr, ROW: tl.constexpr
):
    """regions [R, M] -> out [tiles of KEYS keys, parts, MARKS, ROW bytes], swizzled as tensor cores read rows."""
    mark, place = tl.arange(0, MARKS)[:, None], tl.arange(0, ROW // BYTES)[None, :]
    CHUNK: tl.constexpr = 16 // BYTES
    tile, part = tl.program_id(0), tl.program_id(1)
    inside = (place // CHUNK ^ mark * ROW // 128 % (ROW // 16)) * CHUNK + place % CHUNK + part * ROW // BYTES
    if BYTES == 1:
        inside = _token_at(inside)
    key = tile * KEYS + inside
    counts = (inside < KEYS) & (key < M)
    region = tl.load(regions + (mark - 1) * M + key, mask=(mark > 0) & (mark <= R) & counts, other=0.0)
    value = tl.where(mark == R + 1, tl.where(counts, 1.0, 0.0), region)
    value = tl.where(mark == 0, 1.0, value)
    row = (tile * tl.num_programs(1) + part) * MARKS + mark
    tl.store(out + row * (ROW // BYTES) + place, value.to(out.dtype.element_ty))


def marks_of(regions: Tensor, dtype: torch.dtype) -> Tensor:
    """regions [R, M] of zeros and ones -> the kernel's marks [tiles of M keys + 1, parts, MARKS, keys of a part]."""
    (num_regions, length), constants = regions.shape, _constants(dtype)
    keys, size, row = (constants[name] for name in ("KEYS", "BYTES", "MARK_ROW"))
    tiles, parts = triton.cdiv(length, keys) + 1, triton.cdiv(keys * size, 128)
    out = torch.empty(tiles, parts, MARKS, row // size, dtype=dtype, device=regions.device)
    _tiles_of_marks[(tiles, parts)](
        regions.float().contiguous(), out, length, num_regions,
        MARKS=MARKS, KEYS=keys, BYTES=size, ROW=row, num_warps=1,
    )  # fmt: skip
    return out


@cache
def _plain(heads: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The scale and mean of values that are as they are."""
    return torch.ones(heads, WIDTH, device=device), torch.zeros(heads, WIDTH, device=device)


def _tiles_of(x: Tensor) -> cuda_driver.TensorMap:
    """Tiles of keys or values [B, M, N, 128]: 128 bytes of a head at a time."""
    batch, length, heads, width = x.shape
    row = heads * width * x.element_size()
    return cuda_driver.tensor_map(x, (row, length, batch), (row, length * row), (128, TILES[x.dtype]["KEYS"], 1))


def attend(
    query: Tensor, key: Tensor, value: Tensor, regions: Tensor | None = None, rounded: bool = False
) -> tuple[Tensor | QuantisedRows, Tensor | None]:
    """query [B, L, N, 128], key [B, M, N, 128], both fp8 or bf16, value [B, M, N, 128] bf16 -> [B, L, N, 128] bf16.

    regions [R, K] of zeros and ones, R up to MOST_REGIONS: also the share of its attention to the first K keys that
    each query pays to each region of them, averaged over heads, [B, R, L] float32.

    rounded, for fp8 only: rows [B * L, N * 128] in fp8 with one scale, that of the largest value, which no result
    exceeds. Queries and keys in fp8 come normalised, so they have no scale.
    Raises: ValueError for another dtype or width.
    """
    batch, length, heads, width = query.shape
    num_keys, columns = key.shape[1], heads * width
    if width != WIDTH or query.dtype not in TILES or value.dtype != torch.bfloat16:
        raise ValueError(f"heads of {width} columns in {query.dtype} and {value.dtype} are not known to this kernel")
    query, key, tiles = query.contiguous(), key.contiguous(), TILES[query.dtype]
    if query.dtype == FP8:
        values, scale, mean = turned_values(value)
        padded = values.shape[-1]
        value_map = cuda_driver.tensor_map(
            values, (padded, columns, batch), (padded, columns * padded), (tiles["KEYS"], WIDTH, 1)
        )
    else:
        values, (scale, mean) = value.contiguous(), _plain(heads, query.device)
        value_map = _tiles_of(values)
    if rounded:
        unit = (scale + mean.abs() / LARGEST[FP8]).amax()
        scale, mean = scale / unit, mean / unit
    if regions is None:
        regions = scale.new_empty(0, 0)
    num_regions, marks = len(regions), marks_of(regions, query.dtype)
    out = torch.empty_like(query, dtype=FP8 if rounded else torch.bfloat16)
    shares = scale.new_empty(batch, heads, num_regions, length)
    sizes = (ctypes.c_int(n) for n in (len(marks) - 1, num_regions, length, num_keys, heads))
    arguments = (
        _tiles_of(key), value_map, query, scale, mean, out, ctypes.c_int(rounded),
        marks, shares, *sizes, ctypes.c_float(softmax_scale(width)),
    )  # fmt: skip
    grid = (triton.cdiv(length, ROWS * tiles["GROUPS"]), heads, batch)
    with torch.cuda.device(query.device):
        _kernel(query.device, query.dtype).launch(grid, 128 * (tiles["GROUPS"] + 1), arguments)
    if rounded:
        out = QuantisedRows.of_unit(out.view(-1, columns), unit)
    return out, shares.mean(1) if num_regions else None
