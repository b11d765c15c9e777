"""The residual stream of a transformer, whose changes are added where it is read next.

Legend: L tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .norm import add_gated, add_layer_norm
from .quantized import QuantizedRows


class Residual:
    """Hidden states [L, D] and a change that has yet to be added: reading both for a norm adds them in the same pass.

    Args:
        hidden: written over.
        dtype: of the changes that will come. The first one is zeros behind a gate: compiled code is then the same for
            the first reader as for all others.
    """

    def __init__(self, hidden: Tensor, dtype: torch.dtype) -> None:
        self.hidden = hidden
        self._change: Tensor | None = torch.zeros_like(hidden, dtype=dtype)
        self._gate: Tensor | float = hidden.new_zeros(hidden.shape[1])

    def add(self, change: Tensor, gate: Tensor | float = 1.0) -> None:
        """Have gate * change added; change [L, D], gate [D] float32 or a number. The change before has been read."""
        self._change, self._gate = change, gate

    def norm(self, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor | QuantizedRows:
        """LN(hidden) * scale + shift for [D] vectors, in a dtype of ops.norm."""
        change, self._change = self._unread(), None
        self.hidden, normed = add_layer_norm(self.hidden, change, self._gate, scale, shift, eps, dtype)
        return normed

    def sum(self) -> Tensor:
        """The hidden states with the last change, at the end."""
        return add_gated(self.hidden, self._unread(), self._gate)

    def _unread(self) -> Tensor:
        assert self._change is not None, "nothing was added since the last norm"
        return self._change
