"""Row kernels: one program reads a row [D] once, does everything that is to be done to it, and writes it once.

All arithmetic is float32. STORE chooses the format of the written row: 0 as the input, 1 fp8 e4m3, 2 int8, the last two
with one scale a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantised import LARGEST, QuantisedRows

STORE = {None: 0, torch.float8_e4m3fn: 1, torch.int8: 2}


@triton.jit
def _store(out, out_scale, row, y, columns, mask, D, STORE: tl.constexpr):
    if STORE == 0:
        tl.store(out + row * D + columns, y, mask=mask)
    else:
        largest = 448.0 if STORE == 1 else 127.0
        peak = tl.max(tl.where(mask, tl.abs(y), 0.0))
        scale = tl.maximum(peak, 1e-12) / largest
        tl.store(out_scale + row, scale)
        y = y / scale
        if STORE == 2:
            y = tl.where(y >= 0, tl.floor(y + 0.5), tl.ceil(y - 0.5))
        y = tl.minimum(tl.maximum(y, -largest), largest)
        tl.store(out + row * D + columns, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _layer_norm(
    x, y, gate, scale, shift, hidden, out, out_scale, D, eps, gate_value,
    ADD: tl.constexpr, GATED: tl.constexpr, STORE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < D
    value = tl.load(x + row * D + columns, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        change = tl.load(y + row * D + columns, mask=mask, other=0.0).to(tl.float32)
        if GATED:
            change *= tl.load(gate + columns, mask=mask, other=0.0)
        else:
            change *= gate_value
        rounded = (value + change).to(hidden.dtype.element_ty)
        tl.store(hidden + row * D + columns, rounded, mask=mask)
        value = rounded.to(tl.float32)
    mean = tl.sum(value) / D
    centred = tl.where(mask, value - mean, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred) / D + eps)
    factor = tl.load(scale + columns, mask=mask, other=0.0)
    normed = normed * factor + tl.load(shift + columns, mask=mask, other=0.0)
    _store(out, out_scale, row, normed, columns, mask, D, STORE)


@triton.jit
def _add_gated(x, y, gate, out, D, gate_value, GATED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < D
    change = tl.load(y + row * D + columns, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        change *= tl.load(gate + columns, mask=mask, other=0.0)
    else:
        change *= gate_value
    value = tl.load(x + row * D + columns, mask=mask, other=0.0).to(tl.float32) + change
    tl.store(out + row * D + columns, value, mask=mask)


@triton.jit
def _rms_norm_heads(
    x, weight, table, out, D, PAIRS: tl.constexpr, eps, ROTATE: tl.constexpr, FP8: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < D
    value = tl.load(x + row * D + columns, mask=mask, other=0.0).to(tl.float32)
    value = value * tl.rsqrt(tl.sum(value * value) / D + eps)
    value = value * tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    if ROTATE:
        even, odd = tl.split(tl.reshape(value, (BLOCK // 2, 2)))
        pair = tl.arange(0, BLOCK // 2) % PAIRS
        cos = tl.load(table + (row * PAIRS + pair) * 2)
        sin = tl.load(table + (row * PAIRS + pair) * 2 + 1)
        value = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK,))
    if FP8:
        value = tl.minimum(tl.maximum(value, -448.0), 448.0)
    tl.store(out + row * D + columns, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gelu(x, out, out_scale, D, STORE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < D
    value = tl.load(x + row * D + columns, mask=mask, other=0.0).to(tl.float32)
    inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
    value = value * tl.sigmoid(2.0 * inner)
    _store(out, out_scale, row, value, columns, mask, D, STORE)


@triton.jit
def _quantise(x, out, out_scale, D, STORE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < D
    value = tl.load(x + row * D + columns, mask=mask, other=0.0).to(tl.float32)
    _store(out, out_scale, row, value, columns, mask, D, STORE)


@triton.jit
def _scale_heads(x, factor, out, D, HEAD: tl.constexpr, largest, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < D
    value = tl.load(x + row * D + columns, mask=mask, other=0.0).to(tl.float32)
    value *= tl.load(factor + columns // HEAD, mask=mask, other=0.0)
    value = tl.minimum(tl.maximum(value, -largest), largest)
    tl.store(out + row * D + columns, value.to(out.dtype.element_ty), mask=mask)


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
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(4, block // 1024))}


def _output(x: Tensor, store: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
    scale = None if store is None else x.new_empty(x.shape[0], 1, dtype=torch.float32)
    return torch.empty_like(x, dtype=store or x.dtype), scale


def _result(out: Tensor, scale: Tensor | None) -> Tensor | QuantisedRows:
    return out if scale is None else QuantisedRows(out, scale)


def layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, store: torch.dtype | None
) -> Tensor | QuantisedRows:
    out, out_scale = _output(x, store)
    rows, width = x.shape
    _layer_norm[(rows,)](
        x, x, scale, scale, shift, x, out, out_scale, width, eps, 1.0,
        ADD=False, GATED=False, STORE=STORE[store], **_blocks(width),
    )  # fmt: skip
    return _result(out, out_scale)


def add_layer_norm(
    x: Tensor, y: Tensor, gate: Tensor | float, scale: Tensor, shift: Tensor, eps: float, store: torch.dtype | None
) -> tuple[Tensor, Tensor | QuantisedRows]:
    out, out_scale = _output(x, store)
    hidden = torch.empty_like(x)
    rows, width = x.shape
    gated = isinstance(gate, Tensor)
    _layer_norm[(rows,)](
        x, y, gate if gated else scale, scale, shift, hidden, out, out_scale, width, eps, 1.0 if gated else float(gate),
        ADD=True, GATED=gated, STORE=STORE[store], **_blocks(width),
    )  # fmt: skip
    return hidden, _result(out, out_scale)


def add_gated(x: Tensor, y: Tensor, gate: Tensor | float) -> Tensor:
    out = torch.empty_like(x)
    rows, width = x.shape
    gated = isinstance(gate, Tensor)
    _add_gated[(rows,)](
        x, y, gate if gated else x, out, width, 1.0 if gated else float(gate), GATED=gated, **_blocks(width)
    )
    return out


def rms_norm_heads(
    x: Tensor, weight: Tensor, eps: float, num_heads: int, table: Tensor | None, dtype: torch.dtype | None
) -> Tensor:
    rows, width = x.shape
    out = torch.empty_like(x, dtype=dtype or x.dtype)
    _rms_norm_heads[(rows,)](
        x, weight, x if table is None else table, out, width, width // num_heads // 2, eps,
        ROTATE=table is not None, FP8=dtype in LARGEST, **_blocks(width),
    )  # fmt: skip
    return out.unflatten(-1, (num_heads, -1))


def gelu(x: Tensor, store: torch.dtype | None) -> Tensor | QuantisedRows:
    out, scale = _output(x, store)
    _gelu[(x.shape[0],)](x, out, scale, x.shape[1], STORE=STORE[store], **_blocks(x.shape[1]))
    return _result(out, scale)


def quantise_rows(x: Tensor, store: torch.dtype) -> QuantisedRows:
    out, scale = _output(x, store)
    _quantise[(x.shape[0],)](x, out, scale, x.shape[1], STORE=STORE[store], **_blocks(x.shape[1]))
    return QuantisedRows(out, scale)


def scale_heads(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """x [1, L, N, D] (contiguous) times factor [1, N], clamped to the range of `dtype` and stored in it."""
    out = torch.empty_like(x, dtype=dtype)
    width = x.shape[2] * x.shape[3]
    _scale_heads[(x.shape[1],)](x, factor, out, width, x.shape[3], LARGEST[dtype], **_blocks(width))
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
