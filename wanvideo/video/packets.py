"""What a video file's container tells without a frame being decoded: its tracks, their packets, frames and seconds.

Legend: ticks are those of a track's own clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av

from ..audio.container import MAX_DURATION_S, decodable, open_container, sound_stream, tick_s
from ..errors import InputError
from ..keep import WHOLE, Trim

WHAT = "a picture or a video"

if TYPE_CHECKING:
    Track = av.VideoStream | av.AudioStream


def open_video(path: Path) -> av.container.InputContainer:
    """See audio.container.open_container."""
    return open_container(path, WHAT)


def video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The first moving picture that has a decoder; cover art of a sound file is none.

    Raises: InputError where there is none; the container is closed then.
    """
    moving = [
        stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    stream = decodable(moving)
    if stream is not None:
        return stream
    pictures = list(container.streams.video)
    kinds = sorted({"a cover picture" if stream in pictures else stream.type for stream in container.streams})
    container.close()
    if moving:
        raise InputError(f"No video track of {path} has a decoder here. Convert it to H.264 mp4.")
    raise InputError(f"{path} holds no video, only {' and '.join(kinds) or 'nothing that can be read'}. Give a video.")


def packets_of(container: av.container.InputContainer, stream: Track) -> Iterator[av.Packet[Any]]:
    """Packets up to the end, or to where the file cannot be read on, then an empty one for what a decoder holds."""
    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        end = av.Packet()
        end.stream = stream
        yield end


def meant_packets(
    container: av.container.InputContainer, stream: Track, trim: Trim
) -> Iterator[tuple[int | None, av.Packet[Any]]]:
    """(ticks, packet) of the part that is meant, without what an edit list leaves out."""
    start, stop = trim.ticks(tick_s(stream))
    for packet in packets_of(container, stream):
        stamp = packet.pts if packet.pts is not None else packet.dts
        if not packet.is_discard and (trim.is_whole or stamp is not None and start <= stamp < stop):
            yield stamp, packet


def video_length(path: Path, stream: av.VideoStream) -> tuple[int, float]:
    """Frames and seconds of a video; by reading it where its header states none, or what cannot be.

    Raises: InputError for one that lasts longer than what is read.
    """
    frames, seconds = stream.frames, stated_duration_s(stream)
    is_cut = abs(frames - seconds * (stream.average_rate or 0)) >= 1  # frames that an edit list leaves out are counted
    if not frames or is_cut or not 0 < seconds <= MAX_DURATION_S:
        frames, seconds = read_length(path, "video")
    if seconds > MAX_DURATION_S:
        raise InputError(
            f"{path} lasts {seconds / 3600:.0f} hours by its times; {MAX_DURATION_S / 3600:.0f} are the most. "
            "Cut it into parts, or convert it."
        )
    return frames, seconds


def read_length(path: Path, kind: str, trim: Trim = WHOLE) -> tuple[int, float]:
    """Packets and seconds of a track, or of a part of it, by reading it to its end. Args: kind: video or audio."""
    count, last = 0, 0
    first: int | None = None
    stream: Track
    with closing(open_video(path)) as container:
        stream = video_stream(container, path) if kind == "video" else sound_stream(container, path)
        for stamp, packet in meant_packets(container, stream, trim):
            if packet.size:
                count += 1
            if stamp is not None:
                first = stamp if first is None else min(first, stamp)
                last = max(last, stamp + (packet.duration or 0))
        seconds = float((last - first) * tick_s(stream)) if first is not None else 0.0
        rate = getattr(stream, "average_rate", None) or getattr(stream, "guessed_rate", None)
        return count, seconds or (count / float(rate) if rate else 0.0)


def stated_duration_s(stream: av.stream.Stream) -> float:
    """As the header states it; 0 where it does not."""
    return float(stream.duration * tick_s(stream)) if stream.duration else 0.0


def stated_start_s(stream: av.stream.Stream) -> float:
    """When a track begins, by the file's own time."""
    return float(stream.start_time * tick_s(stream)) if stream.start_time else 0.0
