"""Normalization and what is done next to it, in one pass over memory where a kernel can do it.

Everything is computed in float32. Where a `dtype` is taken it is that of the result, made for the linear layer that
comes next: a float type, or an 8-bit one for `QuantizedRows`; None: as x. Scales, shifts and gates are [D] vectors.
Legend: L tokens, D width, N heads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .attention.rope import rotate
from .quantized import LARGEST, SMALLEST_AMAX, QuantizedRows

SAMPLED_KEYS = 1024  # tokens whose mean stands for that of all; it is off by 1/32 of their spread


def quantize_rows(x: Tensor, dtype: torch.dtype) -> QuantizedRows:
    """x [L, D] to `dtype` with the largest value of each row at the end of the range."""
    if kernels.usable(x):
        return kernels.row_kernels().quantize_rows(x.contiguous(), dtype)
    x, largest = x.float(), LARGEST[dtype]
    scale = x.abs().amax(-1, keepdim=True).clamp_min(SMALLEST_AMAX) / largest
    scaled = x / scale
    if dtype == torch.int8:
        scaled = scaled.round()
    return QuantizedRows(scaled.clamp(-largest, largest).to(dtype), scale)


def _stored(x: Tensor, dtype: torch.dtype) -> Tensor | QuantizedRows:
    return quantize_rows(x, dtype) if dtype in LARGEST else x.to(dtype)


@overload
def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor: ...
@overload
def layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype | None
) -> Tensor | QuantizedRows: ...
def layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype | None = None
) -> Tensor | QuantizedRows:
    """LN(x) * scale + shift for x [L, D]: an affine norm, or a modulated one with scale = 1 + s."""
    if kernels.usable(x):
        return kernels.row_kernels().layer_norm(x.contiguous(), scale.float(), shift.float(), eps, dtype or x.dtype)
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return _stored(torch.addcmul(shift.float(), normed, scale.float()), dtype or x.dtype)


def add_gated(x: Tensor, y: Tensor, gate: Tensor | float = 1.0) -> Tensor:
    """x + gate * y for x and y [L, D], in the dtype of x, which may be written over."""
    gate = gate.float() if isinstance(gate, Tensor) else gate
    if kernels.usable(x):
        return kernels.row_kernels().add_gated(x.contiguous(), y.contiguous(), gate)
    return (x.float() + y.float() * gate).to(x.dtype)


def add_layer_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor | float,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | QuantizedRows]:
    """The residual step between two layers: (x + gate * y, LN of that * scale + shift). x may be written over."""
    if kernels.usable(x):
        gate = gate.float() if isinstance(gate, Tensor) else gate
        args = x.contiguous(), y.contiguous(), gate, scale.float(), shift.float(), eps, dtype or x.dtype
        return kernels.row_kernels().add_layer_norm(*args)
    x = add_gated(x, y, gate)
    return x, layer_norm(x, scale, shift, eps, dtype)


def rms_norm_heads(
    x: Tensor,
    weight: Tensor,
    eps: float,
    num_heads: int,
    table: Tensor | None = None,
    dtype: torch.dtype | None = None,
    shift: Tensor | None = None,
    num_groups: int | None = None,
) -> Tensor:
    """RMS norm of x [L, D] over its whole width, as heads [L, N, D/N], rotated by a rotary table if one is given.

    dtype: of the result; float8_e4m3fn for attention in 8 bits comes plain, since normed values need no scale.
    shift: [N, D/N] float32 that all rows lose before they are rounded, see `key_shift`.
    num_groups: of heads, which then come one after another: [G, L, N/G, D/N].
    """
    if kernels.usable(x):
        return kernels.row_kernels().rms_norm_heads(
            x.contiguous(), weight, eps, num_heads, table, dtype, shift, num_groups
        )
    normed = x.float()
    normed = normed * torch.rsqrt(normed.square().mean(-1, keepdim=True) + eps) * weight.float()
    heads = normed.unflatten(-1, (num_heads, -1))
    heads = heads if table is None else rotate(heads, table)
    heads = heads if shift is None else heads - shift
    if num_groups is not None:
        heads = heads.unflatten(1, (num_groups, -1)).transpose(0, 1)
    if dtype in LARGEST:
        heads = heads.clamp(-LARGEST[dtype], LARGEST[dtype])
    return heads.to(dtype or x.dtype)


def rms_norm_keys(
    x: Tensor,
    weight: Tensor,
    eps: float,
    num_heads: int,
    table: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`rms_norm_heads` of keys x [M, D] that no other rank's join; in 8 bits without their `key_shift`."""
    return rms_norm_heads(x, weight, eps, num_heads, table, dtype, key_shift(x, weight, eps, num_heads, table, dtype))


def key_shift(
    x: Tensor, weight: Tensor, eps: float, num_heads: int, table: Tensor | None, dtype: torch.dtype | None
) -> Tensor | None:
    """What keys x [M, D] lose before they are rounded to 8 bits; None where `dtype` is none of 8 bits.

    Softmax over keys that all lose one vector is that over the keys themselves, whatever the vector is: a query's
    scores all change by the same number (which their log-sum-exp lacks, see `attention.lse.of_shifted_keys`). 8 bits
    round relative to what is left, and keys of trained models have large common offsets in some channels.
    It is the mean of rotated keys: an offset in pairs that rotate fast is none that keys have in common.
    Returns: [N, D/N] float32, the mean of what `rms_norm_heads` makes of the `sampled_tokens`. Keys that meet in one
    softmax need the same one, see `attention.operands`.
    """
    if dtype not in LARGEST:
        return None
    if kernels.usable(x):
        tokens = _tokens_on(x.shape[0], x.device)
        return kernels.row_kernels().key_mean(x.contiguous(), weight, eps, num_heads, table, tokens)
    tokens = sampled_tokens(x.shape[0], x.device)
    table = None if table is None else table[tokens]
    return rms_norm_heads(x[tokens], weight, eps, num_heads, table, torch.float32).mean(0)


def sampled_tokens(length: int, device: torch.device) -> Tensor:
    """Indices [n] int64 of SAMPLED_KEYS or a few more of so many tokens, ascending; all of them where they are few.

    One lies in each of equal stretches, somewhere in it, so that no row or column of the picture is preferred.
    """
    stretch = max(1, length // SAMPLED_KEYS)
    index = torch.arange(length // stretch, device=device)
    return index * stretch + index * 40503 % 2**16 * stretch // 2**16  # multiples of the golden ratio, modulo 1


_tokens_on = lru_cache(maxsize=32)(sampled_tokens)


def gelu(x: Tensor, dtype: torch.dtype | None = None) -> Tensor | QuantizedRows:
    """GELU in its tanh form for x [L, D]."""
    if kernels.usable(x):
        return kernels.row_kernels().gelu(x.contiguous(), dtype or x.dtype)
    return _stored(F.gelu(x.float(), approximate="tanh"), dtype or x.dtype)
