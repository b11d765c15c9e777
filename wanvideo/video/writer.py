"""The finished video: encoded once, as the frames come, and playable at every moment.

Frames go to a part file, a fragmented mp4 that a killed process leaves playable. Finishing copies its packets into an
ordinary mp4, with the sound as it was given, and gives that its name in one step.
Legend: F frames, H W rows and columns.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import av
import numpy as np
from torch import Tensor

from ..durable import discard, give_name, replace_file, sync_file, sync_folder
from ..errors import InputError, OutputError
from ..keep import CRF
from .part import VideoPart, cause_of, frame_rate
from .soundtrack import Soundtrack, add_soundtrack

if TYPE_CHECKING:
    AnyPacket = av.Packet[av.VideoStream] | av.Packet[av.AudioStream]

log = logging.getLogger("wanvideo")


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
        *, audio: Soundtrack | None = None, crf: int = CRF, overwrite: bool = False,
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
                discard(self.partial)
                raise OutputError(f"No frame was written, so there is no video {self.path}. Write at least one.")
            self.path = with_sound(self.partial, self.path, self._part.rate, audio=self.audio, overwrite=self.overwrite)
            discard(self.partial)
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
            discard(self.partial)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abandon()


def with_sound(
    part: str | Path, path: str | Path, fps: float | Fraction,
    *, audio: Soundtrack | None = None, overwrite: bool = False,
) -> Path:  # fmt: skip
    """An mp4 of the pictures of another, which are not encoded again.

    Args:
        part: a file that VideoPart finished. It is left as it is.
        path: of the result. fps: frames a second. audio: as for VideoWriter.
    Returns: the path of the result: a free name beside `path` if that exists and is not to be overwritten.
    Raises: OutputError when the disk is full; the part remains.
    """
    part, path, rate = Path(part), Path(path), frame_rate(fps)
    finishing = _hidden(path, "finishing")
    try:
        with av.open(str(finishing.absolute()), "w", format="mp4", options={"movflags": "faststart"}) as output:
            _mux(part, output, rate, audio)
        if overwrite:
            give_name(finishing, path)
            return path
        sync_file(finishing)
        return publish(finishing, path, overwrite=False)
    except (av.FFmpegError, OSError, InputError) as error:
        raise OutputError(
            f"{cause_of(error)} while {path} was put together. All its pictures are in {part}; mend that, start again."
        ) from None
    finally:
        discard(finishing)


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
    if path.is_symlink() and not path.exists():
        raise OutputError(
            f"{path} is a link to {path.readlink()}, where nothing is. Remove the link, or use another name."
        )
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path} exists and is left as it is. Use {free_name(path)}, or say --overwrite (Python: overwrite=True)."
        )
    return path


def free_name(path: str | Path) -> Path:
    """`path` itself if nothing is there, else with the first free number: clip.mp4, clip_2.mp4, clip_3.mp4."""
    path, number = Path(path), 1
    free = path
    while os.path.lexists(free):
        number += 1
        free = path.with_stem(f"{path.stem}_{number}")
    return free


def _mux(part: Path, output: av.container.OutputContainer, rate: Fraction, audio: Soundtrack | None) -> None:
    with av.open(str(part.absolute()), format="mp4") as container:
        video = output.add_stream_from_template(container.streams.video[0], opaque=True)
        num_frames = sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)
    streams: list[Iterator[AnyPacket]] = [_packets(part, video)]
    if audio:
        streams.append(add_soundtrack(output, audio, num_frames / rate))
    for packet in heapq.merge(*streams, key=_decoded_s):
        output.mux(packet)


def _decoded_s(packet: AnyPacket) -> Fraction:
    assert packet.dts is not None, "whoever makes packets says when they are decoded"
    return packet.dts * packet.time_base


def _packets(part: Path, video: av.VideoStream) -> Iterator[AnyPacket]:
    """The pictures of a part, on a time line that starts at 0."""
    with av.open(str(part.absolute()), format="mp4") as container:
        start: int | None = None
        for packet in container.demux(container.streams.video[0]):
            if not packet.size:
                continue
            assert packet.pts is not None and packet.dts is not None, "as the part's writer made them"
            start = packet.pts if start is None else start
            packet.pts -= start
            packet.dts -= start
            packet.stream = video
            yield packet


def publish(finished: Path, path: Path, overwrite: bool) -> Path:
    """Give a finished file another name in one step, without ever replacing another file unasked.

    Returns: the name: a free one beside `path` if that was taken. Where there are no hard links the old name is gone.
    Raises: OSError.
    """
    if overwrite:
        _put_in_place(finished, path)
        sync_folder(path.parent)
        return path
    while True:
        free = free_name(path)
        try:
            _link(finished, free)
        except FileExistsError:
            continue
        sync_folder(path.parent)
        if free != path:
            log.warning("%s was taken while the video was made; it is saved as %s", path, free)
        return free


def _put_in_place(finished: Path, path: Path) -> None:
    """Replace `path` by a finished file.

    The name that it has in between is beside `finished`, so in the folder of a run, which removes what a process that
    ended left there. It is only ever one more name.
    """
    while True:
        scratch = _hidden(finished, "linked")
        try:
            os.link(finished, scratch)
        except FileExistsError:
            continue
        except OSError:
            replace_file(finished, path)  # a file system without hard links
            return
        try:
            replace_file(scratch, path)
            return
        except FileNotFoundError:
            if os.path.lexists(scratch):
                raise
            continue  # another process began to use the run, and removed it
        finally:
            discard(scratch)  # where both are names of one file already, POSIX leaves both


def _link(finished: Path, path: Path) -> None:
    try:
        os.link(finished, path)
    except FileExistsError:
        raise
    except OSError:
        finished.rename(path)  # file systems without hard links; the name was free a moment ago


def _hidden(path: Path, what: str) -> Path:
    return path.with_name(f".{path.stem[:100]}.{what}-{secrets.token_hex(3)}.mp4")
