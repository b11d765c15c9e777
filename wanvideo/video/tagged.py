"""A finished video under further names, with or without tags such as a graph in them: its bytes exist once."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import av

from ..durable import discard, replace_file, sync_file, sync_folder
from ..errors import OutputError
from .part import cause_of

logger = logging.getLogger("wanvideo")


def save_tagged(names: Sequence[Path], path: str | Path, tags: Mapping[str, str]) -> None:
    """Give a finished mp4 the name `path`, with tags; pictures and sound are copied as they are, never encoded.

    Where files can have several names `path` and all `names` are one file afterwards, the tagged one, whichever file
    had been at `path`. Elsewhere, and on another disk, `path` is a copy.
    Args: names: of the video, the first of which is there. tags: by name; those that it has already are kept.
    Raises: OutputError when it cannot be written; what was there before then still is.
    """
    path, video = Path(path), names[0]
    scratch = _scratch(path)
    try:
        if tags.items() <= _tags(video).items():
            _link_or_copy(video, scratch)
            replace_file(scratch, path)
        else:
            others = [name for name in names if name.exists() and name.samefile(video)]
            _write(video, scratch, tags)
            sync_file(scratch)
            replace_file(scratch, path)
            for name in others:
                _rename(path, name)
        sync_folder(path.parent)
    except (av.FFmpegError, OSError) as error:
        raise OutputError(
            f"{cause_of(error)} for {path}. Choose another place; the finished video is {video}"
        ) from None
    finally:
        discard(scratch)


def _tags(video: Path) -> Mapping[str, str]:
    with av.open(str(video.absolute()), format="mp4") as container:
        return dict(container.metadata)


def _write(video: Path, path: Path, tags: Mapping[str, str]) -> None:
    options = {"movflags": "faststart+use_metadata_tags"}
    with (
        av.open(str(video.absolute()), format="mp4") as container,
        av.open(str(path.absolute()), "w", format="mp4", options=options) as output,
    ):
        output.metadata.update({**container.metadata, **tags})
        streams = {stream: output.add_stream_from_template(stream, opaque=True) for stream in container.streams}
        for packet in container.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                output.mux(packet)


def _link_or_copy(video: Path, path: Path) -> None:
    try:
        os.link(video, path)
    except OSError:
        shutil.copyfile(video, path)
        sync_file(path)


def _rename(video: Path, name: Path) -> None:
    """Have `name` stand for `video` from now on, where it can."""
    scratch = _scratch(name)
    try:
        os.link(video, scratch)
        scratch.replace(name)  # where both are one file already this leaves the scratch name
    except OSError as error:
        logger.debug("%s and %s are two files: %s", name, video, error)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.stem[:100]}.tagged-{secrets.token_hex(3)}.mp4")
