"""The frames of a finished video: in its file, and in memory as long as they are few.

Legend: F frames, H W rows and columns.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..memory.budget import free_host_bytes
from .part import frame_rate
from .reader import VideoFrames
from .soundtrack import Soundtrack
from .writer import with_sound

logger = logging.getLogger("wanvideo")
SHARE_AS_BYTES = 0.1  # of free host memory that frames may take as bytes
SHARE_AS_FLOATS = 0.6  # and as the floats that other programs work on


class Recording:
    """A sink beside the one that writes a video's file, which gives its frames out once it is finished.

    Args:
        path: of the file; what is read from there is as the file shows it, what is in memory as it was made.
        width, height: pixels. fps: frames a second. num_before: frames that are in the file already.
    """

    def __init__(self, path: str | Path, width: int, height: int, fps: float, num_before: int = 0) -> None:
        self.path, self.width, self.height, self.fps = Path(path), width, height, fps
        self.num_frames = num_before
        self.frames: list[Tensor] | None = None if num_before else []

    @property
    def duration_s(self) -> float:
        return self.num_frames / float(frame_rate(self.fps))

    def write(self, frames: Tensor) -> None:
        """Append frames [F, H, W, 3] uint8."""
        self.num_frames += len(frames)
        if self.frames is not None:
            self.frames.append(frames)
            if self.num_frames * self._frame_bytes > SHARE_AS_BYTES * free_host_bytes():
                logger.info("From here on frames are only kept in the video's file.")
                self.frames = None

    def close(self) -> None:
        """Nothing is left to do."""

    def abandon(self) -> None:
        self.frames = None

    def images(self) -> Tensor:
        """All frames [F, H, W, 3] float32 in 0..1, a new tensor at each call.

        Raises: InputError, naming the file, when they would not fit into memory.
        """
        needed = self.num_frames * self._frame_bytes * 4
        if needed > SHARE_AS_FLOATS * free_host_bytes():
            raise InputError(
                f"{self.num_frames} frames as pictures need {needed / 1e9:.0f} GB of memory, "
                f"{free_host_bytes() / 1e9:.0f} GB are free. Use the video output instead; the video is in {self.path}"
            )
        if self.frames is None:
            return self.read(0)
        out = torch.empty(self.num_frames, self.height, self.width, 3)
        start = 0
        for frames in self.frames:
            out[start : start + len(frames)] = frames
            start += len(frames)
        return out.div_(255)

    def read(self, start: int) -> Tensor:
        """Frames from `start` on, as the file shows them: [F, H, W, 3] float32 in 0..1."""
        out = torch.empty(self.num_frames - start, self.height, self.width, 3)
        rate = float(frame_rate(self.fps))
        with VideoFrames(self.path) as video:
            for index in range(start, self.num_frames):
                out[index - start] = torch.from_numpy(video.frame_at(index / rate))
        return out.div_(255)

    def publish(self, path: str | Path, soundtrack: Soundtrack | None = None) -> Path:
        """Write the finished video with another sound, its pictures copied as they are; returns its path."""
        return with_sound(self.path, path, self.fps, audio=soundtrack)

    @property
    def _frame_bytes(self) -> int:
        return self.width * self.height * 3
