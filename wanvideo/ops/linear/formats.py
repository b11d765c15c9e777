"""Storage formats of linear layers, as one table. A new format is one subclass of `Linear` and one row of `FORMATS`.

Legend: N output features, K input features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..quantized import FP8, LARGEST, SMALLEST_AMAX, divided
from ..row_blocks import row_blocks
from .fp4 import FP4Linear, quantize_fp4
from .gguf import LAYOUTS, GGUFLinear
from .layer import Linear, RowScaledLinear


@dataclass(frozen=True)
class Format:
    """How the weight of a linear layer can be stored.

    make: the empty layer from (K, N, bias). bits: that a weight takes. quantize: a weight [N, K] float to the layer's
    tensors by name, or None where the format is only read.
    """

    name: str
    make: Callable[[int, int, bool], Linear]
    bits: float
    quantize: Callable[[Tensor], dict[str, Tensor]] | None = None

    def empty(self, shape: tuple[int, ...], bias: bool = False) -> Linear:
        """A layer without memory for a weight of this shape."""
        with torch.device("meta"):
            return self.make(shape[1], shape[0], bias)

    def layer(self, shape: tuple[int, ...], tensors: dict[str, Tensor]) -> Linear:
        """A layer without bias around tensors that are there already."""
        layer = self.empty(shape)
        for name, tensor in tensors.items():
            if name in layer._parameters:
                setattr(layer, name, nn.Parameter(tensor, requires_grad=False))
            else:
                setattr(layer, name, tensor)
        return layer

    def parts(self, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """The tensors of a layer for a weight of this shape, on the meta device."""
        return dict(self.empty(shape).state_dict())


class SealedLinear(nn.Module):
    """A layer inside a model of another library, which would take the dtype of its `weight` for that of numbers."""

    weight = None

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def quantize_by_rows(weight: Tensor, storage: torch.dtype) -> dict[str, Tensor]:
    """weight [N, K] to 8 bits with one scale a row, a few rows at a time."""
    largest = LARGEST[storage]
    data = torch.empty(weight.shape, dtype=storage, device=weight.device)
    scale = torch.empty(weight.shape[0], 1, dtype=torch.float32, device=weight.device)
    num_rows, columns = weight.shape
    for start, stop in row_blocks(num_rows, columns, weight.device):
        rows = weight[start:stop].float()
        scale[start:stop] = divided(rows.abs().amax(1, keepdim=True).clamp_min(SMALLEST_AMAX), largest)
        rows = rows / scale[start:stop]
        rows = rows.round() if storage == torch.int8 else rows
        data[start:stop] = rows.clamp(-largest, largest).to(storage)
    return {"weight": data, "weight_scale": scale}


def _by_rows(name: str, storage: torch.dtype, can_quantize: bool = True) -> Format:
    quantize = partial(quantize_by_rows, storage=storage) if can_quantize else None
    return Format(name, partial(RowScaledLinear, storage=storage), 8.0, quantize)


FORMATS = {
    item.name: item
    for item in (
        _by_rows("fp8", FP8),
        _by_rows("fp8_e5m2", torch.float8_e5m2, can_quantize=False),
        _by_rows("int8", torch.int8),
        Format("fp4", FP4Linear, 4.5, quantize_fp4),
        *(
            Format(name, partial(GGUFLinear, layout=layout), 8 * layout.block_bytes / layout.block_size)
            for name, layout in LAYOUTS.items()
        ),
    )
}


def format_of(layer: Linear) -> str | None:
    """The name in FORMATS of how a layer's weight is stored; None for plain numbers."""
    if isinstance(layer, GGUFLinear):
        return next(name for name, layout in LAYOUTS.items() if layout is layer.layout)
    if isinstance(layer, RowScaledLinear):
        return {FP8: "fp8", torch.float8_e5m2: "fp8_e5m2", torch.int8: "int8"}[layer.weight.dtype]
    return "fp4" if isinstance(layer, FP4Linear) else None


def quantizer(name: str) -> Callable[[Tensor], dict[str, Tensor]]:
    """What brings a weight [N, K] into one of `QUANTIZERS`."""
    quantize = FORMATS[name].quantize
    if quantize is None:
        raise KeyError(f"{name} is only read")
    return quantize


QUANTIZERS = tuple(name for name, item in FORMATS.items() if item.quantize)
