"""Normalisation and what is done next to it, in one pass over memory where a kernel can do it.

Everything is computed in float32 and returned in the dtype of x, or, where `store` names one, as 8-bit rows for the
linear layer that comes next. Scales, shifts and gates are [D] vectors. Legend: L tokens, D width, N heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .quantised import LARGEST, QuantisedRows, quantise_rows
from .rope import rotate


def _stored(x: Tensor, dtype: torch.dtype, store: torch.dtype | None) -> Tensor | QuantisedRows:
    return x.to(dtype) if store is None else quantise_rows(x, store)


def layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, store: torch.dtype | None = None
) -> Tensor | QuantisedRows:
    """LN(x) * scale + shift for x [L, D]: an affine norm, or a modulated one with scale = 1 + s."""
    if kernels.usable(x):
        return kernels.row_kernels().layer_norm(x.contiguous(), scale.float(), shift.float(), eps, store)
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return _stored(torch.addcmul(shift.float(), normed, scale.float()), x.dtype, store)


def add_gated(x: Tensor, y: Tensor, gate: Tensor | float = 1.0) -> Tensor:
    """x + gate * y for x and y [L, D]."""
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
    store: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | QuantisedRows]:
    """The residual step between two layers: (x + gate * y, LN of that * scale + shift)."""
    if kernels.usable(x):
        gate = gate.float() if isinstance(gate, Tensor) else gate
        args = x.contiguous(), y.contiguous(), gate, scale.float(), shift.float(), eps, store
        return kernels.row_kernels().add_layer_norm(*args)
    x = add_gated(x, y, gate)
    return x, layer_norm(x, scale, shift, eps, store)


def rms_norm_heads(
    x: Tensor,
    weight: Tensor,
    eps: float,
    num_heads: int,
    table: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """RMS norm of x [L, D] over its whole width, as heads [L, N, D/N], turned by a rotary table if one is given.

    dtype: of the result; float8_e4m3fn for attention in 8 bits (normed values need no scale), None: as x.
    """
    if kernels.usable(x):
        return kernels.row_kernels().rms_norm_heads(x.contiguous(), weight, eps, num_heads, table, dtype)
    normed = x.float()
    normed = normed * torch.rsqrt(normed.square().mean(-1, keepdim=True) + eps) * weight.float()
    heads = normed.unflatten(-1, (num_heads, -1))
    heads = heads if table is None else rotate(heads, table)
    largest = LARGEST.get(dtype)
    return heads.to(x.dtype) if dtype is None else heads.clamp(-largest, largest).to(dtype)


def gelu(x: Tensor, store: torch.dtype | None = None) -> Tensor | QuantisedRows:
    """GELU in its tanh form for x [L, D]."""
    if kernels.usable(x):
        return kernels.row_kernels().gelu(x.contiguous(), store)
    if store is None:
        return F.gelu(x, approximate="tanh")
    return quantise_rows(F.gelu(x.float(), approximate="tanh"), store)
