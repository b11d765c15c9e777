"""How a transformer was before its LoRAs, exact to the bit, at little cost in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..protocols import WeightSource


class Originals:
    """Values of parameters without LoRAs.

    Matrices are read from the model's files again; all other parameters are kept in host memory, a few MB. Where the
    weights came from memory and not from files, matrices are kept too: as many bytes as those that LoRAs touch.

    Args: source: the files, or None.
    """

    def __init__(self, source: WeightSource | None) -> None:
        self.source = source
        self.kept: dict[str, Tensor] = {}
        self.checksums: dict[str, int] = {}  # of matrices that are read again, to know them

    @property
    def names(self) -> list[str]:
        """The parameters that LoRAs have changed."""
        return [*self.kept, *self.checksums]

    def value(self, model: nn.Module, name: str) -> Tensor:
        """A parameter's value without LoRAs, not to be written to. At the first time the parameter must have it.

        Raises: CheckpointError when the file it was read from has another value by now.
        """
        if name in self.kept:
            return self.kept[name]
        parameter, source = model.get_parameter(name), self.source
        if source is not None and name in self.checksums:
            value = source.dense(name, parameter.dtype)
            if _checksum(value) != self.checksums[name]:
                raise CheckpointError(
                    f"{source.name} has changed since it was loaded, so LoRAs cannot be taken out of {name} again. "
                    "Load the model again."
                )
            return value
        if parameter.dim() == 2 and source is not None and name in source and source.shape(name) == parameter.shape:
            self.checksums[name] = _checksum(parameter)
            return parameter.detach()
        self.kept[name] = parameter.detach().to("cpu", copy=True)
        return self.kept[name]

    def forget(self, name: str) -> None:
        """The parameter has its own value again."""
        self.kept.pop(name, None)
        self.checksums.pop(name, None)


def _checksum(tensor: Tensor) -> int:
    """A number that tells two versions of a matrix apart, the same on every device."""
    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    words = data[: data.numel() // 8 * 8].view(torch.int64)
    return int(words.sum()) + 31 * int(words[::7].sum())
