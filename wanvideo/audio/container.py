"""Sound and video files opened by FFmpeg: which kinds, how far they are trusted, and which of their tracks is used."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from ..errors import InputError
from ..untrusted import answered, regular_file
from .wav_header import WavTail, read_wav_header

if TYPE_CHECKING:
    import av

# FFmpeg's demuxers that are offered; none of them opens a second file, a number in a file's name, or a network address.
KINDS = (
    "aac", "ac3", "aiff", "amr", "ape", "apng", "asf", "au", "avi", "av1", "caf", "dts", "dv", "eac3", "flac", "flv",
    "gif", "h264", "hevc", "ivf", "m4v", "matroska", "mjpeg", "mov", "mp3", "mpeg", "mpegts", "mpegvideo", "mxf", "nut",
    "obu", "ogg", "tak", "tta", "vc1", "voc", "w64", "wav", "wv", "yuv4mpegpipe",
)  # fmt: skip
MAX_FRAME_PIXELS = 36_000_000  # of a video: 8K is 8192 x 4320
MAX_DURATION_S = 24 * 3600.0
TIMEOUT_S = 15.0  # for a file to be opened, and for each packet
HEAD_BYTES = 1024
REFUSED = (  # what a file begins with, what it is, what to do
    (rb"\s*(<\?xml.*?)?(<!--.*?)?(<!DOCTYPE\s+svg.*?)?<svg\b", "an SVG drawing", "Export it as PNG."),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "an EPS or PostScript drawing", "Export it as PNG."),
    (rb"\s*#EXTM3U|ffconcat|\s*(<\?xml.*?)?<MPD\b|\s*\[playlist\]", "a playlist, which names other files",
     "Give a file that it names."),
    (rb"(?!YUV4MPEG2|P[1-6]\s)[\t\n\r\x20-\x7e]+\Z", "a text file", "Give a sound, a picture or a video."),
)  # fmt: skip
UTF8_SIGNATURE = b"\xef\xbb\xbf"


class Timed(Protocol):
    """A track, or a packet or frame of one, with the length of its clock's tick in seconds."""

    @property
    def time_base(self) -> Fraction | None: ...


class Coded(Protocol):
    """A track, with its decoder if there is one for it."""

    @property
    def codec_context(self) -> object: ...


Track = TypeVar("Track", bound=Coded)


def open_container(path: str | Path, what: str) -> av.container.InputContainer:
    """A file opened for reading; nothing but this file is ever read.

    Args: what: the kind of file that is wanted, with its article, for messages.
    Raises: InputError when it is missing, no regular file, of a kind that is not offered, or damaged at its beginning.
    """
    import av

    file = regular_file(path, what).absolute()
    refuse_by_head(file, what)
    options = {"format_whitelist": ",".join(KINDS), "protocol_whitelist": "file", "enable_drefs": "0"}
    if read_wav_header(file).tail is WavTail.SAMPLES:
        options["ignore_length"] = "1"
    # Before 18, PyAV ends the process where options meet a file whose tracks show later, as those of FLV and MPEG do.
    limits = {"max_pixels": str(MAX_FRAME_PIXELS)} if int(av.__version__.split(".")[0]) >= 18 else {}
    opening = partial(av.open, str(file), container_options=options, options=limits, timeout=TIMEOUT_S)
    try:
        try:
            return opening(metadata_errors="replace")
        except TypeError:  # PyAV 19 takes any title, and has no such argument
            return opening()
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path} cannot be read as {what} ({reason}): it is damaged, or of a kind that is not read.\n"
            "Convert it: sound to wav, flac, mp3 or m4a, a video to H.264 mp4."
        ) from None


def refuse_by_head(file: Path, what: str) -> None:
    """Raises: InputError for what is named by its first bytes and never read: drawings, playlists, text."""
    with answered(str(file)), file.open("rb") as opened:
        head = opened.read(HEAD_BYTES).removeprefix(UTF8_SIGNATURE)
    for pattern, kind, advice in REFUSED:
        if re.match(pattern, head, re.DOTALL):
            raise InputError(f"{file} is {kind}, not {what}. {advice}")


def decodable(streams: Iterable[Track]) -> Track | None:
    """The first track that has a decoder; a file may hold tracks for special devices before it."""
    return next((stream for stream in streams if stream.codec_context is not None), None)


def tick_s(timed: Timed) -> Fraction:
    """Seconds of a tick of what was read or encoded, whose clock FFmpeg knows."""
    assert timed.time_base is not None, "FFmpeg gives every track a clock"
    return timed.time_base


def sound_stream(container: av.container.InputContainer, path: str | Path) -> av.AudioStream:
    """The sound track of a file that is used. Raises: InputError when it holds none that can be decoded."""
    if not container.streams.audio:
        raise InputError(f"{path} holds no sound. Give a sound file, or a video that has sound.")
    stream = decodable(container.streams.audio)
    if stream is None:
        raise InputError(f"No sound track of {path} has a decoder here. Convert its sound to wav, flac, mp3 or m4a.")
    return stream
