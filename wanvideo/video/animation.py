"""Animated pictures that Pillow reads and FFmpeg does not: WebP, with the frames by their time.

Legend: H W rows and columns; frames are uint8 [H, W, 3] RGB numpy arrays.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from ..untrusted import answered
from .picture import identify, to_array

SHORTEST_S = 0.01  # of a frame; browsers show shorter ones for 0.1 s
UNTIMED_S = 0.1
MAX_FRAMES = 100_000
MAX_CHUNKS = 4 * MAX_FRAMES  # some of which hold no frame


class AnimatedPicture:
    """Frames of an animated WebP by their time; one is held at once.

    Attributes: size: width and height. num_frames, duration_s: of all.
    Raises: InputError when it is damaged or too large.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._ends = np.cumsum(_durations(self.path))
        image = identify(self.path, "an animated picture")
        if image is None or not is_animated_webp(image) or not len(self._ends):
            raise InputError(f"{path} holds no animation that can be read. It is damaged: save it again.")
        self._image = image
        self.num_frames = min(len(self._ends), getattr(image, "n_frames", 1))
        self.size = self.frame_at(0.0).shape[1::-1]

    @property
    def duration_s(self) -> float:
        return float(self._ends[self.num_frames - 1])

    def frame_at(self, time_s: float) -> np.ndarray:
        """[H, W, 3]: the frame on screen at a time; before the start the first one, after the end the last one."""
        with answered(str(self.path)):
            self._image.seek(self.index_at(time_s))
            return to_array(self._image, "white", str(self.path))

    def index_at(self, time_s: float) -> int:
        """The number, from 0, of the frame that is on screen at a time."""
        return min(int(np.searchsorted(self._ends, time_s + 1e-6, "right")), self.num_frames - 1)

    def close(self) -> None:
        self._image.close()


def _durations(path: Path) -> list[float]:
    """Seconds of every frame of an animated WebP, as its container says."""
    seconds: list[float] = []
    with answered(str(path)), path.open("rb") as file:
        file.seek(12)
        for _ in range(MAX_CHUNKS):
            if len(chunk := file.read(8)) < 8 or len(seconds) == MAX_FRAMES:
                break
            length = int.from_bytes(chunk[4:], "little")
            end = file.tell() + length + length % 2
            if chunk[:4] == b"ANMF":
                stated_s = int.from_bytes(file.read(16)[12:15], "little") / 1000
                seconds.append(stated_s if stated_s >= SHORTEST_S else UNTIMED_S)
            file.seek(end)
    return seconds


def is_animated_webp(image: Image.Image) -> bool:
    return image.format == "WEBP" and getattr(image, "is_animated", False)
