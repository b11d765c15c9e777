"""What self-attention takes, made of the projections of the tokens that are computed here.

Legend: l own tokens, L tokens of all ranks, D width, N heads, E head width, P ranks.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..norm import key_shift, rms_norm_heads


class HeadNorm(NamedTuple):
    """How queries and keys are made of a projection: RMS norm over its whole width, as heads, rotated.

    weight: [D]. rope: [l, E/2, 2] float32, see ops.attention.rope.
    """

    weight: Tensor
    eps: float
    num_heads: int
    rope: Tensor

    def heads(
        self, projected: Tensor, dtype: torch.dtype | None, shift: Tensor | None = None, num_groups: int | None = None
    ) -> Tensor:
        """See `ops.norm.rms_norm_heads`."""
        return rms_norm_heads(
            projected, self.weight, self.eps, self.num_heads, self.rope, dtype, shift, num_groups
        )  # fmt: skip

    def shift(self, projected: Tensor, dtype: torch.dtype | None) -> Tensor | None:
        """See `ops.norm.key_shift`."""
        return key_shift(projected, self.weight, self.eps, self.num_heads, self.rope, dtype)


class Operands(Protocol):
    """Makers of a key, a value and a query, in this order, each as soon as its projection [l, D] is there.

    What `key` and `value` return may be on its way until `query` has returned. dtype: what queries and keys are best
    in, see `Backend.query_dtype`. All are [1, tokens, heads, E], of whichever tokens and heads the backend attends to.
    """

    def key(self, projected: Tensor, norm: HeadNorm, dtype: torch.dtype | None) -> Tensor: ...

    def value(self, projected: Tensor, num_heads: int) -> Tensor: ...

    def query(self, projected: Tensor, norm: HeadNorm, dtype: torch.dtype | None) -> Tensor: ...


class OwnOperands:
    """All tokens are here, and so are all heads."""

    def key(self, projected: Tensor, norm: HeadNorm, dtype: torch.dtype | None) -> Tensor:
        return norm.heads(projected, dtype, norm.shift(projected, dtype))[None]

    def value(self, projected: Tensor, num_heads: int) -> Tensor:
        return projected.unflatten(-1, (num_heads, -1))[None]

    def query(self, projected: Tensor, norm: HeadNorm, dtype: torch.dtype | None) -> Tensor:
        return norm.heads(projected, dtype)[None]
