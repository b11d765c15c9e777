"""What a video is made after: a source video's frames at the size and rate of the result, or a still picture.

A source is followed in time, whatever its own rate is, and read when its frames are needed.
Legend: F frames of the result, H W rows and columns of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..geometry import WindowPlan
from ..keep import SOURCE_ENDS, WHOLE, Camera, Trim
from .picture import fit
from .reader import open_frames

RATE_DENOMINATOR = 1001  # of 30000/1001 frames a second and its like
ROUNDING = 0.1  # of a frame, by which containers may say that a source is longer


class LastSpan:
    """What was made of the frames of a span, of which the next span repeats some: a file is read forwards only."""

    def __init__(self) -> None:
        self._known: dict[int, Tensor] = {}

    def of(self, start: int, stop: int, time_of: Callable[[int], float], read: Callable[[float], Tensor]) -> Tensor:
        """[F, ...]: of the frames start..stop, which are kept until the next call; nothing else is.

        Args: time_of: the second at which a frame of the result shows the file. read: what is made of the file there.
        """
        self._known = {index: made for index, made in self._known.items() if start <= index < stop}
        times = {index: time_of(index) for index in range(start, stop) if index not in self._known}
        for index in sorted(times, key=times.__getitem__):
            self._known[index] = read(times[index])
        return torch.stack([self._known[index] for index in range(start, stop)])

    def get(self, index: int) -> Tensor | None:
        """Of one frame, if it is among them."""
        return self._known.get(index)


class SourceVideo:
    """Frames of a video by the number of the result's frame; the last span that was read is kept, and nothing else.

    Frame i of the result shows the source at i / fps seconds: any rate, also a variable one, any rotation and codec.
    Args:
        path: of the video. width, height: of the result, pixels; fps: its frames a second.
        end: what follows the source's last frame: hold (it remains), loop (from the start), ping-pong (backwards, and
            forwards again), stop (nothing: a result has `frame_limit` frames; in what a window lacks it remains).
        trim: the part of it that is the source.
    Raises: InputError when the file is missing or no video.
    """

    def __init__(
        self, path: str | Path, width: int, height: int, fps: float, end: str = "hold", trim: Trim = WHOLE
    ) -> None:
        if end not in SOURCE_ENDS:
            raise InputError(f"source_end {end!r} is not offered. Use one of {', '.join(SOURCE_ENDS)}.")
        self._video = open_frames(path, trim)
        self.size = self._video.size
        self.result_size, self._end = (width, height), end
        self._fps = Fraction(fps).limit_denominator(RATE_DENOMINATOR)
        self._frames = LastSpan()

    def time_of(self, index: int) -> float:
        """Seconds from the source's first frame at which frame `index` of the result stands."""
        time = Fraction(index) / self._fps
        if self._end in ("hold", "stop") or not self._video.num_frames:
            return float(time)
        length = Fraction(self._video.duration_s).limit_denominator(90_000)
        if self._end == "loop":
            return float(time % length)
        last = length - length / self._video.num_frames  # when the last frame comes; it is not shown twice in a row
        if last <= 0:
            return 0.0
        time %= 2 * last
        return float(min(time, 2 * last - time))

    def index_of(self, index: int) -> int:
        """The number, from 0, of the source's frame that frame `index` of the result shows."""
        return self._video.index_at(self.time_of(index))

    def frames(self, start: int, stop: int) -> Tensor:
        """[F, H, W, 3] uint8: the frames start..stop of the result, cut to its size as `picture.fit` does."""
        return self._frames.of(start, stop, self.time_of, self._read)

    def frame(self, index: int) -> Tensor:
        """[H, W, 3] uint8: one frame, which takes no other's place among those that are kept."""
        known = self._frames.get(index)
        return self._read(self.time_of(index)) if known is None else known

    @property
    def num_frames(self) -> int:
        """Of the source itself."""
        return self._video.num_frames

    @property
    def frame_limit(self) -> int | None:
        """Frames of a result that ends with the source; None where it goes on."""
        if self._end != "stop":
            return None
        return max(1, math.ceil(self._video.duration_s * float(self._fps) - ROUNDING))

    @property
    def duration_s(self) -> float:
        """Of the source itself."""
        return self._video.duration_s

    def close(self) -> None:
        self._video.close()

    def _read(self, time_s: float) -> Tensor:
        picture = self._video.frame_at(time_s)
        width, height = self.result_size
        if picture.shape[:2] == (height, width):
            return torch.from_numpy(picture.copy())
        return to_bytes(fit(picture, width, height)).permute(1, 2, 0).contiguous()


def to_bytes(pixels: Tensor) -> Tensor:
    """Values of -1..1 as uint8; what came from bytes comes out as the same ones."""
    return pixels.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def from_bytes(frames: Tensor) -> Tensor:
    """uint8 as float32 in -1..1, value for value as `picture.fit` has them."""
    return (frames.float() / 255 - 0.5) * 2


class SourceReferences:
    """The reference picture of every window: the source's frame at its start, [3, H, W] float32 in -1..1.

    Only two are kept, one of them the first.
    Source: InfiniteTalk, which counts source frames instead of seconds and drifts unless the source has 25 a second.
    """

    def __init__(self, source: SourceVideo, plan: WindowPlan) -> None:
        self._source, self._plan = source, plan
        self._cached: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"reference {index} of {len(self)}")
        if index not in self._cached:
            picture = from_bytes(self._source.frame(self._plan[index].start)).permute(2, 0, 1)
            self._cached = {kept: self._cached[kept] for kept in self._cached if kept == 0} | {index: picture}
        return self._cached[index]


class CameraReferences:
    """The reference picture of every window: a still one, seen by a camera that moves slowly.

    Args: picture: [H, W, 3] uint8. width, height: of the result; fps: its frames a second; plan: its windows.
    Source: the remedy of InfiniteTalk's authors against colors that drift in long videos of one picture.
    """

    def __init__(
        self, picture: np.ndarray, camera: Camera, width: int, height: int, plan: WindowPlan, fps: float
    ) -> None:
        self._picture, self._camera, self._plan, self._fps = picture, camera, plan, fps
        self._width, self._height = width, height

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"reference {index} of {len(self)}")
        rows, columns = self._picture.shape[:2]
        scale = max(self._height / rows, self._width / columns)
        zoom, right, down = self._camera.at(self._plan[index].start / self._fps)
        width, height = self._width / scale / zoom, self._height / scale / zoom
        # Rounding may put an edge beyond the picture's by a trillionth of a pixel, which Pillow refuses.
        left = max((columns - width) / 2 + right * (self._width / scale - width) / 2, 0.0)
        top = max((rows - height) / 2 + down * (self._height / scale - height) / 2, 0.0)
        box = left, top, min(left + width, columns), min(top + height, rows)
        seen = Image.fromarray(self._picture).resize(
            (self._width, self._height), Image.Resampling.BILINEAR, box=box
        )  # fmt: skip
        return from_bytes(torch.from_numpy(np.array(seen))).permute(2, 0, 1)
