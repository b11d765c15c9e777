"""The finished video: encoded once, as the frames come, and playable at every moment.

Frames go to a hidden part file beside the result, a fragmented mp4 that a killed process leaves playable. Closing the
writer copies its packets into an ordinary mp4, adds the sound, and gives it its name in one step.
Legend: F frames, H W rows and columns.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import torch
from av.video.reformatter import Colorspace
from torch import Tensor

from ..errors import InputError, OutputError
from .reader import SAMPLING
from .soundtrack import Soundtrack, add_soundtrack

PRESET = "medium"
MAX_CRF = 51
KEYFRAME_S = 4.0
FLUSH_S = 2.0
# Every frame is a fragment of its own and goes to the disk at once; the encoder and the buffer hold nothing back.
PLAYABLE = {"movflags": "empty_moov+default_base_moof+frag_every_frame", "flush_packets": "1"}
REC_709 = 1
LIMITED_RANGE = 1
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

log = logging.getLogger("wanvideo")


class VideoPart:
    """One mp4 without sound that can be played at any moment, even while it is written.

    Args:
        path: of the file; its folder exists. width, height: pixels, even. fps: frames a second.
        crf: x264's quality, 0 (lossless) to 51; 18 is visually clean.
    Raises: InputError for another crf, OutputError when the file cannot be made or the disk is full.
    """

    def __init__(self, path: str | Path, width: int, height: int, fps: float, crf: int = 18) -> None:
        if not isinstance(crf, int) or not 0 <= crf <= MAX_CRF:
            raise InputError(f"crf {crf!r} is not usable: it must be a whole number from 0 (lossless) to {MAX_CRF}.")
        self.path, self.width, self.height, self.crf = Path(path), width, height, crf
        self.rate = frame_rate(fps)
        self.num_frames = 0
        try:
            self._container = av.open(str(self.path.absolute()), "w", format="mp4", options=PLAYABLE)
            self._stream = self._container.add_stream("libx264", rate=self.rate)
        except (av.FFmpegError, OSError) as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}. Choose another folder.") from None
        self._encoder = self._configure(self._stream.codec_context)
        self._since_flush = 0
        self._is_open = True

    def write(self, frames: Tensor | np.ndarray) -> None:
        """Append frames. Of two seconds or more, all but the last frame are on disk when this returns.

        Args:
            frames: [F, H, W, 3] uint8, on any device.
        Raises: InputError for other shapes and types, OutputError when the disk is full.
        """
        pixels = frames.detach().cpu().numpy() if isinstance(frames, torch.Tensor) else np.asarray(frames)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (self.height, self.width, 3):
            raise InputError(
                f"Frames {list(pixels.shape)} of {pixels.dtype} do not fit the video. "
                f"Give [F, {self.height}, {self.width}, 3] of uint8."
            )
        with self._failures():
            for picture in pixels:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24").reformat(
                    format="yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=SAMPLING
                )
                frame.pts, frame.time_base = self.num_frames, 1 / self.rate
                self._mux(self._encoder.encode(frame))
                self.num_frames += 1
                self._since_flush += 1
            if self._since_flush >= FLUSH_S * self.rate:
                self._flush()

    def close(self) -> None:
        """Write what the encoder still holds and finish the file. Further calls do nothing."""
        if not self._is_open:
            return
        with self._failures():
            if self._since_flush:
                self._mux(self._encoder.encode(None))
            self._is_open = False
            self._container.close()

    def _flush(self) -> None:
        """Empty the encoder, which holds back dozens of frames; the next ones start with a key frame."""
        self._mux(self._encoder.encode(None))
        self._encoder = self._configure(av.CodecContext.create("libx264", "w"))
        self._since_flush = 0

    def _configure(self, encoder: av.VideoCodecContext) -> av.VideoCodecContext:
        encoder.width, encoder.height, encoder.pix_fmt = self.width, self.height, "yuv420p"
        encoder.framerate, encoder.time_base = self.rate, 1 / self.rate
        encoder.gop_size = max(1, round(KEYFRAME_S * self.rate))
        encoder.color_primaries = encoder.color_trc = encoder.colorspace = REC_709
        encoder.color_range = LIMITED_RANGE
        encoder.flags |= int(av.codec.context.Flags.global_header)
        # swscale centers chroma between pixels; untagged H.264 would be shown with it half a pixel to the left.
        # With its macroblock tree x264 reads memory it never wrote on processors with AVX-512: no two files were alike.
        encoder.options = {"crf": str(self.crf), "preset": PRESET, "mbtree": "0", "chroma_sample_location": "center"}
        return encoder

    def _mux(self, packets: Sequence[av.Packet]) -> None:
        for packet in packets:
            packet.stream = self._stream
            self._container.mux(packet)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            self._is_open = False
            with contextlib.suppress(av.FFmpegError, OSError):
                self._container.close()
            raise OutputError(
                f"{_cause(error)} after {self.num_frames} frames. What was finished can be played: {self.path}"
            ) from None


class VideoWriter:
    """Write a video file while its frames are made; memory does not grow with its length.

    As a context manager it closes at the end; when the body fails, the part that was written stays, and the log says
    where. An existing file is never touched unless `overwrite`.
    Args:
        path: of the mp4; missing folders are made. width, height: pixels. fps: frames a second.
        audio: the sound, cut or filled with silence to the length of the pictures; None for a silent film.
        crf: x264's quality, 0 (lossless) to 51.
    Raises: OutputError when nothing can be written there, InputError for a sound file that cannot be used.
    """

    def __init__(
        self, path: str | Path, width: int, height: int, fps: float,
        *, audio: Soundtrack | None = None, crf: int = 18, overwrite: bool = False,
    ) -> None:  # fmt: skip
        self.path = check_output(path, overwrite)
        self.audio, self.overwrite = audio, overwrite
        self._part = VideoPart(_hidden(self.path, "partial"), width, height, fps, crf)
        self._is_closed = False

    @property
    def partial(self) -> Path:
        """The part file, playable while the video grows."""
        return self._part.path

    @property
    def num_frames(self) -> int:
        return self._part.num_frames

    def write(self, frames: Tensor | np.ndarray) -> None:
        """Append frames, [F, H, W, 3] uint8 (see VideoPart.write)."""
        self._part.write(frames)

    def close(self) -> Path:
        """Finish the file and return its path: another, free name if someone took the wanted one meanwhile."""
        if not self._is_closed:
            self._part.close()
            self._is_closed = True
            if not self.num_frames:
                self.partial.unlink(missing_ok=True)
                raise OutputError(f"No frame was written, so there is no video {self.path}.")
            self.path = join_parts(
                [self.partial], self.path, self._part.rate, audio=self.audio, overwrite=self.overwrite
            )
            self.partial.unlink(missing_ok=True)
        return self.path

    def abandon(self) -> None:
        """Stop without a result; the part file stays if it holds anything."""
        if self._is_closed:
            return
        self._is_closed = True
        self._part.close()
        if self.num_frames:
            log.warning("The video was not finished. Its first %d frames are in %s", self.num_frames, self.partial)
        else:
            self.partial.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abandon()


def join_parts(
    parts: Sequence[str | Path], path: str | Path, fps: float | Fraction,
    *, audio: Soundtrack | None = None, overwrite: bool = False,
) -> Path:  # fmt: skip
    """One mp4 from parts of a video, without encoding a picture again.

    Args:
        parts: files that VideoPart finished, in order, of one size, rate and quality. They are left as they are.
        path: of the result. fps: frames a second. audio: as for VideoWriter.
    Returns: the path of the result: a free name beside `path` if that exists and is not to be overwritten.
    Raises: OutputError when the parts do not belong together or the disk is full; the parts remain.
    """
    path, rate = Path(path), frame_rate(fps)
    finishing = _hidden(path, "finishing")
    try:
        with av.open(str(finishing.absolute()), "w", format="mp4", options={"movflags": "faststart"}) as output:
            _mux_parts([Path(part) for part in parts], output, rate, audio)
        return _publish(finishing, path, overwrite)
    except (av.FFmpegError, OSError, InputError) as error:
        where = ", ".join(str(part) for part in parts[:3]) + (" ..." if len(parts) > 3 else "")
        raise OutputError(f"{_cause(error)} while {path} was put together. All its pictures are in {where}") from None
    finally:
        finishing.unlink(missing_ok=True)


def check_output(path: str | Path, overwrite: bool = False) -> Path:
    """Make sure, before anything is computed, that a video can be written to `path`; missing folders are made.

    Returns: the path.
    Raises: OutputError for another suffix than .mp4, an existing file (unless `overwrite`), or a folder that cannot be
        made or written to.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise OutputError(f"{path} cannot be written: the video is an mp4. Use {path.with_suffix('.mp4')}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent, prefix="."):
            pass
        with contextlib.suppress(FileNotFoundError):
            path.lstat()
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}. Choose another folder or name.") from None
    if path.is_dir():
        raise OutputError(f"{path} is a folder. Use {free_name(path)}")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists and is left as it is. Use {free_name(path)}, or allow overwriting.")
    return path


def free_name(path: str | Path) -> Path:
    """`path` itself if nothing is there, else with the first free number: clip.mp4, clip_2.mp4, clip_3.mp4."""
    path, number = Path(path), 1
    free = path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}_{number}")
    return free


def frame_rate(fps: float | Fraction) -> Fraction:
    """The exact rate that a rounded number of frames a second stands for: 29.97 -> 2997/100."""
    return Fraction(fps).limit_denominator(1001)


def _mux_parts(
    parts: list[Path], output: av.container.OutputContainer, rate: Fraction, audio: Soundtrack | None
) -> None:
    with av.open(str(parts[0].absolute())) as first:
        template = first.streams.video[0]
        extradata = bytes(template.codec_context.extradata or b"")
        video = output.add_stream_from_template(template, opaque=True)
    num_frames = [_count(part) for part in parts]
    duration_s = sum(num_frames) / rate
    streams = [_packets(parts, num_frames, video, rate, extradata)]
    if audio:
        streams.append(add_soundtrack(output, audio, duration_s))
    for packet in heapq.merge(*streams, key=lambda packet: packet.dts * packet.time_base):
        output.mux(packet)


def _count(part: Path) -> int:
    with av.open(str(part.absolute())) as container:
        return sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)


def _packets(
    parts: list[Path], num_frames: list[int], video: av.VideoStream, rate: Fraction, extradata: bytes
) -> Iterator[av.Packet]:
    """Packets of all parts on one time line that starts at 0."""
    start, last_dts = 0, None
    for part, count in zip(parts, num_frames, strict=True):
        with av.open(str(part.absolute())) as container:
            stream = container.streams.video[0]
            if bytes(stream.codec_context.extradata or b"") != extradata:
                raise OutputError(f"{part} was encoded with other settings than {parts[0]}; they cannot be joined.")
            shift = None
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if shift is None:
                    shift = round(start / rate / stream.time_base) - packet.pts
                packet.pts += shift
                packet.dts += shift
                # A part of one or two frames has no decoding delay, the next one starts with it again.
                if last_dts is not None and packet.dts <= last_dts:
                    packet.dts = last_dts + 1
                last_dts = packet.dts
                packet.stream = video
                yield packet
        start += count


def _publish(finished: Path, path: Path, overwrite: bool) -> Path:
    """Give the finished file its name in one step, without ever replacing another file unasked."""
    if overwrite:
        finished.replace(path)
        return path
    while True:
        free = free_name(path)
        try:
            os.link(finished, free)
        except FileExistsError:
            continue
        except OSError:
            # File systems without hard links: the name was free a moment ago.
            finished.rename(free)
        if free != path:
            log.warning("%s was taken while the video was made; it is saved as %s", path, free)
        return free


def _hidden(path: Path, what: str) -> Path:
    return path.with_name(f".{path.stem[:100]}.{what}-{secrets.token_hex(3)}.mp4")


def _cause(error: Exception) -> str:
    if getattr(error, "errno", None) in FULL:
        return "The disk is full"
    return f"Writing failed ({getattr(error, 'strerror', None) or error})"
