"""Self-attention in fp8 for Hopper GPUs (`hopper_attention.cu`): its instructions, its values' layout, its launch."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantised import FP8, LARGEST, SMALLEST_PEAK
from . import cuda_driver, softmax_scale

WIDTH, ROWS, KEY_GROUP = 128, 64, 32
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
    products = {"score_product": TILES["KEYS"], "value_product": WIDTH, "total_product": 8}
    source = "".join(_product(name, columns) for name, columns in products.items())
    source += Path(__file__).with_name("hopper_attention.cu").read_text(encoding="utf-8")
    return cuda_driver.compile_source(source, ARCHITECTURE, TILES)


@cache
def _kernel(device: torch.device) -> cuda_driver.Kernel:
    tiles = 2 * TILES["STAGES"] * TILES["KEYS"] * WIDTH
    moved = TILES["GROUPS"] * ROWS * WIDTH * 4
    with torch.cuda.device(device):
        return cuda_driver.Kernel(compiled()[0], "fp8_attention", 1024 + tiles + 256 + moved)


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
def _turned(x, mean, factor, out, L, padded, N, D: tl.constexpr, BLOCK: tl.constexpr):
    """x [B, L, N, D] -> out [B, N, D, padded]: (x - mean) * factor, every 32 tokens in the order of `weigh`."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    place, columns = tl.arange(0, BLOCK), tl.arange(0, D)
    first = tl.program_id(0) * BLOCK
    token = first + place // 16 * 16 + place % 4 // 2 * 8 + place % 16 // 4 * 2 + place % 2
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


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query [B, L, N, 128] and key [B, M, N, 128] in fp8, value [B, M, N, 128] -> [B, L, N, 128] bf16.

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
    out = torch.empty_like(query, dtype=torch.bfloat16)
    grid = (triton.cdiv(length, ROWS * TILES["GROUPS"]), heads, batch)
    numbers = (ctypes.c_int(length), ctypes.c_int(num_keys), ctypes.c_int(heads), ctypes.c_float(softmax_scale(width)))
    arguments = (key_map, value_map, query, scale, mean, out, *numbers)
    with torch.cuda.device(query.device):
        _kernel(query.device).launch(grid, 128 * (TILES["GROUPS"] + 1), arguments)
    return out
