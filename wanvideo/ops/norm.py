"""Normalisation and what is done next to it, so that a kernel can do both in one pass.

Every function computes in float32 and returns the dtype it was given. Scales, shifts and gates are [D] vectors.
Legend: L tokens, D width, N heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .rope import rotate


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LN(x) * scale + shift for x [L, D]: an affine norm, or a modulated one with scale = 1 + s."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return torch.addcmul(shift.float(), normed, scale.float()).to(x.dtype)


def add_gated(x: Tensor, y: Tensor, gate: Tensor | float = 1.0) -> Tensor:
    """x + gate * y."""
    gate = gate.float() if isinstance(gate, Tensor) else gate
    return (x.float() + y.float() * gate).to(x.dtype)


def add_layer_norm(
    x: Tensor, y: Tensor, gate: Tensor | float, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The residual step between two layers: (x + gate * y, LN of that * scale + shift)."""
    x = add_gated(x, y, gate)
    return x, layer_norm(x, scale, shift, eps)


def rms_norm_heads(x: Tensor, weight: Tensor, eps: float, num_heads: int, table: Tensor | None = None) -> Tensor:
    """RMS norm of x [L, D] over its whole width, cut into heads [L, N, D/N] and turned by a rotary table if given."""
    normed = x.float()
    normed = normed * torch.rsqrt(normed.square().mean(-1, keepdim=True) + eps)
    heads = (normed.to(x.dtype) * weight.to(x.dtype)).unflatten(-1, (num_heads, -1))
    return heads if table is None else rotate(heads, table)
