"""How far a long video drifts from its beginning: colors, sharpness and latents of every window.

Legend: F frames, H W rows and columns, T latent frames.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .. import checks
from ..sampling.measures import WINDOW_FRAMES, has_moved, measure_frames, ratio
from .plot import Curve, plot

CURVES = ("L", "a", "b", "sharpness", "latent_std")
LATENT = 1.1  # the factor by which the latents' deviation moves notably
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
        return has_moved(self, since) or not 1 / LATENT <= ratio(self.latent_std, since.latent_std) <= LATENT

    def since(self, first: WindowMeasures) -> str:
        """A sentence on what is other than in an earlier window."""
        lightness, a, b = (now - then for now, then in zip(self.lab_mean, first.lab_mean, strict=True))
        sharpness = ratio(self.sharpness, first.sharpness)
        return (
            f"Window {self.index + 1} since window {first.index + 1}: lightness {lightness:+.1f}, "
            f"color (a, b) {a:+.1f} {b:+.1f}, sharpness x{sharpness:.2f}, "
            f"latents x{ratio(self.latent_std, first.latent_std):.2f}."
        )


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


def _rounded(name: str, value: float) -> float:
    checks.number(name, value, -MOST, MOST)
    return float(f"{value:.6g}")
