"""How a LoRA is to be used, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..checkpoints.reader import TensorSource
from ..errors import InputError
from ..ops.linear.low_rank import Strengths
from .file import LoraSource, stamp_of


@dataclass(frozen=True)
class LoraUse:
    """A LoRA and how it is used.

    Args:
        file: path, state dict or source; one that is open already (`open_lora`) is not opened again.
        strength: factor of its differences; a tuple has one for each step, and the last one stands for all later steps.
        blocks: numbers of the blocks that it may change; None: all. What lies outside the blocks is always changed.
        skip_layers: parts of names; what has one of them in its name is left as it is.
        merge: False: nothing is merged into matrices. Otherwise they are merged where they are dense and the strength
            is one number.
    """

    file: str | Path | Mapping[str, Tensor] | TensorSource
    strength: float | tuple[float, ...] = 1.0
    blocks: frozenset[int] | None = None
    skip_layers: tuple[str, ...] = ()
    merge: bool = True

    def __post_init__(self) -> None:
        given = self.strength if isinstance(self.strength, tuple) else (self.strength,)
        if not given or not all(isinstance(value, int | float) and math.isfinite(value) for value in given):
            raise InputError(f"A LoRA's strength is {self.strength!r}. Give a number, or one number for each step.")

    @property
    def strengths(self) -> Strengths:
        """The strength by step, in one entry where it is always the same."""
        given = self.strength if isinstance(self.strength, tuple) else (self.strength,)
        return given if len(set(given)) > 1 else given[:1]

    def changes(self, name: str) -> bool:
        """Whether the filters let a parameter through."""
        parts = name.split(".")
        inside = parts[0] != "blocks" or self.blocks is None or int(parts[1]) in self.blocks
        return inside and not any(part in name for part in self.skip_layers)

    @property
    def identity(self) -> tuple[object, ...] | None:
        """Equal for two uses that do the same, of files that did not change; None for tensors in memory, which may."""
        path = self.path
        stamp = () if path is None else stamp_of(path)
        return (stamp, self.strengths, self.blocks, self.skip_layers, self.merge) if stamp else None

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path or "the LoRA in memory")

    @property
    def path(self) -> str | Path | None:
        """Where it was opened from, or is to be; None for tensors in memory."""
        if isinstance(self.file, LoraSource):
            return self.file.path
        return self.file if isinstance(self.file, str | Path) else None


@dataclass(frozen=True)
class LoraReport:
    """What became of a LoRA: of `total` parameters that it changes the model has `matched`, and the filters left out
    `filtered` of those. branch_bytes: memory that its branches share with those of other LoRAs."""

    name: str
    strength: float | tuple[float, ...]
    total: int
    matched: int
    merged: int
    unmerged: int
    added: int
    filtered: int
    ranks: tuple[int, ...]
    branch_bytes: int
    unmatched: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        ways = ((self.merged, "merged"), (self.unmerged, "unmerged"), (self.added, "added to small parameters"))
        parts = [f"{count} {way}" for count, way in ways if count]
        if self.filtered:
            parts.append(f"{self.filtered} left out by its filter")
        if self.ranks:
            low, high = min(self.ranks), max(self.ranks)
            parts.append(f"rank {low}" if low == high else f"ranks {low} to {high}")
        parts.append(f"+{self.branch_bytes / 1e6:.0f} MB")
        return f"LoRA {self.name} at {self.strength}: matched {self.matched}/{self.total}, {', '.join(parts)}."
