"""Names of runs and videos: the video of NAME.run is NAME.mp4, unless another name was asked for.

Nothing is overwritten: a name that is taken gets a number (see find.free_run and video.writer.free_name).
"""

from __future__ import annotations

import os
from pathlib import Path

SUFFIX, VIDEO_SUFFIX = ".run", ".mp4"


def video_name(folder: Path) -> Path:
    """What the video of a run is called, beside its folder."""
    return folder.with_name(folder.name.removesuffix(SUFFIX) + VIDEO_SUFFIX)


def is_near(folder: Path, file: Path) -> bool:
    """Whether a file lies in the folder of a run or beside it, as the videos of runs do: a manifest may come from
    anybody, and names no other place."""
    try:
        return os.path.realpath(file.parent) in (os.path.realpath(folder), os.path.realpath(folder.parent))
    except ValueError:  # no path at all
        return False


def to_stored(folder: Path, name: str) -> str:
    """The name of a file as the run in a folder notes it: one beside the folder so that both may be moved together."""
    home, path = os.path.normpath(folder.absolute().parent), Path(os.path.normpath(name))
    return f"../{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else name


def from_stored(folder: Path, name: str) -> str:
    """What `to_stored` made, seen from where the folder is now."""
    return str(folder.absolute().parent / name[3:]) if name.startswith("../") else name


def is_same(path: Path, video: Path) -> bool:
    """Whether `path` is a name of this file."""
    try:
        return path.samefile(video)
    except OSError:
        return False
