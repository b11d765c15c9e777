"""Activations in 8 bits: one scale a row.

Legend: L rows, D columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn  # the 8-bit floats that GPUs multiply
LARGEST = {FP8: 448.0, torch.int8: 127.0}
SMALLEST_AMAX = 1e-12  # a row of zeros still needs a scale that is not zero


class QuantizedRows(NamedTuple):
    """data [L, D] float8_e4m3fn or int8, scale [L, 1] float32: the tensor is data * scale."""

    data: Tensor
    scale: Tensor

    @classmethod
    def of_one_scale(cls, data: Tensor, scale: Tensor) -> QuantizedRows:
        """Rows that all have the same scale, a float32 number."""
        return cls(data, scale.expand(len(data), 1).contiguous())

    def dense(self, dtype: torch.dtype) -> Tensor:
        return (self.data.float() * self.scale).to(dtype)


def divided(values: Tensor, number: float) -> Tensor:
    """values / number to the same bit on every device: CUDA multiplies by the reciprocal of a plain number."""
    return values / torch.full((), number, dtype=values.dtype, device=values.device)
