"""Activations as trained models have them, and what rounding attention to fp8 as the Hopper kernel does makes of them.

Legend: B batch, L query tokens, M key tokens, N heads, E head width, D columns.
"""

import torch
from support.checks import draw

from wanvideo.ops.quantized import FP8, LARGEST

REFERENCE = 2.0**6  # what a row's largest weight is in fp8
# What rounding to e4m3 misses of a number, root mean square: steps are 2^-3 of the power of two below it, errors lie
# evenly in half a step to both sides, and the mean square of 1 / (fraction, evenly distributed from 1 to 2) is 1/2.
E4M3_ERROR = 2.0**-3 / 12**0.5 / 2**0.5


def with_offset(x, channels, size):
    """x [..., E] and in some of its columns a number that all tokens share, of that size, in either direction."""
    chosen = torch.randperm(x.shape[-1], generator=torch.Generator().manual_seed(5))[:channels].to(x.device)
    x = x.clone()
    x[..., chosen] += size * draw(channels, seed=5).sign().to(x)
    return x


def with_outliers(x, channels, factor):
    """x [..., D] with some columns so many times as large."""
    chosen = torch.randperm(x.shape[-1], generator=torch.Generator().manual_seed(6))[:channels].to(x.device)
    x = x.clone()
    x[..., chosen] *= factor
    return x


def to_fp8(x):
    return x.clamp(-LARGEST[FP8], LARGEST[FP8]).to(FP8)


def fp8_attention(query, key, value, needs_lse=False):
    """What `functions.hopper` computes of queries [B, L, N, E] and keys in fp8, rounded as its kernel rounds."""
    assert query.dtype == key.dtype == FP8
    scores = torch.einsum("blne,bmne->bnlm", query.float(), key.float()) * query.shape[-1] ** -0.5
    row_max = scores.amax(-1, keepdim=True)
    weights = to_fp8((scores - row_max).exp() * REFERENCE).float()
    mean = value.float().mean((0, 1))
    centered = value.float() - mean
    scale = centered.abs().amax((0, 1)) / LARGEST[FP8]
    sums = torch.einsum("bnlm,bmne->blne", weights, to_fp8(centered / scale).float())
    total = weights.sum(-1)
    out = sums / total.transpose(1, 2)[..., None] * scale + mean
    return out.to(value.dtype), (total / REFERENCE).log() + row_max[..., 0] if needs_lse else None
