"""Videos: what a file holds, and its frames by time.

Legend: H W rows and columns; frames are uint8 [H, W, 3] RGB numpy arrays, times are seconds from the first frame.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path
from types import TracebackType
from typing import cast

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorRange, Colorspace

from ..audio.container import MAX_FRAME_PIXELS, decodable, tick_s
from ..errors import InputError
from ..keep import WHOLE, Trim
from ..untrusted import answered
from .animation import AnimatedPicture, is_animated_webp
from .packets import (
    WHAT,
    meant_packets,
    open_video,
    packets_of,
    read_length,
    stated_duration_s,
    stated_start_s,
    video_length,
    video_stream,
)
from .picture import identify, load_picture
from .tone import PRIMARIES_BT709, Range, range_of, to_sdr

FORWARD_S = 8.0  # up to here decoding on is cheaper than a jump back to a key frame
SEEK_MARGINS_S = (0.0, 2.0, 15.0)  # containers whose index is by decoding time, or rough, need a second try
ANIMATED = ("GIF", "PNG", "WEBP")
# swscale: bicubic, accurate rounding, full chroma in and out; its default darkens pictures by more than one level.
SAMPLING = 0x4 | 0x40000 | 0x2000 | 0x4000
UNSPECIFIED, NCL_BT2020 = 2, 9
FPS_TOLERANCE = 0.02
EXACT_S = 1e-6  # by which equal times differ as floats
SLICED_PIXELS = 9_000_000  # of larger frames no more than one is decoded at once, which would cost memory
SD_LINES = 576  # untagged video of more lines is Rec. 709, else Rec. 601

log = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds; the audio's fields are None where it has none.

    audio_start_s: when its sound begins, from the first frame on; less than 0 where it begins before.
    """

    frames: int
    duration_s: float
    fps: float
    width: int
    height: int
    audio_duration_s: float | None
    audio_channels: int | None
    audio_rate: int | None
    audio_start_s: float | None


def probe(path: str | Path) -> VideoInfo:
    """Read a video's size, length and sound; frames are counted where the file does not state them.

    Raises: InputError when the file is missing or holds no video.
    """
    path = Path(path)
    with answered(str(path)), closing(open_video(path)) as container:
        video, audio = video_stream(container, path), decodable(container.streams.audio)
        frames, duration_s = video_length(path, video)
        if not frames or not duration_s:
            raise InputError(f"{path} holds no frame of video. Its end may be missing: save it again.")
        audio_s = (stated_duration_s(audio) or read_length(path, "audio")[1]) if audio else None
        stated, measured = float(video.average_rate or 0), frames / duration_s
        return VideoInfo(
            frames=frames, duration_s=duration_s,
            fps=stated if abs(stated - measured) < FPS_TOLERANCE * measured else measured,
            width=video.codec_context.width, height=video.codec_context.height, audio_duration_s=audio_s,
            audio_channels=audio.codec_context.channels if audio else None,
            audio_rate=audio.codec_context.sample_rate if audio else None,
            audio_start_s=stated_start_s(audio) - stated_start_s(video) if audio else None,
        )  # fmt: skip


def is_video(path: str | Path) -> bool:
    """Whether a file is a video (or an animation) rather than a still picture; decided by its content.

    Raises: InputError when it is missing or neither.
    """
    path = Path(path)
    image = identify(path, WHAT)
    if image is not None:
        with answered(str(path)), image:
            return image.format in ANIMATED and getattr(image, "is_animated", False)
    with answered(str(path)), closing(open_video(path)) as container:
        video_stream(container, path)
    return True


def open_frames(path: str | Path, trim: Trim = WHOLE) -> VideoFrames | AnimatedPicture:
    """The frames of a video or an animation by their time. Args: as of `VideoFrames`. Raises: InputError."""
    image = identify(Path(path), WHAT)
    if image is not None:
        with answered(str(path)), image:
            if is_animated_webp(image):
                if not trim.is_whole:
                    raise InputError(f"{path} is an animated WebP, which is not trimmed here. Convert it to mp4 first.")
                return AnimatedPicture(path)
    return VideoFrames(path, trim)


def picture_size(path: str | Path) -> tuple[int, int]:
    """Width and height, as seen, of a picture or of a video's frames.

    Raises: InputError when the file is missing or neither a picture nor a video.
    """
    if is_video(path):
        with closing(open_frames(path)) as video:
            return video.size
    height, width = load_picture(path).shape[:2]
    return width, height


class VideoFrames:
    """Frames of a video by their time, however they are coded and spaced; one frame is held at a time.

    Args:
        path: any container and codec that FFmpeg reads; turned as its display matrix says, pixels made square.
        trim: the part that is meant; times count from its first frame, and frames beside it do not exist.
    Raises: InputError when the file is missing, holds no video, or not one frame of it can be decoded.
    """

    def __init__(self, path: str | Path, trim: Trim = WHOLE) -> None:
        self.path, self._trim = Path(path), trim
        self._is_damaged, self._stop_s = False, math.inf
        with answered(str(path)):
            self._start()
            self._begin_s = self._current[0]
            if not trim.is_whole:
                self._enter()
        self._first_s = self._current[0]
        self._slack_s = _slack_s(self._stream, self._first_s)
        height, width = self.frame_at(0.0).shape[:2]
        self.size: tuple[int, int] = (width, height)

    def __enter__(self) -> VideoFrames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    @property
    def duration_s(self) -> float:
        return self._length[1]

    @property
    def num_frames(self) -> int:
        return self._length[0]

    @cached_property
    def _length(self) -> tuple[int, float]:
        with answered(str(self.path)), closing(open_video(self.path)) as container:
            stream = video_stream(container, self.path)
            if self._trim.is_whole:
                return video_length(self.path, stream)
            return read_length(self.path, "video", self._trim)

    def frame_at(self, time_s: float) -> np.ndarray:
        """The frame on screen at a time: before the start the first one, after the end the last one.

        Returns: [H, W, 3] uint8.
        """
        target = self._first_s + max(time_s, 0.0) + self._slack_s
        with answered(str(self.path)):
            if not (self._current[0] <= target < self._current[0] + FORWARD_S or self._is_behind_end(target)):
                self._seek(target)
            while self._next is not None and self._next[0] <= target:
                self._advance()
            return self._to_rgb(self._current[1])

    def _is_behind_end(self, target: float) -> bool:
        """Whether the frame that is held is the last one, and `target` later than all: there is nothing to look for."""
        length, begin = self._container.duration, self._container.start_time or 0
        end_s = math.inf if length is None else (begin + length) / av.time_base
        return self._next is None and self._current[0] <= target and target >= min(end_s, self._stop_s)

    def index_at(self, time_s: float) -> int:
        """The number, from 0, of the frame that is on screen at a time; all are looked through at the first call."""
        return max(int(np.searchsorted(self._times, max(time_s, 0.0) + self._slack_s, "right")) - 1, 0)

    @cached_property
    def _times(self) -> np.ndarray:
        """[n]: seconds of every frame from the first one on, evenly where the file has no times."""
        with answered(str(self.path)), closing(open_video(self.path)) as container:
            stream = video_stream(container, self.path)
            stamps = [stamp for stamp, packet in meant_packets(container, stream, self._trim) if packet.size]
        if None in stamps:
            return np.arange(self.num_frames) * (self.duration_s / max(self.num_frames, 1))
        times: np.ndarray = np.sort(np.array(stamps, np.float64)) * float(tick_s(self._stream)) - self._first_s
        return times

    def _start(self) -> None:
        self._container = open_video(self.path)
        self._stream = video_stream(self._container, self.path)
        context = self._stream.codec_context
        self._check_size(context.width, context.height)
        context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
        context.thread_type = "AUTO" if context.width * context.height <= SLICED_PIXELS else "SLICE"
        self._decoder = self._decode()
        first = self._upcoming()
        if first is None:
            self._container.close()
            raise InputError(f"No frame of {self.path} can be decoded. Convert it to H.264 mp4 and try again.")
        self._current, self._next = first, self._upcoming()

    def _enter(self) -> None:
        """Go to the first frame of the part that is meant."""
        tick = tick_s(self._stream)
        start, stop = (float(ticks * tick) for ticks in self._trim.ticks(tick))
        if start >= self._current[0] + FORWARD_S:
            self._seek(start)
        while self._current[0] < start and self._next is not None:
            self._advance()
        if not start <= self._current[0] < stop:
            self._container.close()
            raise InputError(
                f"{self.path} has no frame in what it is trimmed to, from {self._trim.start_s:g} s on. "
                "Let it start earlier, or last longer."
            )
        self._stop_s = stop
        if self._next is not None and self._next[0] >= stop:
            self._next = None

    def _seek(self, target: float) -> None:
        """Continue at or before `target`: at a key frame, or from the start where the container cannot jump."""
        for margin in SEEK_MARGINS_S:
            position = target - margin
            if position <= self._begin_s:
                break
            try:
                self._container.seek(int(position / tick_s(self._stream)), stream=self._stream)
            except av.FFmpegError:
                break
            self._decoder = self._decode()
            self._next = self._upcoming()
            if self._next is not None and self._next[0] <= target:
                self._advance()
                return
        self._container.close()
        self._start()

    def _advance(self) -> None:
        """To the next frame, if there is one."""
        if self._next is not None:
            self._current, self._next = self._next, self._upcoming()

    def _upcoming(self) -> tuple[float, av.VideoFrame] | None:
        """The next frame of the part that is meant; None behind its last one."""
        found = next(self._decoder, None)
        return found if found is not None and found[0] < self._stop_s else None

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """(time, frame) in order of presentation; damaged packets are passed over, as players do."""
        time_s, step_s = 0.0, 1 / float(self._stream.average_rate or self._stream.guessed_rate or 25)
        tick = tick_s(self._stream)
        for packet in packets_of(self._container, self._stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if not self._is_damaged:
                    log.warning("%s is damaged near %.1f s; what cannot be decoded is passed over.", self.path, time_s)
                self._is_damaged = True
                continue
            for frame in frames:
                stamp = frame.pts if frame.pts is not None else frame.dts
                time_s = time_s + step_s if stamp is None else float(stamp * tick)
                yield time_s, frame

    def _to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        aspect = self._stream.sample_aspect_ratio
        width = max(1, round(frame.width * aspect)) if aspect else frame.width
        self._check_size(width, frame.height)
        kind = self._range_of()
        colorspace = None
        if int(frame.colorspace) == UNSPECIFIED:
            if kind is Range.SDR:
                colorspace = Colorspace.ITU709 if frame.height > SD_LINES else Colorspace.ITU601
            else:
                frame.colorspace = NCL_BT2020
        picture = frame.reformat(
            width, frame.height, "rgb24" if kind is Range.SDR else "rgb48le", src_colorspace=colorspace,
            src_color_range=frame.color_range or None, dst_color_range=ColorRange.JPEG, interpolation=SAMPLING,
        ).to_ndarray()  # fmt: skip
        if kind is not Range.SDR:
            picture = to_sdr(picture, kind, is_wide=self._stream.codec_context.color_primaries != PRIMARIES_BT709)
        turns = round(frame.rotation / 90)
        if _is_mirrored(frame):
            picture, turns = picture[:, ::-1], turns + 2
        return np.ascontiguousarray(np.rot90(picture, turns % 4))

    def _range_of(self) -> Range:
        context = self._stream.codec_context
        kind = range_of(int(context.color_trc), int(context.color_primaries))
        if kind is not Range.SDR:
            _say_range(str(self.path), kind.value)
        return kind

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_FRAME_PIXELS:
            raise InputError(
                f"A frame of {self.path} has {width}x{height} pixels. At most {MAX_FRAME_PIXELS / 1e6:.0f} million are "
                "read (8K): scale it down, or mend the shape that it gives to its pixels."
            )


def _slack_s(stream: av.VideoStream, first_s: float) -> float:
    """How much later than it is shown a frame may be stamped, after a first one at `first_s`.

    Containers round times to their tick, which moves the first frame as well where it is not at 0: together by less
    than a tick. Those that tick once or twice a frame have nothing to round.
    """
    tick = tick_s(stream)
    if tick * (stream.average_rate or 0) >= Fraction(1, 2):
        return EXACT_S
    return float(tick) * (0.95 if first_s else 0.5)


def _is_mirrored(frame: av.VideoFrame) -> bool:
    """Whether the display matrix turns a frame's left to its right, as cameras for self-portraits have it."""
    try:
        # PyAV's own annotation knows of motion vectors only.
        matrix = cast(SideDataContainer, frame.side_data)[SideDataType.DISPLAYMATRIX]
    except (KeyError, ValueError):  # it has none, or side data of a kind that PyAV has no name for
        return False
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    return bool(a * d < b * c)


@cache
def _say_range(name: str, kind: str) -> None:
    log.info("%s is %s video; its colors are brought to BT.709 SDR.", name, kind)
