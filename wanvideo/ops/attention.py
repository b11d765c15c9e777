"""Attention over [B, L, N, D] tensors: batch, tokens, heads, head width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Plain exact attention: query [B, L, N, D], key and value [B, M, N, D] -> [B, L, N, D]."""
    out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)
