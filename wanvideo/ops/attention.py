"""Attention over [B, L, N, D] tensors: batch, tokens, heads, head width."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .backends import BACKENDS, Backend
from .compiled import opaque
from .rope import label_rope, rotate

SDPA = BACKENDS["sdpa"]
FOLDED_ROWS = 512  # with fewer tokens a group, folding costs more than it saves


@opaque
def attend(query: Tensor, key: Tensor, value: Tensor, backend: Backend = SDPA) -> Tensor:
    """Full attention: query [B, L, N, D], key and value [B, M, N, D] -> [B, L, N, D]."""
    return backend.function(query, key, value)


@opaque
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


@opaque
def can_fold(hidden: Tensor, key: Tensor) -> bool:
    """Whether `attend_folded` is the faster way for hidden [G * L, D] and key [G, M, N, D/N]."""
    num_keys, heads = key.shape[1:3]
    if not (kernels.usable(hidden) and key.dtype in (torch.bfloat16, torch.float16)):
        return False
    enough = hidden.shape[0] >= FOLDED_ROWS * key.shape[0] and 2 * heads * num_keys <= hidden.shape[1]
    fits = kernels.has_copy_engine(hidden.device) and kernels.folded_kernels().fits(heads, num_keys, hidden.shape[1])
    return enough and fits


@opaque
def attend_folded(
    hidden: Tensor, key: Tensor, value: Tensor, query: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor]
) -> Tensor:
    """Exact attention of hidden [G, L, D] to its group's few keys, projections included: -> [G, L, D].

    Args: key, value [G, M, N, D/N]; query, out: weight [D, D] and bias [D] of the projections before and after.
    Source: q . k = x . (Wq^T k) and Wo (sum w v) = sum w (Wo v): with N * M < D the right sides are less work.
    """
    heads, head_width = key.shape[2:]
    width = hidden.shape[2]
    scaled = (_by_head(key).float() * (head_width**-0.5 / math.log(2))).to(hidden.dtype)
    folded = torch.bmm(scaled, query[0].view(heads, head_width, width))
    bias = (scaled.float() * query[1].view(heads, 1, head_width).float()).sum(-1)
    weights = kernels.folded_kernels().folded_weights(hidden, folded, bias)
    folded = torch.bmm(_by_head(value), out[0].view(width, heads, head_width).permute(1, 2, 0))
    return kernels.folded_kernels().folded_sum(weights, folded, out[1])


def _by_head(x: Tensor) -> Tensor:
    """[G, M, N, D] -> [N, G * M, D]."""
    return x.permute(2, 0, 1, 3).flatten(1, 2)


def attend_two(
    query: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor] | None, copies: int = 1
) -> Tensor:
    """The sum of exact attention to two short sets of keys and values: query [L, N, D], the others [M, N, D].

    copies: how many times the first set's last key and value stand there; their weights are counted, not repeated.
    """
    bias = math.log(copies)
    if kernels.usable(query):
        pairs = [None if pair is None else tuple(x.contiguous() for x in pair) for pair in (first, second)]
        return kernels.attention_kernels().two_sets(query.contiguous(), *pairs, bias)
    heads_first = query.transpose(0, 1)
    biases = query.new_zeros(1, first[0].shape[0])
    biases[:, -1] = bias
    out = F.scaled_dot_product_attention(heads_first, *(x.transpose(0, 1) for x in first), attn_mask=biases)
    if second is not None:
        out = out + F.scaled_dot_product_attention(heads_first, *(x.transpose(0, 1) for x in second))
    return out.transpose(0, 1)


@opaque
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
