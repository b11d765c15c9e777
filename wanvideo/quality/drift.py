"""How far a long video drifts from its beginning: colors, sharpness and latents of every window.

Legend: F frames, H W rows and columns, T latent frames.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .. import checks
from ..sampling.color import rgb_to_lab
from .plot import Curve, plot

FRAMES, WINDOW_FRAMES = 8, 4  # that are measured, evenly spread: of a video's second, of a window
CURVES = ("L", "a", "b", "sharpness", "latent_std")
# What moves notably: a difference in Lab that eyes see side by side, and factors of the other two.
LAB, SHARPNESS, LATENT = 3.0, 1.25, 1.1
MOST = 1e300  # of any measure: all that is finite

logger = logging.getLogger("wanvideo")


class MeasuredWindow(Protocol):
    """The part of a finished window that is measured; `engine.render.FinishedWindow` has it."""

    @property
    def index(self) -> int: ...

    @property
    def start(self) -> int: ...

    @property
    def frames(self) -> Tensor: ...

    @property
    def latents(self) -> Tensor: ...


@dataclass(frozen=True)
class WindowMeasures:
    """What was measured of a window, to six digits.

    Args:
        index: of the window. start: its first frame.
        lab_mean, lab_std: of the pixels, in CIE Lab: L 0..100, a and b about -100..100.
        sharpness: variance of the Laplacian of L, more is sharper.
        latent_mean, latent_std: of all latents.
    Raises: InputError for values that no window has.
    """

    index: int
    start: int
    lab_mean: tuple[float, ...]
    lab_std: tuple[float, ...]
    sharpness: float
    latent_mean: float
    latent_std: float

    def __post_init__(self) -> None:
        for name in ("index", "start"):
            checks.number(name, getattr(self, name), 0, MOST, whole=True)
        for name in ("sharpness", "latent_mean", "latent_std"):
            object.__setattr__(self, name, _rounded(name, getattr(self, name)))
        for name in ("lab_mean", "lab_std"):
            checks.instance(name, values := getattr(self, name), tuple, "three numbers, of L, a and b")
            object.__setattr__(self, name, tuple(_rounded(name, value) for value in values))

    def has_moved(self, since: WindowMeasures) -> bool:
        """Whether somebody who sees both windows would notice."""
        ratios = (
            (_ratio(self.sharpness, since.sharpness), SHARPNESS),
            (_ratio(self.latent_std, since.latent_std), LATENT),
        )
        return math.dist(self.lab_mean, since.lab_mean) > LAB or any(
            not 1 / most <= ratio <= most for ratio, most in ratios
        )  # fmt: skip

    def since(self, first: WindowMeasures) -> str:
        """A sentence on what is other than in an earlier window."""
        lightness, a, b = (now - then for now, then in zip(self.lab_mean, first.lab_mean, strict=True))
        sharpness = _ratio(self.sharpness, first.sharpness)
        return (
            f"Window {self.index + 1} since window {first.index + 1}: lightness {lightness:+.1f}, "
            f"color (a, b) {a:+.1f} {b:+.1f}, sharpness x{sharpness:.2f}, "
            f"latents x{_ratio(self.latent_std, first.latent_std):.2f}."
        )


@dataclass(frozen=True)
class PixelMeasures:
    """The part of `WindowMeasures` that frames alone decide."""

    lab_mean: tuple[float, ...]
    lab_std: tuple[float, ...]
    sharpness: float


def measure_frames(frames: Tensor, most: int = FRAMES) -> PixelMeasures:
    """Measure frames [F, H, W, 3] uint8, at most so many of them."""
    chosen = torch.linspace(0, len(frames) - 1, min(most, len(frames))).round().long()
    measured = torch.stack([_of_one(frames[index]) for index in chosen])  # one by one, which fits into caches
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
    return torch.stack([*means, *variances]).unflatten(0, (2, 4))


def measure(window: MeasuredWindow) -> WindowMeasures:
    """Measure a finished window: frames [F, H, W, 3] uint8, latents [16, T, h, w]."""
    pixels, latents = measure_frames(window.frames, WINDOW_FRAMES), window.latents.double()
    return WindowMeasures(
        window.index, window.start, pixels.lab_mean, pixels.lab_std, pixels.sharpness,
        float(latents.mean()), float(latents.std(correction=0)),
    )  # fmt: skip


def notable(windows: Sequence[WindowMeasures]) -> list[WindowMeasures]:
    """Those that moved notably since the last one of them, or else since the first window."""
    found: list[WindowMeasures] = []
    for measures in windows:
        if measures.has_moved((found or windows)[-1 if found else 0]):
            found.append(measures)
    return found


class Drift:
    """Measures of every window of a run, in their order. Args: windows: those of earlier windows of the same video."""

    def __init__(self, windows: Sequence[WindowMeasures] = ()) -> None:
        self.windows = list(windows)
        self._last = next(reversed(notable(self.windows) or self.windows[:1]), None)

    def add(self, window: MeasuredWindow) -> WindowMeasures:
        """Measure a window and keep the numbers; of the window itself nothing is kept. It is logged if it moved."""
        measures = measure(window)
        self.windows.append(measures)
        if self._last is None:
            self._last = measures
        elif measures.has_moved(self._last):
            logger.info("%s", measures.since(self.windows[0]))
            self._last = measures
        return measures


def draw(windows: Sequence[WindowMeasures]) -> bytes:
    """A PNG of what was measured, over the numbers of frames."""
    starts = [measures.start for measures in windows]
    return plot("frame", [Curve(name, starts, [_curve(measures, name) for measures in windows]) for name in CURVES])


def _curve(measures: WindowMeasures, name: str) -> float:
    values = dict(zip("Lab", measures.lab_mean, strict=True))
    return values[name] if name in values else float(getattr(measures, name))


def _ratio(now: float, then: float) -> float:
    return now / max(then, 1e-9)


def _rounded(name: str, value: float) -> float:
    checks.number(name, value, -MOST, MOST)
    return float(f"{value:.6g}")
