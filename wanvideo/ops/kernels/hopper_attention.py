"""Self-attention in fp8 for Hopper GPUs (`hopper_attention.cu`): its instructions, its values' layout, its launch."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantised import FP8, LARGEST, SMALLEST_PEAK, QuantisedRows
from . import cuda_driver, softmax_scale

WIDTH, ROWS, KEY_GROUP, MARKS = 128, 64, 32, 8
MOST_REGIONS = MARKS - 2
TILES = {
    "WIDTH": WIDTH,
    "ROWS": ROWS,
    "KEYS": 64,
    "GROUPS": 3,
    "STAGES": 5,
    "MOVE_EVERY": 48,
    "REGISTERS": 160,
    "COPY_REGISTERS": 32,
}
ARCHITECTURE = "sm_90a"


def _product(name: str, columns: int) -> str:
    """A device function around one tensor-core product: 64 rows of 32 fp8 numbers in registers, times [32, columns]
    described in shared memory, added to 64 x columns sums or written over them."""
    count = columns // 2
    sums = ", ".join(f"%{i}" for i in range(count))
    rows = ", ".join(f"%{count + i}" for i in range(4))
    instruction = f"wgmma.mma_async.sync.aligned.m64n{columns}k32.f32.e4m3.e4m3"
    return f"""
__device__ __forceinline__ void {name}(float (&sum)[{count}], const unsigned int* a, unsigned long long b, bool add) {{
    asm volatile("{{.reg .pred add; setp.ne.b32 add, %{count + 5}, 0; "
        "{instruction} {{{sums}}}, {{{rows}}}, %{count + 4}, add, 1, 1;}}"
        : {", ".join(f'"+f"(sum[{i}])' for i in range(count))}
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add) : "memory");
}}
"""


def compiled() -> tuple[bytes, str]:
    """The kernel's machine code, and what the compiler said."""
    products = {"score_product": TILES["KEYS"], "value_product": WIDTH, "mark_product": MARKS}
    source = "".join(_product(name, columns) for name, columns in products.items())
    source += Path(__file__).with_name("hopper_attention.cu").read_text(encoding="utf-8")
    return cuda_driver.compile_source(source, ARCHITECTURE, TILES)


@cache
def _kernel(device: torch.device) -> cuda_driver.Kernel:
    tiles = TILES["STAGES"] * (2 * TILES["KEYS"] * WIDTH + 1024)
    moved = TILES["GROUPS"] * ROWS * WIDTH * 4
    with torch.cuda.device(device):
        return cuda_driver.Kernel(compiled()[0], "fp8_attention", 1024 + tiles + moved)


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
def _tiles_of_marks(regions, out, M, R, MARKS: tl.constexpr, KEYS: tl.constexpr):
    """regions [R, M] -> out [tiles of KEYS keys, MARKS, KEYS] as tensor cores read rows of 64 bytes: swizzled."""
    mark, place = tl.arange(0, MARKS)[:, None], tl.arange(0, KEYS)[None, :]
    key = tl.program_id(0) * KEYS + _token_at((place // 16 ^ mark // 2 % 4) * 16 + place % 16)
    region = tl.load(regions + (mark - 1) * M + key, mask=(mark > 0) & (mark <= R) & (key < M), other=0.0)
    value = tl.where(mark == R + 1, tl.where(key < M, 1.0, 0.0), region)
    value = tl.where(mark == 0, 1.0, value)
    tl.store(out + (tl.program_id(0) * MARKS + mark) * KEYS + place, value.to(out.dtype.element_ty))


def marks_of(regions: Tensor) -> Tensor:
    """regions [R, M] of zeros and ones -> the kernel's marks [tiles of M keys + 1, MARKS, KEYS] in fp8."""
    num_regions, length = regions.shape
    tiles = triton.cdiv(length, TILES["KEYS"]) + 1
    out = torch.empty(tiles, MARKS, TILES["KEYS"], dtype=FP8, device=regions.device)
    _tiles_of_marks[(tiles,)](
        regions.float().contiguous(), out, length, num_regions, MARKS=MARKS, KEYS=TILES["KEYS"], num_warps=1
    )
    return out


def attend(
    query: Tensor, key: Tensor, value: Tensor, regions: Tensor | None = None, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor | QuantisedRows, Tensor | None]:
    """query [B, L, N, 128] and key [B, M, N, 128] in fp8, value [B, M, N, 128] -> [B, L, N, 128] bf16.

    dtype fp8: the same as rows [B * L, N * 128] with one scale, that of the largest value, which no result exceeds.

    regions [R, K] of zeros and ones, R up to MOST_REGIONS: also the share of its attention to the first K keys that
    each query pays to each region of them, averaged over heads, [B, R, L] float32.

    Queries and keys come normalised, so they have no scale. Raises: ValueError for another head width.
    """
    batch, length, heads, width = query.shape
    num_keys = key.shape[1]
    if width != WIDTH:
        raise ValueError(f"heads are {width} wide; this kernel knows {WIDTH}")
    query, key = query.contiguous(), key.contiguous()
    values, scale, mean = turned_values(value)
    columns, padded = heads * width, values.shape[-1]
    key_map = cuda_driver.tensor_map(
        key, (columns, num_keys, batch), (columns, num_keys * columns), (WIDTH, TILES["KEYS"], 1)
    )
    value_map = cuda_driver.tensor_map(
        values, (padded, columns, batch), (padded, columns * padded), (TILES["KEYS"], WIDTH, 1)
    )
    if regions is None:
        regions = scale.new_empty(0, 0)
    num_regions, marks = len(regions), marks_of(regions)
    rounded = dtype == FP8
    if rounded:  # averages of values: none exceeds the largest
        unit = (scale + mean.abs() / LARGEST[FP8]).amax()
        scale, mean = scale / unit, mean / unit
    out = torch.empty_like(query, dtype=dtype)
    shares = scale.new_empty(batch, heads, num_regions, length)
    sizes = (ctypes.c_int(n) for n in (len(marks) - 1, num_regions, length, num_keys, heads))
    arguments = (
        key_map, value_map, query, scale, mean, out, ctypes.c_int(rounded),
        marks, shares, *sizes, ctypes.c_float(softmax_scale(width)),
    )  # fmt: skip
    grid = (triton.cdiv(length, ROWS * TILES["GROUPS"]), heads, batch)
    with torch.cuda.device(query.device):
        _kernel(query.device).launch(grid, 128 * (TILES["GROUPS"] + 1), arguments)
    if rounded:
        out = QuantisedRows(out.view(-1, columns), unit.expand(batch * length, 1).contiguous())
    return out, shares.mean(1) if num_regions else None
