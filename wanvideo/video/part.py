"""The video while it grows: one file that can be played, with its sound, whenever its process or machine stops.

Legend: F frames, H W rows and columns.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import math
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import torch
from av.video.reformatter import Colorspace
from torch import Tensor

from ..audio.container import open_container
from ..durable import BINARY, NO_LINK, write_all
from ..errors import InputError, OutputError, ResumeError
from ..keep import CRF, MAX_CRF
from .fragments import Sample, Track, fragment
from .reader import SAMPLING
from .soundtrack import Soundtrack, encode_soundtrack

if TYPE_CHECKING:
    Picture = av.Packet[av.VideoStream]

PRESET = "medium"
KEYFRAME_S = 4.0
# Frames that x264 decodes ahead of showing them; video and sound begin so much later, as no file has negative times.
DELAY = 2
REC_709 = 1
LIMITED_RANGE = 1
AAC_SAMPLES = 1024
COPIED_AT_ONCE = 500  # pictures, some 10 MB
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Position:
    """How far a growing file is: frames in it, and its bytes up to there."""

    num_frames: int
    num_bytes: int


class VideoPart:
    """A growing mp4. What a write appends is on the disk as a whole, or cut off when the file is closed.

    Its sound is AAC, whatever it was before; finishing the video copies the original where it can.
    Args:
        path: of the file; its folder exists. width, height: pixels, even. fps: frames a second.
        crf: x264's quality, 0 (lossless) to 51; 18 is visually clean.
        audio, num_frames: the sound, and how many frames the whole video will have; None for a silent file.
        position: to go on from there with the same arguments; what the file holds beyond is cut off.
    Raises: InputError for another crf, ResumeError for a file that it cannot go on with, OutputError when the file
        cannot be made, or the disk is full.
    """

    def __init__(
        self, path: str | Path, width: int, height: int, fps: float, crf: int = CRF, *,
        audio: Soundtrack | None = None, num_frames: int | None = None, position: Position | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(crf, int) or not 0 <= crf <= MAX_CRF:
            raise InputError(
                f"crf {crf!r} is not usable: it must be a whole number from 0 (lossless) to {MAX_CRF}. Use {CRF}."
            )
        self.path, self.width, self.height, self.crf = Path(path), width, height, crf
        self.rate = frame_rate(fps)
        self._file: int | None = None
        header = self._make_header(audio, num_frames)
        self.position = position or Position(0, len(header))
        try:
            self._open(header, position)
        except OSError as error:
            self._release()
            raise OutputError(f"{self.path} cannot be written: {error.strerror}. Choose another folder.") from None
        if position:
            for _ in self._sound_until(position.num_frames):
                pass

    @property
    def num_frames(self) -> int:
        """Frames that can be played."""
        return self.position.num_frames

    def write(self, frames: Tensor | np.ndarray) -> None:
        """Append frames; they, and the sound up to their end, are on the disk when this returns.

        Args:
            frames: [F, H, W, 3] uint8, on any device. Encoding begins anew with each call, so give windows.
        Raises: InputError for other shapes and types, OutputError when the disk is full or the file was removed.
        """
        pixels = frames.detach().cpu().numpy() if isinstance(frames, torch.Tensor) else np.asarray(frames)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (self.height, self.width, 3):
            raise InputError(
                f"Frames {list(pixels.shape)} of {pixels.dtype} do not fit the video. "
                f"Give [F, {self.height}, {self.width}, 3] of uint8."
            )
        if len(pixels):
            try:
                self._put(self._encode(pixels))
            except (av.FFmpegError, OSError) as error:
                raise OutputError(
                    f"{cause_of(error)} after {self.num_frames} frames. Take what was finished from {self.path}"
                ) from None

    def copy_from(self, video: str | Path, num_frames: int) -> None:
        """Append the first frames of a finished video of the same making, as they are coded there, with the own sound.

        Args: num_frames: up to the end of one of its windows.
        Raises: ResumeError when the video has fewer or cannot be read, OutputError when there is no room.
        """
        try:
            with open_container(video, "the video of a run") as container:
                packets = (packet for packet in container.demux(container.streams.video[0]) if packet.size)
                while some := [self._sample(packet) for packet in itertools.islice(packets, self._room(num_frames))]:
                    self._put(some)
        except InputError as error:
            raise ResumeError(str(error)) from None
        except (av.FFmpegError, OSError, struct.error) as error:
            said = f"{cause_of(error)} while {video} was continued in {self.path}"
            if getattr(error, "errno", None) in FULL:
                raise OutputError(f"{said}. Make room.") from None
            raise ResumeError(f"{said}. Make it anew.") from None
        if self.num_frames != num_frames:
            raise ResumeError(f"{video} has {self.num_frames} frames, {num_frames} were expected. Make it anew.")

    def _room(self, num_frames: int) -> int:
        return max(0, min(COPIED_AT_ONCE, num_frames - self.num_frames))

    def _sample(self, packet: Picture) -> Sample:
        delay = ((packet.pts or 0) - (packet.dts or 0)) * (packet.time_base or Fraction(1)) * self.rate
        return Sample(bytes(packet), self._ticks, round(delay) * self._ticks, packet.is_keyframe)

    def close(self) -> None:
        """Cut off what an interrupted write left, and close the file. Further calls do nothing."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                if os.fstat(self._file).st_size > self.position.num_bytes:
                    os.ftruncate(self._file, self.position.num_bytes)
            self._release()

    def _open(self, header: bytes, position: Position | None) -> None:
        flags = os.O_RDWR | BINARY | NO_LINK | (0 if position else os.O_CREAT | os.O_TRUNC)
        self._file = os.open(self.path, flags, 0o666)
        if position is None:
            write_all(self._file, header)
        elif os.fstat(self._file).st_size < position.num_bytes or os.read(self._file, len(header)) != header:
            raise ResumeError(
                f"{self.path} cannot be gone on with: it is shorter than it was, or was begun by another version or "
                "with a sound of another rate or layout. Begin the video anew; what the file holds can be played."
            )
        else:
            os.ftruncate(self._file, position.num_bytes)
        os.fsync(self._file)

    def _release(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def _put(self, pictures: list[Sample]) -> None:
        assert self._file is not None, "the part is closed"
        data = b"".join(self._fragments(pictures))
        if not os.fstat(self._file).st_nlink:
            raise OutputError(
                f"{self.path} was removed while it was written, with the {self.num_frames} frames in it. "
                "Leave the folder of a video alone until it is finished, and begin it anew."
            )
        os.lseek(self._file, self.position.num_bytes, os.SEEK_SET)
        write_all(self._file, data)
        os.fsync(self._file)
        self.position = Position(self.num_frames + len(pictures), self.position.num_bytes + len(data))

    def _fragments(self, pictures: list[Sample]) -> Iterator[bytes]:
        """A second each, so that a write that was torn costs no more than that."""
        size = math.ceil(self.rate)
        for first in range(0, len(pictures), size):
            some, start = pictures[first : first + size], self.num_frames + first
            pieces = list(self._sound_until(start + len(some)))
            sound = Track(2, pieces[0][0] if pieces else 0, [piece for _, piece in pieces])
            yield fragment(start + 1, [Track(1, start * self._ticks, some), sound])

    def _encode(self, pixels: np.ndarray) -> list[Sample]:
        """Pictures in decoding order, nothing held back: the next ones start with a key frame."""
        encoder = self._configure(av.CodecContext.create("libx264", "w"))
        start = self.num_frames
        packets: list[Picture] = []
        for number, picture in enumerate(pixels, start):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=SAMPLING
            )
            frame.pts, frame.time_base = number, 1 / self.rate
            packets += encoder.encode(frame)
        packets += encoder.encode(None)
        delays = [_time(packet) * self.rate + DELAY - number for number, packet in enumerate(packets, start)]
        return [
            Sample(_with_lengths(bytes(packet)), self._ticks, round(delay) * self._ticks, packet.is_keyframe)
            for packet, delay in zip(packets, delays, strict=True)
        ]

    def _make_header(self, audio: Soundtrack | None, num_frames: int | None) -> bytes:
        """The file's beginning; on the way the sound's encoder is made, which has to be described in it."""
        buffer = io.BytesIO()
        self._template = av.open(buffer, "w", format="mp4", options={"movflags": "empty_moov+default_base_moof"})
        stream = self._template.add_stream("libx264", rate=self.rate)
        self._configure(stream.codec_context)
        packets: Iterator[av.Packet[av.AudioStream]] = iter(())
        if audio and num_frames:
            packets = encode_soundtrack(self._template, audio, num_frames / self.rate)
        self._template.start_encoding()
        ticks = [1 / (part.time_base or Fraction(1)) for part in self._template.streams]
        self._ticks, self._sound_ticks = round(ticks[0] / self.rate), ticks[-1]  # of a frame, and of a second
        self._sound = packets
        self._ahead: av.Packet[av.AudioStream] | None = None  # a piece that was not asked for yet
        return buffer.getvalue()

    def _sound_until(self, stop: int) -> Iterator[tuple[int, Sample]]:
        """(start in ticks, piece) of the sound that begins before frame `stop` and was not asked for yet."""
        end_s, delay_s = stop / self.rate, DELAY / self.rate
        packet = next(self._sound, None) if self._ahead is None else self._ahead
        while packet is not None and _time(packet) < end_s:
            start = round((_time(packet) + delay_s) * self._sound_ticks)
            if start >= 0:  # the encoder's lead-in may begin before the file does
                yield start, Sample(bytes(packet), packet.duration or AAC_SAMPLES)
            packet = next(self._sound, None)
        self._ahead = packet

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


def _time(packet: Picture | av.Packet[av.AudioStream]) -> Fraction:
    """Seconds at which it is shown."""
    return (packet.pts or 0) * (packet.time_base or Fraction(1))


def _with_lengths(packet: bytes) -> bytes:
    """A packet of H.264 as an mp4 has it: each unit begins with its length in place of a start code."""
    units = re.split(rb"\x00{2,}\x01", packet)[1:]
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in units)


def frame_rate(fps: float | Fraction) -> Fraction:
    """The exact rate that a rounded number of frames a second stands for: 29.97 -> 2997/100."""
    return Fraction(fps).limit_denominator(1001)


def cause_of(error: Exception) -> str:
    """Why writing failed, as the beginning of a sentence."""
    if getattr(error, "errno", None) in FULL:
        return "The disk is full"
    return f"Writing failed ({getattr(error, 'strerror', None) or error})"
