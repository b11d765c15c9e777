"""Working on overlapping tiles of a picture, blended where they overlap.

Legend: H W rows and columns of pixels; a cell is 8 x 8 pixels, one latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class Tiling:
    """Size of a tile and distance between tiles, in pixels, multiples of 8."""

    height: int = 272
    width: int = 272
    stride_height: int = 128
    stride_width: int = 144

    def __post_init__(self) -> None:
        for tile, stride, what in (
            (self.height, self.stride_height, "height"),
            (self.width, self.stride_width, "width"),
        ):
            if tile % 8 or stride % 8 or not 8 <= stride <= tile:
                raise InputError(
                    f"Tiles of {what} {tile} at a distance of {stride} cannot cover a picture. "
                    "Give multiples of 8, the distance at least 8 and at most the tile."
                )

    @classmethod
    def default(cls) -> Tiling:
        return cls()

    def cells(self, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """((tile, stride) of the rows, (tile, stride) of the columns) in cells of `size` pixels."""
        rows = (self.height // size, self.stride_height // size)
        return rows, (self.width // size, self.stride_width // size)


def over_tiles(
    source: Tensor,
    shape: tuple[int, ...],
    cells: tuple[tuple[int, int], tuple[int, int]],
    work: Callable[[Tensor], Tensor],
    *,
    from_latents: bool = False,
) -> Tensor:
    """`work` on every tile of source [C, f, H, W], blended into a tensor of `shape`.

    cells: ((tile, stride) of the rows, of the columns) in cells; source or, if from_latents, result has 8 x 8 pixels
    a cell, the other one value. A source that one tile covers is worked on as a whole.
    """
    scale_in, scale_out = (1, 8) if from_latents else (8, 1)
    spans = [list(_spans(source.shape[2 + axis] // scale_in, *cells[axis])) for axis in range(2)]
    if len(spans[0]) == len(spans[1]) == 1:
        return work(source)
    out: Tensor | None = None
    weights: Tensor | None = None
    for top, bottom in spans[0]:
        for left, right in spans[1]:
            rows, columns = slice(top * scale_in, bottom * scale_in), slice(left * scale_in, right * scale_in)
            tile = work(source[:, :, rows, columns])
            if out is None or weights is None:
                out = torch.zeros(shape, dtype=torch.float32, device=tile.device)
                weights = torch.zeros(shape[2:], dtype=torch.float32, device=tile.device)
            ramps = [
                _ramp(start, stop, spans[axis], scale_out, tile.device)
                for axis, (start, stop) in enumerate(((top, bottom), (left, right)))
            ]
            weight = ramps[0][:, None] * ramps[1][None]
            rows, columns = slice(top * scale_out, bottom * scale_out), slice(left * scale_out, right * scale_out)
            out[:, :, rows, columns].addcmul_(tile.float(), weight)
            weights[rows, columns] += weight
            dtype = tile.dtype
    assert out is not None and weights is not None, "a source has at least one tile"
    return (out / weights).to(dtype)


def _spans(size: int, tile: int, stride: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of tiles that cover `size` cells; the last one ends at the edge."""
    start = 0
    while start + tile < size:
        yield start, start + tile
        start += stride
    yield max(0, size - tile), size


def _ramp(start: int, stop: int, spans: list[tuple[int, int]], scale: int, device: torch.device) -> Tensor:
    """Weights along one side of a tile: rising where the tile before overlaps it, falling where the next one does."""
    index = spans.index((start, stop))
    weight = torch.ones((stop - start) * scale, device=device)
    if index > 0:
        overlap = (spans[index - 1][1] - start) * scale
        weight[:overlap] = torch.arange(1, overlap + 1, device=device) / (overlap + 1)
    if index + 1 < len(spans):
        overlap = (stop - spans[index + 1][0]) * scale
        weight[len(weight) - overlap :] *= torch.arange(overlap, 0, -1, device=device) / (overlap + 1)
    return weight
