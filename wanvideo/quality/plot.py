"""Curves over time as a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1000, 140  # pixels of a panel
LEFT, TOP, RIGHT, BOTTOM = 90, 24, 20, 12  # around the curve in it
FOOT = 40  # below the last panel
NUM_PLACES = 6  # that are named below
BACKGROUND, FRAME, TEXT, LINE = "white", "#c8c8c8", "#303030", "#1f6fb4"


@dataclass(frozen=True)
class Curve:
    """One panel: its name, and values over places; what is not finite leaves a gap."""

    name: str
    places: Sequence[float]
    values: Sequence[float]


def plot(across: str, curves: Sequence[Curve]) -> bytes:
    """A PNG with one panel a curve, one below the other. Args: across: what the horizontal axis is."""
    image = Image.new("RGB", (WIDTH, HEIGHT * len(curves) + FOOT), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.font = ImageFont.load_default(13)
    first = min((min(curve.places) for curve in curves if curve.places), default=0.0)
    last = max((max(curve.places) for curve in curves if curve.places), default=1.0)
    for number, curve in enumerate(curves):
        _panel(draw, number * HEIGHT, curve, first, last)
    bottom = HEIGHT * len(curves)
    for index in range(NUM_PLACES):
        place = first + (last - first) * index / (NUM_PLACES - 1)
        draw.text((_column(place, first, last), bottom), f"{place:.6g}", TEXT, anchor="mt")
    draw.text(((LEFT + WIDTH - RIGHT) / 2, bottom + FOOT // 2), across, TEXT, anchor="mt")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _panel(draw: ImageDraw.ImageDraw, top: int, curve: Curve, first: float, last: float) -> None:
    """A curve in its frame, between its least and its greatest value."""
    finite = [value for value in curve.values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    upper, lower = top + TOP, top + HEIGHT - BOTTOM

    def row(value: float) -> float:
        return lower - (lower - upper) * (0.5 if high == low else (value - low) / (high - low))

    draw.rectangle((LEFT, upper, WIDTH - RIGHT, lower), outline=FRAME)
    draw.text((LEFT, top + TOP // 2), curve.name, TEXT, anchor="lm")
    for value in {low, high}:
        draw.text((LEFT - 6, row(value)), f"{value:.4g}", TEXT, anchor="rm")
    points: list[tuple[float, float]] = []
    for place, value in [*zip(curve.places, curve.values, strict=True), (last, math.nan)]:
        if math.isfinite(value):
            points.append((_column(place, first, last), row(value)))
            continue
        if len(points) == 1:
            x, y = points[0]
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=LINE)
        draw.line(points, LINE, 2)
        points = []


def _column(place: float, first: float, last: float) -> float:
    return LEFT + (WIDTH - RIGHT - LEFT) * (0.5 if last == first else (place - first) / (last - first))
