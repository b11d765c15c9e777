"""Sizes and window positions. Plain integers only: nothing here may ever hold a tensor.

Legend: pixel frames F, latent frames T = (F - 1) / 4 + 1, latent rows and columns H/8, W/8, a token is 2 x 2 latents.
"""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from . import checks
from .errors import InputError

VAE_STRIDE = (4, 8, 8)  # pixel frames, rows and columns for one latent
PATCH = 2  # latent rows and columns for one token
SIZE_MULTIPLE = VAE_STRIDE[1] * PATCH
LATENT_CHANNELS = 16
FPS = 25.0  # what the audio adapter was trained at
DEFAULT_WINDOW = 81
SHORTEST_WINDOW = 5  # that repeats a frame of the one before it
DEFAULT_OVERLAP = 9
MAX_SIDE = 8192  # 1024 rotary positions of 8 pixels
MAX_PIXELS = 4096 * 4096
MOST_FRAMES = 10**9  # what is larger is a slip of the hand and no number of frames or pixels


def snap_frames(num_frames: int) -> int:
    """The largest 4n + 1 that is not above `num_frames` (at least 1): the frame counts the causal VAE can hold."""
    return max(1, (num_frames - 1) // 4 * 4 + 1)


def latent_frames(num_frames: int) -> int:
    """Latent frames of `num_frames` pixel frames (4n + 1)."""
    return (num_frames - 1) // VAE_STRIDE[0] + 1


@dataclass(frozen=True)
class VideoGeometry:
    """Size of one window of video.

    Args:
        width, height: pixels, multiples of 16, at most 8192 and 16.8 million in all.
        num_frames: pixel frames, 4n + 1.
    Raises:
        InputError: for any other value.
    """

    width: int
    height: int
    num_frames: int

    def __post_init__(self) -> None:
        for name in ("width", "height", "num_frames"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MOST_FRAMES:
                raise InputError(
                    f"{name} {checks.brief(value)} is no whole number of everyday size. Give one, without quotes."
                )
        for name in ("width", "height"):
            value = getattr(self, name)
            if value < SIZE_MULTIPLE or value > MAX_SIDE or value % SIZE_MULTIPLE:
                below = min(max(value // SIZE_MULTIPLE, 1) * SIZE_MULTIPLE, MAX_SIDE)
                above = min(below + SIZE_MULTIPLE, MAX_SIDE)
                raise InputError(
                    f"{name} {value} is not usable: it must be a multiple of {SIZE_MULTIPLE} "
                    f"from {SIZE_MULTIPLE} to {MAX_SIDE}. Use {below} or {above}."
                )
        if self.width * self.height > MAX_PIXELS:
            raise InputError(
                f"size {self.width}x{self.height} has {self.width * self.height / 1e6:.0f} million pixels, at most "
                f"{MAX_PIXELS / 1e6:.0f} are taken. Use a smaller one."
            )
        if self.num_frames < 1 or self.num_frames % 4 != 1:
            below = snap_frames(self.num_frames)
            raise InputError(
                f"num_frames {self.num_frames} is not usable: a window holds 4n + 1 frames. Use {below} or {below + 4}."
            )

    @property
    def latent_frames(self) -> int:
        return latent_frames(self.num_frames)

    @property
    def latent_height(self) -> int:
        return self.height // VAE_STRIDE[1]

    @property
    def latent_width(self) -> int:
        return self.width // VAE_STRIDE[2]

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        return LATENT_CHANNELS, self.latent_frames, self.latent_height, self.latent_width

    @property
    def tokens_per_frame(self) -> int:
        return (self.latent_height // PATCH) * (self.latent_width // PATCH)

    @property
    def num_tokens(self) -> int:
        return self.latent_frames * self.tokens_per_frame


@dataclass(frozen=True)
class WindowSpan:
    """Where one window lies in the whole video; all ranges are [start, stop) in pixel frames.

    A window always samples `start .. stop`; it adds `new_start .. new_stop` to the video, which ends at the plan's
    total where that is known, or at a cut. Audio features have one entry a frame, so the audio range is the same as the
    pixel range.
    """

    index: int
    start: int
    stop: int
    new_start: int
    new_stop: int

    @property
    def num_new(self) -> int:
        return self.new_stop - self.new_start

    @property
    def begins_scene(self) -> bool:
        """Whether it repeats no frames of the window before: the video's first window, and the first after a cut."""
        return self.new_start == self.start


@dataclass(frozen=True)
class WindowPlan:
    """How a video is cut into overlapping windows.

    A plan without a known end goes on for as long as it is iterated, and has no len().

    Args:
        total_frames: frames of the finished video, at least 1; None while that is not known (live audio).
        window: frames a window samples, 4n + 1.
        overlap: leading frames of a later window that repeat the previous one, 4n + 1 and below `window`.
        cuts: frames other than 0 where a scene begins, rising. A scene's first window begins there and repeats nothing,
            its last one ends at the next cut, so windows never reach over one.
    Source: the loop of MultiTalk / InfiniteTalk: 1 + ceil((total - window) / (window - overlap)) windows.
    """

    total_frames: int | None
    window: int = DEFAULT_WINDOW
    overlap: int = DEFAULT_OVERLAP
    cuts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.total_frames is not None and self.total_frames < 1:
            raise InputError(f"The video would have {self.total_frames} frames, at least 1 is needed. Give more sound.")
        for name in ("window", "overlap"):
            value = getattr(self, name)
            checks.number(name, value, -MOST_FRAMES, MOST_FRAMES, whole=True)
            if value < 1 or value % 4 != 1:
                below = snap_frames(value)
                raise InputError(f"{name} {value} is not usable: it must be 4n + 1. Use {below} or {below + 4}.")
        if self.overlap >= self.window:
            raise InputError(
                f"motion_frame {self.overlap} must be smaller than the window of {self.window} frames, "
                f"or the video would never advance. Use 9 (InfiniteTalk) or 25 (MultiTalk)."
            )

        if self.cuts and (self.total_frames is None or any(a >= b for a, b in self._scenes())):
            raise InputError(
                f"The cuts {list(self.cuts)} do not rise inside of a video of {self.total_frames} frames. "
                "Give rising frames from 1 on, below its length."
            )

    @property
    def stride(self) -> int:
        return self.window - self.overlap

    @property
    def num_windows(self) -> int | None:
        """None while the video's length is not known."""
        if self.total_frames is None:
            return None
        first, start, stop = self._scene_table[-1]
        return first + self._windows_of(stop - start)

    def start_of(self, index: int) -> int:
        """The frame where window `index` begins; beyond the last one, where it would."""
        first, scene_start, _ = self._scene_of(index)
        return scene_start + (index - first) * self.stride

    def scene_first(self, index: int) -> int:
        """The window that begins the scene of window `index`."""
        return self._scene_of(index)[0]

    def _scene_of(self, index: int) -> tuple[int, int, int | None]:
        """The first window of a window's scene, and the frames where the scene begins and ends."""
        if self.total_frames is None:
            return 0, 0, None
        scene = bisect_right(self._scene_table, index, key=lambda scene: scene[0]) - 1
        return self._scene_table[max(0, scene)]

    @cached_property
    def _scene_table(self) -> list[tuple[int, int, int]]:
        """As `_scene_of`, of every scene of a video of known length; a film has thousands."""
        table, first = [], 0
        for start, stop in self._scenes():
            table.append((first, start, stop))
            first += self._windows_of(stop - start)
        return table

    def _scenes(self) -> Iterator[tuple[int, int]]:
        """First frame and end of every scene, of a video of known length."""
        return itertools.pairwise((0, *self.cuts, self.total_frames or 0))

    def _windows_of(self, num_frames: int) -> int:
        return 1 + math.ceil(max(0, num_frames - self.window) / self.stride)

    def __len__(self) -> int:
        if self.num_windows is None:
            raise TypeError("a plan of unknown length has no len(); ask for num_windows")
        return self.num_windows

    def __bool__(self) -> bool:
        return True  # also where len() is not known; there is always a first window

    def __contains__(self, index: object) -> bool:
        """Whether there is a window of this index, as far as is known."""
        return isinstance(index, int) and index >= 0 and (self.num_windows is None or index < self.num_windows)

    def __getitem__(self, index: int) -> WindowSpan:
        if index not in self:
            raise IndexError(f"window {index} of {self.num_windows or 'an open number'}")
        first, _, scene_stop = self._scene_of(index)
        start = self.start_of(index)
        stop = start + self.window
        new_start = start + self.overlap if index > first else start
        return WindowSpan(index, start, stop, new_start, min(stop, scene_stop or stop))

    def __iter__(self) -> Iterator[WindowSpan]:
        indices = itertools.count() if self.num_windows is None else range(self.num_windows)
        return (self[index] for index in indices)


def frames_of(duration_s: float, fps: float = FPS) -> int:
    """Frames of a video that lasts as long as `duration_s` seconds of sound; at least one."""
    return max(1, round(duration_s * fps))


# Height x width; the bucket with the nearest ratio height / width is taken. These are the tables ASPECT_RATIO_627 and
# ASPECT_RATIO_960 of the reference, and the widescreen sizes, lying and standing, that the first one lacks.
SIZE_BUCKETS: dict[str, tuple[tuple[int, int], ...]] = {
    "infinitetalk-480": (
        (320, 1216), (384, 1024), (448, 896), (448, 832), (480, 832), (512, 768), (576, 704), (640, 640), (704, 576),
        (768, 512), (832, 448), (832, 480), (896, 448), (960, 384), (1088, 384), (1152, 320), (1216, 320), (1280, 320),
    ),
    "infinitetalk-720": (
        (448, 2048), (512, 1792), (576, 1600), (640, 1408), (704, 1280), (768, 1216), (832, 1088), (896, 1024),
        (960, 960), (1024, 896), (1088, 832), (1152, 768), (1216, 768), (1280, 704), (1344, 704), (1408, 640),
        (1472, 640), (1536, 576), (1664, 576), (1856, 512), (1920, 512),
    ),
}  # fmt: skip


def bucket_size(name: str, width: int, height: int) -> tuple[int, int]:
    """(width, height) of the bucket of table `name` whose shape is nearest to a picture of `width` x `height`."""
    if name not in SIZE_BUCKETS:
        raise InputError(f"size {name!r} is not known. Use one of {', '.join(SIZE_BUCKETS)} or WIDTHxHEIGHT.")
    ratio = height / width
    best_height, best_width = min(SIZE_BUCKETS[name], key=lambda size: abs(size[0] / size[1] - ratio))
    return best_width, best_height


def parse_size(text: str) -> tuple[int, int] | str:
    """`832x480` -> (832, 480); a table's name (`infinitetalk-480`) -> itself; multitalk-* mean the same."""
    checks.text("size", text, 100)
    name = text.strip().lower().replace("multitalk-", "infinitetalk-")
    if name in SIZE_BUCKETS:
        return name
    parts = name.replace("*", "x").split("x")
    if len(parts) == 2 and all(re.fullmatch(r" *[0-9]{1,6} *", part) for part in parts):
        width, height = (int(part) for part in parts)
        VideoGeometry(width, height, 1)
        return width, height
    raise InputError(
        f"size {checks.brief(text)} is not usable. Use infinitetalk-480, infinitetalk-720 or WIDTHxHEIGHT (832x480)."
    )
