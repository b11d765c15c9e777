"""Row kernels: one program reads a row [D], does everything that is to be done to it, and writes it once.

A row is walked in chunks, more than once where a sum over the row comes first; only the first walk reaches beyond the
nearest cache. All arithmetic is float32. STORE chooses the format of the written row: 0 plain numbers, 1 fp8 e4m3,
2 int8, the last two with one scale a row. Conversion to fp8 saturates. The residual stream x of `add_gated` and
`add_layer_norm` is written over: it is as large as everything else that a block reads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantized import FP8, QuantizedRows

STORE = {FP8: 1, torch.int8: 2}
CHUNK = 1024
KEYS_TOGETHER = 4  # rows that one program of `key_mean` adds up


@triton.jit
def _scale_of(amax, out_scale, row, STORE: tl.constexpr):
    """Write a row's scale; what its values are to be multiplied by."""
    largest = 448.0 if STORE == 1 else 127.0
    amax = tl.maximum(amax, 1e-12)
    tl.store(out_scale + row, amax / largest)
    return largest / amax


@triton.jit
def _rounded(y, factor, STORE: tl.constexpr):
    if STORE != 0:
        y = y * factor
    if STORE == 2:
        y = tl.where(y >= 0, tl.floor(y + 0.5), tl.ceil(y - 0.5))
        y = tl.minimum(tl.maximum(y, -127.0), 127.0)
    return y


@triton.jit
def _store(out, out_scale, row, y, columns, mask, D, STORE: tl.constexpr):
    """A whole row at once."""
    factor = 1.0
    if STORE != 0:
        factor = _scale_of(tl.max(tl.where(mask, tl.abs(y), 0.0)), out_scale, row, STORE)
    tl.store(out + row * D + columns, _rounded(y, factor, STORE).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _layer_norm(
    x, y, gate, scale, shift, out, out_scale, D, eps, gate_value,
    ADD: tl.constexpr, GATED: tl.constexpr, STORE: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    total, squares = tl.zeros((CHUNK,), tl.float32), tl.zeros((CHUNK,), tl.float32)
    for chunk in tl.static_range(CHUNKS):
        columns = chunk * CHUNK + tl.arange(0, CHUNK)
        mask = columns < D
        value = tl.load(x + row * D + columns, mask=mask, other=0.0).to(tl.float32)
        if ADD:
            weight = tl.load(gate + columns, mask=mask, other=0.0) if GATED else gate_value
            value += tl.load(y + row * D + columns, mask=mask, other=0.0).to(tl.float32) * weight
            value = value.to(x.dtype.element_ty).to(tl.float32)
            tl.store(x + row * D + columns, value.to(x.dtype.element_ty), mask=mask)
        total += value
        squares += value * value
    if ADD:
        tl.debug_barrier()  # the sums are read again below, by whichever thread
    mean = tl.sum(total) / D
    inverse = tl.rsqrt(tl.maximum(tl.sum(squares) / D - mean * mean, 0.0) + eps)
    factor = 1.0
    if STORE != 0:
        amax = tl.zeros((CHUNK,), tl.float32)
        for chunk in tl.static_range(CHUNKS):
            columns = chunk * CHUNK + tl.arange(0, CHUNK)
            mask = columns < D
            value = tl.load(x + row * D + columns, mask=mask, other=0.0).to(tl.float32)
            normed = (value - mean) * inverse * tl.load(scale + columns, mask=mask, other=0.0)
            amax = tl.maximum(amax, tl.abs(normed + tl.load(shift + columns, mask=mask, other=0.0)))
        factor = _scale_of(tl.max(amax), out_scale, row, STORE)
    for chunk in tl.static_range(CHUNKS):
        columns = chunk * CHUNK + tl.arange(0, CHUNK)
        mask = columns < D
        value = tl.load(x + row * D + columns, mask=mask, other=0.0).to(tl.float32)
        normed = (value - mean) * inverse * tl.load(scale + columns, mask=mask, other=0.0)
        normed = normed + tl.load(shift + columns, mask=mask, other=0.0)
        tl.store(out + row * D + columns, _rounded(normed, factor, STORE).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _add_gated(x, y, gate, D, gate_value, GATED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < D
    weight = tl.load(gate + columns, mask=mask, other=0.0) if GATED else gate_value
    change = tl.load(y + row * D + columns, mask=mask, other=0.0).to(tl.float32) * weight
    value = tl.load(x + row * D + columns, mask=mask, other=0.0).to(tl.float32) + change
    tl.store(x + row * D + columns, value, mask=mask)


@triton.jit
def _widen(x, row_scale, out, D, BLOCK: tl.constexpr):
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < D
    value = tl.load(x + row * D + columns, mask=mask, other=0.0).to(tl.float32) * tl.load(row_scale + row)
    tl.store(out + row * D + columns, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _quantize(x, out, out_scale, D, STORE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < D
    value = tl.load(x + row * D + columns, mask=mask, other=0.0).to(tl.float32)
    _store(out, out_scale, row, value, columns, mask, D, STORE)


@triton.jit
def _rms_norm_heads(
    x, weight, table, shift, out, places, N, GROUP, L, eps,
    ROTATE: tl.constexpr, SHIFTED: tl.constexpr, PLACED: tl.constexpr, PAIRS: tl.constexpr, HEADS: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """Heads come in groups of GROUP, one group [L, GROUP, D] after another or, PLACED, each where `places` says."""
    D: tl.constexpr = 2 * PAIRS
    row = tl.program_id(0).to(tl.int64)
    column, pairs = tl.arange(0, D)[None, :], tl.arange(0, PAIRS)
    squares = tl.zeros((HEADS, D), tl.float32)
    for chunk in tl.static_range(CHUNKS):
        head = chunk * HEADS + tl.arange(0, HEADS)[:, None]
        value = tl.load(x + (row * N + head) * D + column, mask=head < N, other=0.0).to(tl.float32)
        squares += value * value
    inverse = tl.rsqrt(tl.sum(squares) / (N * D) + eps)
    if ROTATE:
        cos = tl.load(table + (row * PAIRS + pairs) * 2)[None, :]
        sin = tl.load(table + (row * PAIRS + pairs) * 2 + 1)[None, :]
    for chunk in tl.static_range(CHUNKS):
        head = chunk * HEADS + tl.arange(0, HEADS)[:, None]
        value = tl.load(x + (row * N + head) * D + column, mask=head < N, other=0.0).to(tl.float32)
        value *= inverse * tl.load(weight + head * D + column, mask=head < N, other=0.0).to(tl.float32)
        if ROTATE:
            even, odd = tl.split(tl.reshape(value, (HEADS, PAIRS, 2)))
            value = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (HEADS, D))
        if SHIFTED:
            value -= tl.load(shift + head * D + column, mask=head < N, other=0.0)
        if PLACED:
            first = tl.multiple_of(tl.load(places + head // GROUP, mask=head < N, other=0), [16, 16])
        else:
            first = (head // GROUP * L * GROUP * D).to(tl.int64)
        target = out + first + (row * GROUP + head % GROUP) * D + column
        tl.store(target, value.to(out.dtype.element_ty), mask=head < N)


@triton.jit
def _key_sums(
    x, weight, table, tokens, total, count, N, eps,
    ROTATE: tl.constexpr, PAIRS: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sums of ROWS of the rows of x that `tokens` names, each as `_rms_norm_heads` computes it: [programs, N, D]."""
    D: tl.constexpr = 2 * PAIRS
    head, column, pairs = tl.arange(0, HEADS)[:, None], tl.arange(0, D)[None, :], tl.arange(0, PAIRS)
    inside = head < N
    scale = tl.load(weight + head * D + column, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros((HEADS, D), tl.float32)
    for step in range(ROWS):
        place = tl.program_id(0) * ROWS + step
        row = tl.load(tokens + place, mask=place < count, other=0)
        value = tl.load(x + (row * N + head) * D + column, mask=inside & (place < count), other=0.0).to(tl.float32)
        value *= tl.rsqrt(tl.sum(value * value) / (N * D) + eps) * scale
        if ROTATE:
            cos = tl.load(table + (row * PAIRS + pairs) * 2)[None, :]
            sin = tl.load(table + (row * PAIRS + pairs) * 2 + 1)[None, :]
            even, odd = tl.split(tl.reshape(value, (HEADS, PAIRS, 2)))
            value = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (HEADS, D))
        sums += value
    tl.store(total + (tl.program_id(0) * N + head) * D + column, sums, mask=inside)


@triton.jit
def _gelu(x, out, out_scale, D, FAST: tl.constexpr, STORE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < D
    value = tl.load(x + row * D + columns, mask=mask, other=0.0).to(tl.float32)
    inner = value * (0.7978845608028654 + 0.035677408136300125 * value * value)
    if FAST:
        curve = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [inner], tl.float32, True, 1)
        value = 0.5 * value * (1.0 + curve)
    else:
        value = value * tl.sigmoid(2.0 * inner)
    _store(out, out_scale, row, value, columns, mask, D, STORE)


@triton.jit
def _pixel_norm_silu(x, gamma, out, pixels, C, root, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    pixel = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    mask = (pixel < pixels) & (channel < C)
    value = tl.load(x + pixel * C + channel, mask=mask, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(value * value, 1)), 1e-12)
    value = value * (root / length)[:, None]
    value *= tl.load(gamma + channel, mask=channel < C, other=0.0).to(tl.float32)
    tl.store(out + pixel * C + channel, (value * tl.sigmoid(value)).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _scale_products(products, row_scale, column_scale, bias, out, D, BIAS: tl.constexpr, BLOCK: tl.constexpr):
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < D
    value = tl.load(products + row * D + columns, mask=mask, other=0).to(tl.float32)
    value = value * tl.load(row_scale + row) * tl.load(column_scale + columns, mask=mask, other=0.0)
    if BIAS:
        value += tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * D + columns, value.to(out.dtype.element_ty), mask=mask)


def _blocks(width: int) -> dict[str, int]:
    """For kernels that hold a whole row."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(4, block // 1024))}


def _chunks(width: int) -> dict[str, int]:
    """For kernels that walk a row."""
    chunk = min(CHUNK, triton.next_power_of_2(width))
    return {"CHUNK": chunk, "CHUNKS": triton.cdiv(width, chunk), "num_warps": 4}


def _output(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    scale = x.new_empty(x.shape[0], 1, dtype=torch.float32) if dtype in STORE else None
    return torch.empty_like(x, dtype=dtype), scale


def _result(out: Tensor, scale: Tensor | None) -> Tensor | QuantizedRows:
    return out if scale is None else QuantizedRows(out, scale)


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor | QuantizedRows:
    out, out_scale = _output(x, dtype)
    rows, width = x.shape
    _layer_norm[(rows,)](
        x, x, scale, scale, shift, out, out_scale, width, eps, 1.0,
        ADD=False, GATED=False, STORE=STORE.get(dtype, 0), **_chunks(width),
    )  # fmt: skip
    return _result(out, out_scale)


def add_layer_norm(
    x: Tensor, y: Tensor, gate: Tensor | float, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor | QuantizedRows]:
    """x is written over and given back."""
    out, out_scale = _output(x, dtype)
    rows, width = x.shape
    gated = isinstance(gate, Tensor)
    _layer_norm[(rows,)](
        x, y, gate if gated else scale, scale, shift, out, out_scale, width, eps,
        1.0 if gated else float(gate), ADD=True, GATED=gated, STORE=STORE.get(dtype, 0), **_chunks(width),
    )  # fmt: skip
    return x, _result(out, out_scale)


def add_gated(x: Tensor, y: Tensor, gate: Tensor | float) -> Tensor:
    """x is written over and given back."""
    rows, width = x.shape
    gated = isinstance(gate, Tensor)
    _add_gated[(rows,)](x, y, gate if gated else x, width, 1.0 if gated else float(gate), GATED=gated, **_blocks(width))
    return x


def rms_norm_heads(
    x: Tensor, weight: Tensor, eps: float, num_heads: int, table: Tensor | None, dtype: torch.dtype | None,
    shift: Tensor | None = None, num_groups: int | None = None,
) -> Tensor:  # fmt: skip
    group = num_heads // (num_groups or 1)
    out = x.new_empty(num_heads // group, x.shape[0], group, x.shape[1] // num_heads, dtype=dtype or x.dtype)
    _norm_heads(x, weight, eps, num_heads, table, shift, out, None, group)
    return out[0] if num_groups is None else out


def put_normed_heads(
    x: Tensor, weight: Tensor, eps: float, num_heads: int, table: Tensor, shift: Tensor | None, out: Tensor,
    places: Tensor,
) -> None:  # fmt: skip
    """`rms_norm_heads` in groups, one for each of `places` [G] int64: where its [L, N/G, E] begin, in elements of out.

    Places may be in memory of other devices. They are multiples of 16.
    """
    _norm_heads(x, weight, eps, num_heads, table, shift, out, places, num_heads // len(places))


def _norm_heads(
    x: Tensor, weight: Tensor, eps: float, num_heads: int, table: Tensor | None, shift: Tensor | None, out: Tensor,
    places: Tensor | None, group: int,
) -> None:  # fmt: skip
    rows, width = x.shape
    head_width = width // num_heads
    heads = max(1, CHUNK // head_width)
    _rms_norm_heads[(rows,)](
        x, weight, x if table is None else table, x if shift is None else shift, out, x if places is None else places,
        num_heads, group, rows, eps,
        ROTATE=table is not None, SHIFTED=shift is not None, PLACED=places is not None,
        PAIRS=head_width // 2, HEADS=heads, CHUNKS=triton.cdiv(num_heads, heads), num_warps=4,
    )  # fmt: skip


def key_mean(x: Tensor, weight: Tensor, eps: float, num_heads: int, table: Tensor | None, tokens: Tensor) -> Tensor:
    """The mean [N, E] float32 over `tokens` [n] int64 of what `rms_norm_heads` makes of them."""
    count, head_width = len(tokens), x.shape[1] // num_heads
    programs = triton.cdiv(count, KEYS_TOGETHER)
    total = x.new_empty(programs, num_heads, head_width, dtype=torch.float32)
    _key_sums[(programs,)](
        x, weight, x if table is None else table, tokens, total, count, num_heads, eps,
        ROTATE=table is not None, PAIRS=head_width // 2, HEADS=triton.next_power_of_2(num_heads),
        ROWS=KEYS_TOGETHER, num_warps=8,
    )  # fmt: skip
    return total.sum(0).div_(count)


def gelu(x: Tensor, dtype: torch.dtype) -> Tensor | QuantizedRows:
    """Outside float32 the hyperbolic tangent is the hardware's, exact to 11 bits."""
    out, scale = _output(x, dtype)
    rows, width = x.shape
    _gelu[(rows,)](x, out, scale, width, FAST=x.dtype != torch.float32, STORE=STORE.get(dtype, 0), **_blocks(width))
    return _result(out, scale)


def quantize_rows(x: Tensor, dtype: torch.dtype) -> QuantizedRows:
    rows, width = x.shape
    out, scale = torch.empty_like(x, dtype=dtype), x.new_empty(rows, 1, dtype=torch.float32)
    _quantize[(rows,)](x, out, scale, width, STORE=STORE[dtype], **_blocks(width))
    return QuantizedRows(out, scale)


def widen_rows(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """8-bit x [N, K] times scale [N, 1] float32, in `dtype`."""
    out = torch.empty_like(x, dtype=dtype)
    rows, width = x.shape
    _widen[(rows, triton.cdiv(width, 4096))](x, scale, out, width, BLOCK=4096, num_warps=4)
    return out


def scale_products(
    products: Tensor, row_scale: Tensor, column_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """int32 products [L, N] times row_scale [L, 1] and column_scale [N, 1], plus bias [N], in `dtype`."""
    rows, width = products.shape
    out = torch.empty_like(products, dtype=dtype)
    _scale_products[(rows, triton.cdiv(width, 2048))](
        products, row_scale, column_scale, products if bias is None else bias, out, width,
        BIAS=bias is not None, BLOCK=2048, num_warps=4,
    )  # fmt: skip
    return out


def pixel_norm_silu(out: Tensor, x: Tensor, gamma: Tensor) -> None:
    """out = SiLU(x / |x| * sqrt(C) * gamma) for [1, C, T, H, W] whose pixels lie together in memory."""
    _, channels, frames, height, width = x.shape
    pixels, block = frames * height * width, triton.next_power_of_2(channels)
    rows = max(1, 4096 // block)
    _pixel_norm_silu[(triton.cdiv(pixels, rows),)](
        x, gamma, out, pixels, channels, channels**0.5, ROWS=rows, BLOCK=block, num_warps=4
    )
