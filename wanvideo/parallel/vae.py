"""A VAE's pictures over ranks: some rows for each, and the row next to them at every convolution. Exact.

Legend: C channels, T frames, H W rows and columns, of pictures that have `cell` rows for a row of latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .groups import Group
from .sequence import strips


class HaloRows:
    """The `RowSplit` of a rank: neighboring rows of latents, and the pixels that belong to them."""

    def __init__(self, group: Group) -> None:
        self._group, self._rows, self.size = group, tuple[int, ...](), group.size

    def splits(self, num_rows: int) -> bool:
        return num_rows >= self._group.size > 1

    def start(self, num_rows: int) -> None:
        self._rows = strips(num_rows, self._group.size)

    def take(self, pictures: Tensor, cell: int) -> Tensor:
        index = self._group.index
        first = sum(self._rows[:index]) * cell
        return pictures[..., first : first + self._rows[index] * cell, :]

    def join(self, pictures: Tensor, cell: int) -> Tensor:
        rows = pictures.movedim(-2, 0)
        return self._group.gather(rows, [count * cell for count in self._rows]).movedim(0, -2).contiguous()

    def edges(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        edge = pictures[:, :, :, :1]
        upper, lower = (torch.zeros_like(edge, memory_format=torch.contiguous_format) for _ in range(2))
        sends, receives, index = {}, {}, self._group.index
        if index > 0:
            sends[index - 1], receives[index - 1] = edge.contiguous(), upper
        if index + 1 < self._group.size:
            sends[index + 1], receives[index + 1] = pictures[:, :, :, -1:].contiguous(), lower
        for work in self._group.swap(sends, receives):
            work.wait()
        return upper, lower

    def gather(self, tokens: Tensor) -> Tensor:
        width = tokens.shape[1] // self._rows[self._group.index]
        gathered = self._group.gather(tokens.transpose(0, 1), [rows * width for rows in self._rows])
        return gathered.transpose(0, 1)
