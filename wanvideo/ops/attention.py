"""Attention over [B, L, N, D] tensors: batch, tokens, heads, head width."""

from __future__ import annotations

import torch
from torch import Tensor

from . import kernels
from .backends import BACKENDS, Backend
from .rope import label_rope, rotate

SDPA = BACKENDS["sdpa"]


def attend(query: Tensor, key: Tensor, value: Tensor, backend: Backend = SDPA) -> Tensor:
    """Full attention: query [B, L, N, D], key and value [B, M, N, D] -> [B, L, N, D]."""
    return backend.function(query, key, value)


def attend_few(query: Tensor, key: Tensor, value: Tensor, labels: Tensor | None = None) -> Tensor:
    """Exact attention where every group has its own few keys: query [G, L, N, D], key and value [G, M, N, D].

    labels: [G * L] float32 positions to which queries are turned first (see ops.rope.label_rope), or None.
    """
    if kernels.usable(query) and key.shape[1] <= kernels.attention_kernels().MOST_KEYS:
        return kernels.attention_kernels().few_keys(query.contiguous(), key.contiguous(), value.contiguous(), labels)
    if labels is not None:
        flat = query.flatten(0, 1)
        query = rotate(flat, label_rope(labels, flat.shape[-1])).view_as(query)
    return attend(query, key, value)


def region_attention(query: Tensor, key: Tensor, regions: Tensor) -> Tensor:
    """The share of its attention that each token pays to each region of a frame, averaged over heads: [R, L] float32.

    Args: query [L, N, D]; key [M, N, D], the frame's tokens; regions [R, M] of zeros and ones.
    """
    if kernels.usable(query):
        return kernels.attention_kernels().region_scores(query.contiguous(), key.contiguous(), regions)
    shares = regions.new_zeros(regions.shape[0], query.shape[0], dtype=torch.float32)
    scale = query.shape[-1] ** -0.5
    for head in range(query.shape[1]):
        weights = torch.softmax((query[:, head] @ key[:, head].T).float() * scale, -1)
        shares += regions.float() @ weights.T
    return shares / query.shape[1]
