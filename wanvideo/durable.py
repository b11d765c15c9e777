"""Files that are whole or not there, whenever the process or the machine stops: every write of a result goes here."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

BINARY = getattr(os, "O_BINARY", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # for files that are written to in place: a link would be to somebody else's
KEEPS_OPEN_FILES = os.name == "nt"  # Windows neither renames nor removes a file that a program has open
BUSY_S, POLL_S = 5.0, 0.05  # for which a scanner, a synchronizer or a reader may have a file, and between two tries


def write_all(file: int, data: bytes) -> None:
    """Write all of `data` at the place of an open file."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` under a name that holds what it held before, or all of `data`. Raises: OSError."""
    with written_aside(path) as scratch:
        file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)
        try:
            write_all(file, data)
        finally:
            os.close(file)


def append_synced(path: Path, data: bytes) -> None:
    """Put `data` behind what a file holds, which is made if it is not there; it is on the disk when this returns.

    A process that ends in between may leave a part of it, so whoever reads the file knows how much of it counts.
    Raises: OSError.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | BINARY | NO_LINK, 0o666)
    try:
        write_all(file, data)
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to; at the end it gets the name `path`, after an error it is gone.

    Nobody else has that name: of several that write `path` at once the last one stays, and whole.
    Raises: OSError.
    """
    scratch = path.with_name(f".{path.name}.tmp-{secrets.token_hex(3)}")
    try:
        yield scratch
        give_name(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def give_name(scratch: Path, path: Path) -> None:
    """Have a file on the disk, and then only under its name, in place of what had it."""
    sync_file(scratch)
    replace_file(scratch, path)
    sync_folder(path.parent)


def replace_file(scratch: Path, path: Path) -> None:
    """Rename a file to `path`, whatever had that name. Where Windows refuses since either is open, it is tried for a
    while: what only looks at a new file, or reads an old one, is done soon. Raises: OSError."""
    end = time.monotonic() + BUSY_S
    while True:
        try:
            scratch.replace(path)
            return
        except PermissionError:
            if not KEEPS_OPEN_FILES or time.monotonic() > end:
                raise
        time.sleep(POLL_S)


def discard(path: Path) -> None:
    """Remove a file that nothing needs any more; what Windows keeps, as it is being read, stays. Raises: OSError."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if not KEEPS_OPEN_FILES:
            raise


def sync_file(path: Path) -> None:
    """Have a finished file on the disk before it is given its name."""
    file = os.open(path, os.O_RDWR | BINARY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(folder: Path) -> None:
    """Have the names of a folder's files on the disk."""
    with contextlib.suppress(PermissionError):  # Windows opens no folders, and needs no such call
        file = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems cannot
                os.fsync(file)
        finally:
            os.close(file)
