"""Curves over time as a picture, where matplotlib is installed."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..durable import write_atomically

logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class Curve:
    """One panel: its name, and values over places."""

    name: str
    places: Sequence[float]
    values: Sequence[float]


def plot(path: Path, across: str, curves: Sequence[Curve]) -> Path | None:
    """Draw one panel a curve, one below the other; returns the picture, or None without matplotlib.

    Args: across: what the horizontal axis is.
    Raises: OSError when it cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        logger.info("There is no %s: matplotlib cannot be used here (%s).", path.name, error)
        return None
    figure = Figure(figsize=(10, 1.6 * len(curves)), layout="constrained")
    panels: Any = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
    for panel, curve in zip(panels, curves, strict=True):
        panel.plot(curve.places, curve.values, marker=".")
        panel.set_ylabel(curve.name)
    panels[-1].set_xlabel(across)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    write_atomically(path, data.getvalue())
    return path
