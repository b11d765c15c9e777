"""Positions and times as waves. Rotary position embedding: three axes for video tokens, one axis for speaker labels.

Legend: L tokens, N heads, E head width; a table is [L, E/2, 2] float32, cosine and sine of each pair's angle.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

BASE = 10000.0


@cache
def frequencies(width: int, device: torch.device) -> Tensor:
    """By how much each pair of a head rotates from one position to the next: [width / 2] float64."""
    return BASE ** -(torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)


def _angles(positions: Tensor, width: int) -> Tensor:
    """[n] positions -> [n, width/2] float64 angles."""
    return positions.double()[:, None] * frequencies(width, positions.device)


def _table(angles: Tensor) -> Tensor:
    return torch.stack((angles.cos(), angles.sin()), -1).float()


def video_rope(frames: int, height: int, width: int, head_width: int, device: torch.device) -> Tensor:
    """Table of a frames x height x width token grid, frame-major.

    Returns: [frames * height * width, head_width / 2, 2] float32.
    Source: Wan2.1; of E/2 pairs, E/2 - 2 (E/6) rotate with the frame, E/6 with the row, E/6 with the column.
    """
    spatial = 2 * (head_width // 6)
    axes = ((frames, head_width - 2 * spatial), (height, spatial), (width, spatial))
    t, y, x = (_angles(torch.arange(size, device=device), dims) for size, dims in axes)
    grid = (frames, height, width)
    angles = torch.cat(
        (
            t[:, None, None].expand(*grid, -1),
            y[None, :, None].expand(*grid, -1),
            x[None, None, :].expand(*grid, -1),
        ),
        -1,
    )
    return _table(angles.reshape(frames * height * width, head_width // 2))


def label_rope(positions: Tensor, head_width: int) -> Tensor:
    """Table of fractional positions [n] on one axis: [n, head_width / 2, 2] float32."""
    return _table(_angles(positions, head_width))


def sinusoid(timestep: Tensor, width: int) -> Tensor:
    """[1] -> [1, width] float64: cosines, then sines, of the timestep at falling frequencies."""
    exponents = torch.arange(width // 2, dtype=torch.float64, device=timestep.device) / (width // 2)
    angles = timestep.double()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat((angles.cos(), angles.sin()), -1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs (2i, 2i + 1) of each head of x [L, N, E] by `table` [L, E/2, 2]; computed in float32."""
    pairs = x.float().unflatten(-1, (-1, 2))
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]
    even, odd = pairs.unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)
