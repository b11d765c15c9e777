"""What of a source video stays as it is when it is dubbed, how its time goes on, what moves or replaces a reference.

As frozen data, no files opened.

A request holds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from . import checks
from .errors import InputError

SOURCE_ENDS = ("hold", "loop", "ping-pong", "stop")
MAX_FEATHER = 256
MAX_WINDOWS = 1_000_000  # between two anchors
MAX_TRIM_S = 1e6
AUTO = "auto"
DEFAULT_FEATHER = 16
# x264's quality of the file: 18 is visually clean; with 6 what a dub keeps of its source has a PSNR of 45 dB and more.
CRF, DUB_CRF, MAX_CRF = 18, 6, 51


def check_reanchor(reanchor: int, changing: Mapping[str, bool]) -> None:
    """Raises: InputError where there is re-anchoring, and something else decides what windows are conditioned on.

    Args: changing: whether there is something else, by its name.
    """
    name = next((name for name, is_given in changing.items() if is_given), None)
    if reanchor and name is not None:
        raise InputError(
            f"reanchor {reanchor} does not go with {name}: it is for infinitetalk mode and one still picture that "
            "nothing else changes. Leave one of the two out."
        )


def crf_of(asked: int | None, is_dub: bool) -> int:
    """x264's quality of a file: what was asked for, else what suits a dub, or a video that is new throughout."""
    return asked if asked is not None else DUB_CRF if is_dub else CRF


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
        given = [name for name in ("mask", "box", "mouth") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(
                f"keep has {' and '.join(given) or 'no region'}. Give one of mask, box or mouth: where the video is "
                "made anew."
            )
        if self.mask is not None:
            object.__setattr__(self, "mask", checks.path("keep.mask", self.mask))
        if self.mouth is not None:
            checks.choice("keep.mouth", self.mouth, (AUTO,))
        checks.number("keep.feather", self.feather, 0, MAX_FEATHER, whole=True)
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
                f"keep.box {checks.brief(box)} is not usable. "
                "Give [row_min, col_min, row_max, col_max] in pixels of the source, origin top left."
            )


@dataclass(frozen=True)
class Trim:
    """The part of a video that is meant: the frames whose own times are in start_s..start_s + duration_s.

    Args: start_s: seconds of the file's own time. duration_s: seconds; 0: to the end.
    Raises: InputError for anything else.
    """

    start_s: float = 0.0
    duration_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("start_s", "duration_s"):
            checks.number(f"trim.{name}", getattr(self, name), 0, MAX_TRIM_S)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is cut off."""
        return not (self.start_s or self.duration_s)

    def ticks(self, time_base: Fraction) -> tuple[int, float]:
        """Where it starts and where it has ended, in ticks of a stream. Source: ComfyUI's VideoFromFile."""
        start, stop = int(self.start_s / time_base), int((self.start_s + self.duration_s) / time_base)
        return start, stop if self.duration_s else math.inf


WHOLE = Trim()


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
            raise InputError(f"camera.pan {checks.brief(self.pan)} is not usable. Give two numbers, right and down.")
        checks.number("camera.zoom", self.zoom, 1, 2)
        checks.number("camera.period_s", self.period_s, 1, 3600)
        for index, value in enumerate(self.pan):
            checks.number(f"camera.pan[{index}]", value, -1, 1)

    def at(self, time_s: float) -> tuple[float, float, float]:
        """Zoom, and how far to the right and down it has moved at a time (both in parts of what is cut off)."""
        phase = (1 - math.cos(2 * math.pi * time_s / self.period_s)) / 2
        return 1 + (self.zoom - 1) * phase, self.pan[0] * phase, self.pan[1] * phase
