"""Attention over [B, L, N, D] tensors: batch, tokens, heads, head width."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import kernels
from ..compiled import opaque
from ..quantized import FP8, LARGEST, SMALLEST_PEAK, QuantisedRows
from .backends import BACKENDS, Backend
from .rope import label_rope, rotate

SDPA = BACKENDS["sdpa"]


@opaque
def attend(query: Tensor, key: Tensor, value: Tensor, backend: Backend = SDPA) -> Tensor:
    """Full attention: query [B, L, N, D], key and value [B, M, N, D] -> [B, L, N, D]."""
    return backend.function(query, key, value)


@opaque
def self_attention(
    query: Tensor, key: Tensor, value: Tensor, regions: Tensor | None, backend: Backend, dtype: torch.dtype
) -> tuple[Tensor | QuantisedRows, Tensor | None]:
    """Query, key and value [1, L, N, D] -> rows [L, N * D], and what `region_attention` says of the first tokens.

    regions [R, tokens of the first frame] or None. dtype: what the rows are best given in, see `Linear.input_dtype`.
    """
    if backend.rows is None:
        rows, shares = backend.function(query, key, value)[0].flatten(1), None
    else:
        rows, shares = backend.rows(query, key, value, regions, dtype)
    if regions is not None and shares is None:
        shares = region_attention(query[0], key[0, : regions.shape[1]], regions)
    return rows, shares


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


def attend_two(
    query: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor] | None, copies: int = 1,
    limit: Tensor | None = None, dtype: torch.dtype | None = None,
) -> Tensor | QuantisedRows:  # fmt: skip
    """The sum of exact attention to two short sets of keys and values: query [L, N, D], the others [M, N, D].

    Queries and keys may be fp8 on a GPU; the result are rows [L, N * D] in the dtype of the values, or in fp8.

    copies: how many times the first set's last key and value stand there; their weights are counted, not repeated.
    dtype: what the rows are best given in, see `Linear.input_dtype`; fp8 needs a limit that none of them exceeds.
    """
    bias = math.log(copies)
    unit = (limit / LARGEST[FP8]).clamp_min(SMALLEST_PEAK) if dtype == FP8 else None
    if kernels.usable(query):
        pairs = [None if pair is None else tuple(x.contiguous() for x in pair) for pair in (first, second)]
        rows = kernels.attention_kernels().two_sets(query.contiguous(), *pairs, bias, unit)
    else:
        heads_first = query.transpose(0, 1)
        biases = query.new_zeros(1, first[0].shape[0])
        biases[:, -1] = bias
        out = F.scaled_dot_product_attention(heads_first, *(x.transpose(0, 1) for x in first), attn_mask=biases)
        if second is not None:
            out = out + F.scaled_dot_product_attention(heads_first, *(x.transpose(0, 1) for x in second))
        rows = out.transpose(0, 1).flatten(1)
        rows = rows if unit is None else (rows / unit).to(FP8)
    return rows if unit is None else QuantisedRows.of_unit(rows, unit)


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
