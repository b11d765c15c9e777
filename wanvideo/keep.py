"""What of a source video stays as it is when it is dubbed, and how its time goes on: as frozen data, no files opened.

It has no layer below it but errors, so that a request can hold it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import InputError

SOURCE_ENDS = ("hold", "loop", "ping-pong")
MAX_FEATHER = 256
AUTO = "auto"
DEFAULT_FEATHER = 16


@dataclass(frozen=True)
class Keep:
    """The part of every frame of a source video that is made anew; all else keeps the source's pixels.

    Args:
        mask: path of a picture, or of a video that runs along with the source, white where the new is made; or None.
        box: row_min, col_min, row_max, col_max of that part in pixels of the source, or None.
        mouth: "auto" for the mouths and chins of all faces, found in every frame (needs mediapipe), or None.
            One of the three is needed.
        feather: pixels of the result outside of it over which the new fades into the old, 0 to 256.
    Raises: InputError for anything else.
    """

    mask: str | None = None
    box: tuple[int, int, int, int] | None = None
    mouth: str | None = None
    feather: int = DEFAULT_FEATHER

    def __post_init__(self) -> None:
        given = [name for name in ("mask", "box", "mouth") if getattr(self, name)]
        if len(given) != 1:
            raise InputError(
                f"keep has {' and '.join(given) or 'no region'}. Give one of mask, box or mouth: where the video is "
                "made anew."
            )
        if self.mouth not in (None, AUTO):
            raise InputError(f"keep.mouth {self.mouth!r} is not offered. Use {AUTO!r}, or give a mask or a box.")
        if not isinstance(self.mask, str | None):
            raise InputError(f"keep.mask {self.mask!r} is not usable: it is the path of a picture or a video.")
        if not isinstance(self.feather, int) or isinstance(self.feather, bool) or not 0 <= self.feather <= MAX_FEATHER:
            raise InputError(f"keep.feather {self.feather!r} is not usable: whole pixels from 0 to {MAX_FEATHER}.")
        if self.box is not None:
            self._check_box(self.box)

    @classmethod
    def named(cls, where: str, feather: int) -> Keep:
        """From a word: the path of a mask, or auto for mouths."""
        return cls(mouth=AUTO, feather=feather) if where == AUTO else cls(mask=where, feather=feather)

    @staticmethod
    def _check_box(box: tuple[int, ...]) -> None:
        is_whole = isinstance(box, tuple) and all(isinstance(side, int) and not isinstance(side, bool) for side in box)
        if not is_whole or len(box) != 4 or not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
            raise InputError(
                f"keep.box {box!r} is not usable. "
                "It is [row_min, col_min, row_max, col_max] in pixels of the source, origin top left."
            )


@dataclass(frozen=True)
class Camera:
    """A slow movement over a still reference picture, so that no two windows begin from the very same one.

    Args:
        zoom: how much nearer the camera comes, 1 (not at all) to 2; the picture's edges are cut off by as much.
        pan: the part of what zooming cuts off by which it moves to the right and down, each -1 to 1.
        period_s: seconds until it is back where it began.
    """

    zoom: float = 1.08
    pan: tuple[float, float] = (0.0, 0.0)
    period_s: float = 30.0

    def __post_init__(self) -> None:
        if not isinstance(self.pan, tuple) or len(self.pan) != 2:
            raise InputError(f"camera.pan {self.pan!r} is not usable: it is two numbers, to the right and down.")
        limits = {"zoom": (self.zoom, 1, 2), "period_s": (self.period_s, 1, 3600)}
        limits |= {f"pan[{i}]": (value, -1, 1) for i, value in enumerate(self.pan)}
        for name, (value, low, high) in limits.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise InputError(f"camera.{name} {value!r} is not usable: it must be a number from {low} to {high}.")

    def at(self, time_s: float) -> tuple[float, float, float]:
        """Zoom, and how far to the right and down it has moved at a time (both in parts of what is cut off)."""
        phase = (1 - math.cos(2 * math.pi * time_s / self.period_s)) / 2
        return 1 + (self.zoom - 1) * phase, self.pan[0] * phase, self.pan[1] * phase
