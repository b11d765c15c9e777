"""The VAE's normalization: every pixel's channels to unit length, scaled, through SiLU.

Legend: C channels, T frames, H W rows and columns.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from . import kernels


def pixel_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """x [N, C, ...] / its length over C * sqrt(C) * gamma [C, 1, ...]."""
    return F.normalize(x.float(), dim=1).mul_(x.shape[1] ** 0.5).mul_(gamma.float()).to(x.dtype)


def pixel_norm_silu_(out: Tensor, x: Tensor, gamma: Tensor) -> None:
    """Write SiLU(pixel_norm(x)) into `out`; both [1, C, T, H, W], channels last."""
    if kernels.usable(x) and _is_dense(x) and _is_dense(out):
        kernels.row_kernels().pixel_norm_silu(out, x, gamma)
    else:
        out.copy_(F.silu(pixel_norm(x, gamma), inplace=True))


def _is_dense(x: Tensor) -> bool:
    """Whether pixels lie one after another in memory, each with its channels together."""
    _, channels, _, height, width = x.shape
    return x.stride()[1:] == (1, height * width * channels, width * channels, channels)
