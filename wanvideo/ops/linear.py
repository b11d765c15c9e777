"""Linear layers. How a weight is stored is the layer's own business; the models only see y = x W^T + b."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .quantised import QuantisedRows


class Linear(nn.Linear):
    """The dense storage format, and the base of the others: float32, bf16 or fp16, as the checkpoint or caller has it.

    input_format: the 8-bit dtype in which the layer takes its rows fastest, or None for plain tensors. Every format
    accepts both plain tensors and `QuantisedRows`.
    """

    input_format: torch.dtype | None = None

    def reset_parameters(self) -> None:
        """Weights always come from a checkpoint."""

    def forward(self, x: Tensor | QuantisedRows) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        return super().forward(x.dense(self.weight.dtype) if isinstance(x, QuantisedRows) else x)
