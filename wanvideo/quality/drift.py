"""How far a long video drifts from its beginning: colors, sharpness and latents of every window.

Legend: F frames, H W rows and columns, T latent frames.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..durable import write_atomically
from ..errors import OutputError
from ..sampling.color import rgb_to_lab
from .plot import Curve, plot

FRAMES = 8  # of a window that are measured, evenly spread
CURVES = ("L", "a", "b", "sharpness", "latent_std")

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
    """What was measured of a window.

    Args:
        index: of the window. start: its first frame.
        lab_mean, lab_std: of the pixels, in CIE Lab: L 0..100, a and b about -100..100.
        sharpness: variance of the Laplacian of L, more is sharper.
        latent_mean, latent_std: of all latents.
    """

    index: int
    start: int
    lab_mean: tuple[float, ...]
    lab_std: tuple[float, ...]
    sharpness: float
    latent_mean: float
    latent_std: float


@dataclass(frozen=True)
class PixelMeasures:
    """The part of `WindowMeasures` that frames alone decide."""

    lab_mean: tuple[float, ...]
    lab_std: tuple[float, ...]
    sharpness: float


def measure_frames(frames: Tensor) -> PixelMeasures:
    """Measure frames [F, H, W, 3] uint8."""
    chosen = torch.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().long()
    lab = rgb_to_lab(frames[chosen].float() / 255)
    lightness, pixels = lab[..., 0], lab.flatten(0, 2)
    inner = lightness[:, 1:-1, 1:-1]
    around = lightness[:, :-2, 1:-1] + lightness[:, 2:, 1:-1] + lightness[:, 1:-1, :-2] + lightness[:, 1:-1, 2:]
    return PixelMeasures(
        tuple(pixels.mean(0).tolist()), tuple(pixels.std(0, correction=0).tolist()),
        float((around - 4 * inner).var(correction=0)),
    )  # fmt: skip


def measure(window: MeasuredWindow) -> WindowMeasures:
    """Measure a finished window: frames [F, H, W, 3] uint8, latents [16, T, h, w]."""
    pixels, latents = measure_frames(window.frames), window.latents.float()
    return WindowMeasures(
        window.index, window.start, pixels.lab_mean, pixels.lab_std, pixels.sharpness,
        float(latents.mean()), float(latents.std(correction=0)),
    )  # fmt: skip


class Drift:
    """Measures of every window of a run, in their order."""

    def __init__(self) -> None:
        self.windows: list[WindowMeasures] = []

    def add(self, window: MeasuredWindow) -> WindowMeasures:
        """Measure a window and keep the numbers; of the window itself nothing is kept."""
        measures = measure(window)
        self.windows.append(measures)
        first = self.windows[0]
        logger.info(
            "Window %d since window %d: lightness %+.1f, color (a, b) %+.1f %+.1f, sharpness x%.2f, latents x%.2f.",
            measures.index + 1, first.index + 1,
            *(now - then for now, then in zip(measures.lab_mean, first.lab_mean, strict=True)),
            measures.sharpness / max(first.sharpness, 1e-9), measures.latent_std / max(first.latent_std, 1e-9),
        )  # fmt: skip
        return measures

    def save(self, folder: str | Path) -> list[Path]:
        """Write drift.json into a folder, and drift.png where matplotlib is installed.

        Returns: what was written.
        Raises: OutputError when the folder cannot be written to.
        """
        path = Path(folder) / "drift.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps([asdict(measures) for measures in self.windows], indent=1).encode())
            plot = self._plot(path.with_suffix(".png"))
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}). Choose another folder.") from error
        return [path] if plot is None else [path, plot]

    def _plot(self, path: Path) -> Path | None:
        starts = [measures.start for measures in self.windows]
        curves = [Curve(name, starts, [_curve(measures, name) for measures in self.windows]) for name in CURVES]
        return plot(path, "frame", curves)


def _curve(measures: WindowMeasures, name: str) -> float:
    values = dict(zip("Lab", measures.lab_mean, strict=True))
    return values[name] if name in values else float(getattr(measures, name))
