"""What is measured of frames: colors and sharpness, and whether somebody would notice that they moved.

Legend: F frames, H W rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .color import rgb_to_lab

FRAMES, WINDOW_FRAMES = 8, 4  # that are measured, evenly spread: of a video's second, of a window
LAB, SHARPNESS = 3.0, 1.25  # what moves notably: a difference in Lab that eyes see side by side, and a factor


class Measured(Protocol):
    """What `has_moved` compares, as of `PixelMeasures`."""

    @property
    def lab_mean(self) -> tuple[float, ...]: ...

    @property
    def sharpness(self) -> float: ...


@dataclass(frozen=True)
class PixelMeasures:
    """Of frames.

    Args:
        lab_mean, lab_std: of the pixels, in CIE Lab: L 0..100, a and b about -100..100.
        sharpness: variance of the Laplacian of L, more is sharper.
    """

    lab_mean: tuple[float, ...]
    lab_std: tuple[float, ...]
    sharpness: float


def evenly(frames: Tensor, most: int) -> Tensor:
    """At most so many of frames [F, ...], the first and the last among them."""
    return frames[torch.linspace(0, len(frames) - 1, min(most, len(frames))).round().long()]


def measure_frames(frames: Tensor, most: int = FRAMES) -> PixelMeasures:
    """Measure frames [F, H, W, 3] uint8, at most so many of them."""
    measured = torch.stack([_of_one(frame) for frame in evenly(frames, most)])  # one by one, which fits into caches
    means, variances = measured.unbind(1)
    variance = variances.mean(0) + means.var(0, correction=0)
    mean, spread = means.mean(0).tolist(), variance.sqrt().tolist()
    return PixelMeasures(tuple(mean[:3]), tuple(spread[:3]), float(variance[3]))


def _of_one(frame: Tensor) -> Tensor:
    """Mean and variance [2, 4] of L, a, b and the Laplacian of L of a frame [H, W, 3] uint8."""
    lab = rgb_to_lab(frame.float() / 255)
    lightness, a, b = (lab[..., channel].contiguous() for channel in range(3))
    around = lightness[:-2, 1:-1] + lightness[2:, 1:-1] + lightness[1:-1, :-2] + lightness[1:-1, 2:]
    parts = lightness, a, b, around - 4 * lightness[1:-1, 1:-1]
    means = [part.mean() for part in parts]
    variances = [(part - mean).square_().mean() for part, mean in zip(parts, means, strict=True)]
    measured: Tensor = torch.stack([*means, *variances]).unflatten(0, (2, 4))
    return measured


def has_moved(now: Measured, since: Measured) -> bool:
    """Whether colors or sharpness differ so that somebody who sees both would notice."""
    is_as_sharp = 1 / SHARPNESS <= ratio(now.sharpness, since.sharpness) <= SHARPNESS
    return math.dist(now.lab_mean, since.lab_mean) > LAB or not is_as_sharp


def ratio(now: float, then: float) -> float:
    """How many times `then` it is."""
    return now / max(then, 1e-9)
