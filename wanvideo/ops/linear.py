"""Linear layers. How a weight is stored is the layer's own business; the models only see y = x W^T + b."""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """The dense storage format, and the base of the others: float32, bf16 or fp16, as the checkpoint or caller has it."""

    def reset_parameters(self) -> None:
        """Weights always come from a checkpoint."""
