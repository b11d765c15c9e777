"""Attention of the transformer: which kernel runs, and the eager reference where none can.

Legend: B batch, G groups, L query tokens, M key tokens, K keys of a frame, N heads, E head width, R regions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import kernels
from ..compiled import compile_disabled
from ..quantized import FP8, LARGEST, SMALLEST_AMAX, QuantizedRows
from .backends import BACKENDS, Backend
from .regions import FrameRegions, RegionShares
from .rope import label_rope, rotate

SDPA = BACKENDS["sdpa"]


@compile_disabled
def attend(query: Tensor, key: Tensor, value: Tensor, backend: Backend = SDPA) -> Tensor:
    """Full attention: query [B, L, N, E], key and value [B, M, N, E] -> [B, L, N, E]."""
    return backend.attend(query, key, value)


@compile_disabled
def self_attention(
    query: Tensor, key: Tensor, value: Tensor, regions: FrameRegions | None, backend: Backend, dtype: torch.dtype
) -> tuple[Tensor | QuantizedRows, RegionShares | None]:
    """Query [1, L, N, E], key and value [1, M, N, E] -> rows [L, N * E], and the shares of `region_attention`.

    Tokens may come in any order, see `Backend`. dtype: what the rows are best given in, see `Linear.input_dtype`.
    """
    rows: Tensor | QuantizedRows
    shares: RegionShares | None = None
    if backend.rows is None:
        rows = backend.attend(query, key, value)[0].flatten(1)
    else:
        rows, shares = backend.rows(query, key, value, regions, dtype)
    if regions is not None and shares is None:
        shares = RegionShares.of_all(region_attention(query[0], key[0], regions))
    return rows, shares


@compile_disabled
def grouped_attention(query: Tensor, key: Tensor, value: Tensor, labels: Tensor | None = None) -> Tensor:
    """Exact attention where every group has its own few keys: query [G, L, N, E], key and value [G, M, N, E].

    labels: [G * L] float32 positions to which queries are rotated first (see ops.rope.label_rope), or None.
    """
    if kernels.usable(query) and key.shape[1] <= kernels.attention_kernels().MAX_KEYS:
        return kernels.attention_kernels().grouped_attention(
            query.contiguous(), key.contiguous(), value.contiguous(), labels
        )
    if labels is not None:
        flat = query.flatten(0, 1)
        query = rotate(flat, label_rope(labels, flat.shape[-1])).view_as(query)
    return attend(query, key, value)


def dual_context_attention(
    query: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor] | None, pad_count: int = 1,
    value_bound: Tensor | None = None, dtype: torch.dtype | None = None,
) -> Tensor | QuantizedRows:  # fmt: skip
    """The sum of exact attention to two short sets of keys and values: query [L, N, E], the others [M, N, E].

    Queries and keys may be fp8 on a GPU; the result are rows [L, N * E] in the dtype of the values, or in fp8.

    pad_count: how many times the first set's last key and value stand there; their weights are counted, not repeated.
    dtype: what the rows are best given in, see `Linear.input_dtype`; fp8 needs a value_bound that none of them exceeds.
    """
    bias = math.log(pad_count)
    scale = None
    if dtype == FP8:
        assert value_bound is not None, "rows in fp8 need a bound of the values"
        scale = value_bound.div(LARGEST[FP8]).clamp_min(SMALLEST_AMAX)
    if kernels.usable(query):
        pairs = [None if pair is None else tuple(x.contiguous() for x in pair) for pair in (first, second)]
        rows = kernels.attention_kernels().dual_context_attention(query.contiguous(), *pairs, bias, scale)
    else:
        biases = query.new_zeros(1, first[0].shape[0])
        biases[:, -1] = bias
        out = _eager(query, *first, biases)
        if second is not None:
            out = out + _eager(query, *second, None)
        rows = out.transpose(0, 1).flatten(1)
        rows = rows if scale is None else (rows / scale).to(FP8)
    return rows if scale is None else QuantizedRows.of_one_scale(rows, scale)


def _eager(query: Tensor, key: Tensor, value: Tensor, biases: Tensor | None) -> Tensor:
    """[L, N, E], [M, N, E] twice and [1, M] -> [N, L, E]."""
    return F.scaled_dot_product_attention(query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), biases)


@compile_disabled
def region_attention(query: Tensor, key: Tensor, regions: FrameRegions) -> Tensor:
    """Of each token's attention to a frame, the share that each region of it gets, averaged over heads: [R, L] float32.

    Args: query [L, N, E]; key [M, N, E], the frame's keys among them where `regions` says.
    """
    key, members = regions.keys_of_frame(key), regions.members
    if kernels.usable(query):
        return kernels.attention_kernels().region_shares(query.contiguous(), key.contiguous(), members)
    shares = members.new_zeros(members.shape[0], query.shape[0], dtype=torch.float32)
    scale = query.shape[-1] ** -0.5
    for head in range(query.shape[1]):
        weights = torch.softmax((query[:, head] @ key[:, head].T).float() * scale, -1)
        shares += members.float() @ weights.T
    return shares / query.shape[1]
