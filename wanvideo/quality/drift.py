"""How far a long video drifts from its beginning: colors, sharpness and latents of every window.

Legend: F frames, H W rows and columns, T latent frames.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import OutputError
from ..sampling.color import rgb_to_lab

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


def measure(window: MeasuredWindow) -> WindowMeasures:
    """Measure a finished window: frames [F, H, W, 3] uint8, latents [16, T, h, w]."""
    chosen = torch.linspace(0, len(window.frames) - 1, min(FRAMES, len(window.frames))).round().long()
    lab = rgb_to_lab(window.frames[chosen].float() / 255)
    lightness, pixels, latents = lab[..., 0], lab.flatten(0, 2), window.latents.float()
    inner = lightness[:, 1:-1, 1:-1]
    around = lightness[:, :-2, 1:-1] + lightness[:, 2:, 1:-1] + lightness[:, 1:-1, :-2] + lightness[:, 1:-1, 2:]
    return WindowMeasures(
        window.index, window.start, tuple(pixels.mean(0).tolist()), tuple(pixels.std(0, correction=0).tolist()),
        float((around - 4 * inner).var(correction=0)), float(latents.mean()), float(latents.std(correction=0)),
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
            path.write_text(json.dumps([asdict(measures) for measures in self.windows], indent=1), encoding="utf-8")
            plot = self._plot(path.with_suffix(".png"))
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}). Choose another folder.") from error
        return [path] if plot is None else [path, plot]

    def _plot(self, path: Path) -> Path | None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            logger.info("There is no drift.png: matplotlib cannot be used here (%s).", error)
            return None
        figure = Figure(figsize=(10, 8), layout="constrained")
        panels: Any = figure.subplots(len(CURVES), sharex=True)
        starts = [measures.start for measures in self.windows]
        for panel, name in zip(panels, CURVES, strict=True):
            panel.plot(starts, [_curve(measures, name) for measures in self.windows], marker=".")
            panel.set_ylabel(name)
        panels[-1].set_xlabel("frame")
        figure.savefig(path)
        return path


def _curve(measures: WindowMeasures, name: str) -> float:
    values = dict(zip("Lab", measures.lab_mean, strict=True))
    return values[name] if name in values else float(getattr(measures, name))
