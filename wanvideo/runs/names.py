"""Names of runs and videos: the video of NAME.run is NAME.mp4, unless another name was asked for.

Nothing is overwritten: a name that is taken gets a number.
"""

from __future__ import annotations

import os
from pathlib import Path

SUFFIX, VIDEO_SUFFIX = ".run", ".mp4"


def video_name(folder: Path) -> Path:
    """What the video of a run is called, beside its folder."""
    return folder.with_name(folder.name.removesuffix(SUFFIX) + VIDEO_SUFFIX)


def is_free(folder: Path) -> bool:
    """Whether a new run may have this folder, and its video the name of it."""
    return not (os.path.lexists(folder) or os.path.lexists(video_name(folder)))


def free_run(folder: Path) -> Path:
    """`folder` if it is free, else with the first number that is."""
    free, number = folder, 1
    while not is_free(free):
        number += 1
        free = folder.with_stem(f"{folder.stem}_{number}")
    return free


def is_same(path: Path, video: Path) -> bool:
    """Whether `path` is a name of this file."""
    try:
        return path.samefile(video)
    except OSError:
        return False
