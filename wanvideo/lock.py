"""One owner at a time of what a file stands for; a lock whose owner has died holds nobody up."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import time
from pathlib import Path

from .durable import NO_LINK

PATIENCE_S = 0.1  # whoever only looks whether it is owned has let go by then
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
logger = logging.getLogger("wanvideo")


class Owned(Exception):
    """Somebody else has the lock. The message is the number of the process, or `unknown`."""


class FileLock:
    """Owned from the constructor to `release`, or to the end of the process however it ends.

    The system holds the lock for the open file, so neither clocks nor process numbers decide whether it is live.
    Args: path: a file that stands for the lock alone; it is there while somebody has it.
    Raises: Owned when another process, or another owner in this one, has it; OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
            if not (_lock(self._file) or _lock(self._file, PATIENCE_S)):
                owner = os.read(self._file, 20).decode(errors="replace") or "unknown"
                os.close(self._file)
                raise Owned(owner)
            if sys.platform == "win32":  # nobody can have removed it there
                break
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file), self.path.stat()):
                    break
            os.close(self._file)  # its owner removed it while it was opened here
        os.ftruncate(self._file, 0)
        os.write(self._file, str(os.getpid()).encode())

    def release(self) -> None:
        """Let others have it. Further calls do nothing."""
        if self._file < 0:
            return
        if sys.platform != "win32":  # there nobody can remove an open file, so that it goes once it is closed
            self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1
        if sys.platform == "win32":
            with contextlib.suppress(OSError):  # somebody else has opened it meanwhile
                self.path.unlink()


def is_owned(path: Path) -> bool:
    """Whether somebody has the lock, also another user, whose file can only be read."""
    try:
        try:
            file = os.open(path, os.O_RDWR | NO_LINK)
        except PermissionError:
            file = os.open(path, os.O_RDONLY | NO_LINK)
    except OSError:
        return False
    try:
        return not _lock(file)
    finally:
        os.close(file)


def _lock(file: int, after_s: float = 0.0) -> bool:
    time.sleep(after_s)
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(file, 2**30, os.SEEK_SET)  # behind the number, which others may read
            try:
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(file, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            logger.debug("This file system has no locks; two processes must not write one thing here.")
            return True
        return False
    return True
