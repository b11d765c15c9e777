"""One process writes a run at a time."""

from __future__ import annotations

from pathlib import Path

from ..errors import OutputError, ResumeError
from ..lock import FileLock, Owned, is_owned

NAME = ".lock"


class FolderLock(FileLock):
    """The lock of a run's folder.

    Raises: OutputError when another process, or another run of this one, owns it; ResumeError where this user may not
        write.
    """

    def __init__(self, folder: Path) -> None:
        try:
            super().__init__(folder / NAME)
        except Owned as owner:
            raise OutputError(
                f"{folder} is being written by process {owner}. Wait for it, or choose another output name."
            ) from None
        except PermissionError:
            raise ResumeError(
                f"{folder} cannot be written by this user. Choose another output name, or ask whoever owns the folder."
            ) from None


def is_locked(folder: Path) -> bool:
    """Whether some process is writing the run."""
    return is_owned(folder / NAME)
