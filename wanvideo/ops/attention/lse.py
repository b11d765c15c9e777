"""The log-sum-exp of attention: exact attention that gives it out, and the merge of attention to parts of the keys.

Legend: B batch, L query tokens, M key tokens, N heads, E head width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MAX_SCORES = 2**24  # scores that `eager_attention` holds at a time


def eager_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Exact attention in float32, a few rows of scores at a time: the reference of every backend.

    Args: query [B, L, N, E], key and value [B, M, N, E].
    Returns: [B, L, N, E] in the dtype of value, and the log-sum-exp [B, N, L] float32, a natural logarithm.
    """
    batch, length, heads, width = query.shape
    keys = key.permute(0, 2, 3, 1).float()
    values = value.transpose(1, 2).float()
    out = value.new_empty(batch, length, heads, value.shape[-1])
    lse = query.new_empty(batch, heads, length, dtype=torch.float32)
    rows = max(1, MAX_SCORES // (batch * heads * key.shape[1]))
    for start in range(0, length, rows):
        part = slice(start, start + rows)
        scores = query[:, part].transpose(1, 2).float() * width**-0.5 @ keys
        lse[:, :, part] = scores.logsumexp(-1)
        out[:, part] = (scores.softmax(-1) @ values).transpose(1, 2).to(out.dtype)
    return out, lse


def merge(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Attention to all keys, from attention of the same queries to parts of them: exact, whatever the parts' sizes.

    Args: parts: pairs of out [B, L, N, E] and its log-sum-exp [B, N, L] float32, asked for one by one and not kept.
    Returns: such a pair for all keys; sums are float32, out has the first part's dtype.
    Raises: ValueError without a part.
    Source: out = sum_i exp(lse_i - lse) out_i with lse = log sum_i exp(lse_i), as in ring attention.
    """
    remaining = iter(parts)
    first = next(remaining, None)
    if first is None:
        raise ValueError("there is no part of an attention to merge")
    dtype, total, lse = first[0].dtype, first[0].float(), first[1]
    del first
    for out, part_lse in remaining:
        merged = torch.logaddexp(lse, part_lse)
        total = total * _weight(lse, merged) + out * _weight(part_lse, merged)
        lse = merged
    return total.to(dtype), lse


def of_shifted_keys(lse: Tensor, query: Tensor, shift: Tensor) -> Tensor:
    """The log-sum-exp of keys, from that of the same keys less a shift [N, E].

    Args: lse [B, N, L] float32; query [B, L, N, E], where it was rounded for the attention, as it was before.
    """
    scores = torch.einsum("blne,ne->bnl", query.float(), shift.float())
    return lse + scores * query.shape[-1] ** -0.5


def _weight(part_lse: Tensor, lse: Tensor) -> Tensor:
    """A part's share of the softmax's denominator: [B, N, L] -> [B, L, N, 1]."""
    return (part_lse - lse).exp().transpose(1, 2)[..., None]
