"""Finished windows while and after they are made: always in a playable file, and in memory as long as they are few.

Legend: F frames, H W rows and columns.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..memory.budget import free_host_bytes
from .soundtrack import Soundtrack
from .writer import VideoPart, join_parts

logger = logging.getLogger("wanvideo")
SHARE_AS_BYTES = 0.1  # of free host memory that frames may take as bytes
SHARE_AS_FLOATS = 0.6  # and as the floats that other programs work on


class Recording:
    """The frames of one video.

    Args:
        path: of the mp4 without sound that grows with the windows. width, height: pixels. fps: frames a second.
    """

    def __init__(self, path: str | Path, width: int, height: int, fps: float) -> None:
        self.path, self.width, self.height, self.fps = Path(path), width, height, fps
        self.part = VideoPart(self.path, width, height, fps)
        self.frames: list[Tensor] | None = []

    @property
    def num_frames(self) -> int:
        return self.part.num_frames

    @property
    def duration_s(self) -> float:
        return self.num_frames / float(self.part.rate)

    def write(self, frames: Tensor) -> None:
        """Append frames [F, H, W, 3] uint8."""
        self.part.write(frames)
        if self.frames is not None:
            self.frames.append(frames)
            if self.num_frames * self._frame_bytes > SHARE_AS_BYTES * free_host_bytes():
                logger.info("From here on frames are only kept in %s.", self.path)
                self.frames = None

    def close(self) -> None:
        self.part.close()

    def abandon(self) -> None:
        """Finish the file; the log says what is in it."""
        self.close()
        if self.num_frames:
            logger.warning("The run ended early. Its %d finished frames are in %s", self.num_frames, self.path)

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
            return self._read_back()
        out = torch.empty(self.num_frames, self.height, self.width, 3)
        start = 0
        for frames in self.frames:
            out[start : start + len(frames)] = frames
            start += len(frames)
        return out.div_(255)

    def publish(self, path: str | Path, soundtrack: Soundtrack | None = None) -> Path:
        """Write the finished mp4 with sound, its pictures copied as they are; returns its path."""
        return join_parts([self.path], path, self.fps, audio=soundtrack)

    @property
    def _frame_bytes(self) -> int:
        return self.width * self.height * 3

    def _read_back(self) -> Tensor:
        import av

        out = torch.empty(self.num_frames, self.height, self.width, 3)
        with av.open(str(self.path)) as container:
            for index, frame in enumerate(container.decode(video=0)):
                out[index] = torch.from_numpy(frame.to_ndarray(format="rgb24"))
        return out.div_(255)
