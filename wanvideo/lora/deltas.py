"""What a LoRA changes about one parameter, in the forms that files have; nothing is read before it is asked for.

Legend: N output features, K input features, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoints.reader import StoredTensor

Shape = tuple[int, ...]
Device = torch.device | str


def _read(stored: StoredTensor, device: Device) -> Tensor:
    """A tensor of its own in float32, contiguous whatever view was stored."""
    tensor = stored.read().to(device=device, dtype=torch.float32, copy=True).contiguous()
    stored.release()
    return tensor


@dataclass(frozen=True)
class LowRank:
    """scale * up @ down, with down [R, K], up [N, R]; of a convolution down has the kernel, up a kernel of 1."""

    down: StoredTensor
    up: StoredTensor
    scale: float
    target: Shape | None = None

    @property
    def shape(self) -> Shape:
        return self.target or (self.up.shape[0], *self.down.shape[1:])

    @property
    def rank(self) -> int | None:
        return self.down.shape[0]

    @property
    def kept_numbers(self) -> int:
        """How many numbers a branch keeps of it."""
        return _in_pair(self.down.shape[0], self.shape)

    def reshaped(self, shape: Shape) -> LowRank:
        return LowRank(self.down, self.up, self.scale, shape)

    def factors(self, device: Device) -> tuple[Tensor, Tensor]:
        """down [R, K] and up [N, R], the scale multiplied in, float32."""
        return _read(self.down, device).flatten(1), _read(self.up, device).flatten(1) * self.scale

    def dense(self, device: Device) -> Tensor:
        """The difference itself, float32, shaped as the parameter."""
        down, up = self.factors(device)
        return (up @ down).view(self.shape)


@dataclass(frozen=True)
class Full:
    """scale * difference."""

    difference: StoredTensor
    scale: float
    target: Shape | None = None

    @property
    def shape(self) -> Shape:
        return self.target or self.difference.shape

    @property
    def rank(self) -> int | None:
        return None

    @property
    def kept_numbers(self) -> int:
        """How many numbers a branch keeps of it."""
        return math.prod(self.shape)

    def reshaped(self, shape: Shape) -> Full:
        return Full(self.difference, self.scale, shape)

    def dense(self, device: Device) -> Tensor:
        return (_read(self.difference, device) * self.scale).view(self.shape)


@dataclass(frozen=True)
class Hadamard:
    """LoHa: scale * (first_up @ first_down) * (second_up @ second_down), element by element.

    Written as products of all pairs of columns and rows it is a pair of rank R * R, exactly.
    """

    first_up: StoredTensor
    first_down: StoredTensor
    second_up: StoredTensor
    second_down: StoredTensor
    scale: float
    target: Shape | None = None

    @property
    def shape(self) -> Shape:
        return self.target or (self.first_up.shape[0], *self.first_down.shape[1:])

    @property
    def rank(self) -> int | None:
        """The rank as a pair; None where the pair would be no smaller than the difference itself."""
        rank = self.first_down.shape[0] * self.second_down.shape[0]
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        return rank if rank * (rows + columns) < rows * columns else None

    @property
    def kept_numbers(self) -> int:
        """How many numbers a branch keeps of it."""
        return math.prod(self.shape) if self.rank is None else _in_pair(self.rank, self.shape)

    def reshaped(self, shape: Shape) -> Hadamard:
        parts = self.first_up, self.first_down, self.second_up, self.second_down
        return Hadamard(*parts, self.scale, shape)

    def factors(self, device: Device) -> tuple[Tensor, Tensor]:
        downs = [_read(part, device).flatten(1) for part in (self.first_down, self.second_down)]
        ups = [_read(part, device).flatten(1) for part in (self.first_up, self.second_up)]
        down = (downs[0][:, None] * downs[1][None]).flatten(0, 1)
        up = (ups[0][:, :, None] * ups[1][:, None]).flatten(1)
        return down, up * self.scale

    def dense(self, device: Device) -> Tensor:
        first = _read(self.first_up, device).flatten(1) @ _read(self.first_down, device).flatten(1)
        second = _read(self.second_up, device).flatten(1) @ _read(self.second_down, device).flatten(1)
        return (first * second * self.scale).view(self.shape)


@dataclass(frozen=True)
class Kronecker:
    """LoKr: scale * kron(first, second), each a matrix or a product of two."""

    first: tuple[StoredTensor, ...]
    second: tuple[StoredTensor, ...]
    scale: float
    target: Shape | None = None

    @property
    def shape(self) -> Shape:
        if self.target:
            return self.target
        rows = self.first[0].shape[0] * self.second[0].shape[0]
        columns = math.prod(self.first[-1].shape[1:]) * math.prod(self.second[-1].shape[1:])
        return rows, columns

    @property
    def rank(self) -> int | None:
        return None

    @property
    def kept_numbers(self) -> int:
        """How many numbers a branch keeps of it."""
        return sum(parts[0].shape[0] * math.prod(parts[-1].shape[1:]) for parts in (self.first, self.second))

    def reshaped(self, shape: Shape) -> Kronecker:
        return Kronecker(self.first, self.second, self.scale, shape)

    def pair(self, device: Device) -> tuple[Tensor, Tensor]:
        """The two factors, the scale multiplied into the first, float32."""
        first, second = (_product(parts, device) for parts in (self.first, self.second))
        return first * self.scale, second

    def dense(self, device: Device) -> Tensor:
        return torch.kron(*self.pair(device)).view(self.shape)


def _in_pair(rank: int, shape: Shape) -> int:
    return rank * (shape[0] + math.prod(shape[1:]))


def _product(parts: tuple[StoredTensor, ...], device: Device) -> Tensor:
    matrices = [_read(part, device).flatten(1) for part in parts]
    return matrices[0] @ matrices[1] if len(matrices) == 2 else matrices[0]


Delta = LowRank | Full | Hadamard | Kronecker


def is_finite(stored: StoredTensor) -> bool:
    """Whether all numbers of a tensor are finite; it is read for it, and let go."""
    value = stored.read()
    if value.dtype.itemsize == 1:  # 8-bit floats have no order
        value = value.float()
    # The smallest and the largest are NaN where any number is, and take a thirtieth of the time of looking at each.
    finite = not value.numel() or all(bound.isfinite().item() for bound in torch.aminmax(value))
    stored.release()
    return finite


def add_delta(value: Tensor, delta: Delta, strength: float) -> None:
    """value += strength * delta, in place and in float32; a pair is multiplied right into it."""
    if isinstance(delta, LowRank):
        down, up = delta.factors(value.device)
        value.flatten(1).addmm_(up, down, alpha=strength)
    else:
        value.add_(delta.dense(value.device).view_as(value), alpha=strength)
