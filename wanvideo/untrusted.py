"""Files and JSON from outside, checked before anything trusts them: the only readers of either."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from .errors import InputError, TalkError

MAX_JSON_BYTES = 64 * 2**20
MAX_DIGITS = 300  # of a whole number
SETTLED_S = 3.0  # after which a file that is written again has another time, on every file system
logger = logging.getLogger("wanvideo")
Read = TypeVar("Read")


def regular_file(path: str | Path, what: str, error: type[TalkError] = InputError) -> Path:
    """The path of a file that can be opened without waiting for anyone.

    Args: what: the kind of file, with its article, for the message. error: what is raised.
    Raises: `error` when it is missing, a folder, a pipe or a device, or no path at all.
    """
    try:
        name = os.fsdecode(Path(path).expanduser())
        mode = Path(name).stat().st_mode
    except FileNotFoundError:
        raise error(f"There is no file {path}. Give the path of {what}.") from None
    except (OSError, ValueError, RuntimeError, TypeError) as cause:  # too long, a NUL, no such user, no access
        reason = getattr(cause, "strerror", None) or cause
        raise error(f"{str(path)[:200]!r} cannot be opened ({reason}). Give the path of {what}.") from None
    if stat.S_ISDIR(mode):
        raise error(f"{name} is a folder. Name {what} in it.")
    if not stat.S_ISREG(mode):
        raise error(f"{name} is a pipe or a device, not a file. Save {what} as a file and name that.")
    return Path(name)


def parse_json(data: str | bytes, what: str, error: type[TalkError] = InputError) -> Any:
    """JSON as the standard has it: no NaN, no key twice, nothing nested without end.

    Args: data: text, or UTF-8 bytes. what: where it is from, for the message. error: what is raised.
    """

    def whole(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise error(f"{what} has a number of {len(digits)} digits. At most {MAX_DIGITS} are read.")
        return int(digits)

    def constant(name: str) -> None:
        raise error(f"{what} has the number {name}, which JSON does not know. Write a finite number.")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise error(f"{what} has the key {twice[:120]!r} twice. Remove one of them.")
        return found

    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        return json.loads(text, parse_int=whole, parse_constant=constant, object_pairs_hook=once)
    except RecursionError:
        raise error(
            f"{what} is nested too deep to be read: it is damaged or not meant for this. Name another."
        ) from None
    except UnicodeDecodeError as cause:
        raise error(f"{what} is not UTF-8 text (byte {cause.start}). Save it as UTF-8.") from None
    except json.JSONDecodeError as cause:
        hint = " In a path write / or \\\\." if "escape" in cause.msg else " Mend it there."
        raise error(f"{what}, line {cause.lineno}, column {cause.colno}: {cause.msg}.{hint}") from None


def read_json(path: str | Path, what: str, error: type[TalkError] = InputError) -> Any:
    """The JSON of a UTF-8 file. Args: as of `regular_file`. Raises: `error`."""
    file = regular_file(path, what, error)
    with answered(str(file), error):
        if (size := file.stat().st_size) > MAX_JSON_BYTES:
            raise error(f"{file} has {size / 1e6:.0f} MB, which is too much for {what}. Name another file.")
        data = file.read_bytes()
    return parse_json(data, str(file), error)


def once_per_state(most: int) -> Callable[[Callable[[Path], Read]], Callable[[Path], Read]]:
    """For a function that reads a file: what it gave for the last `most` files is kept until they change.

    A file that was written a moment ago is read again, as its times may not tell the next change; so is one that was
    refused.
    """

    def decorate(read: Callable[[Path], Read]) -> Callable[[Path], Read]:
        @lru_cache(most)
        def known(path: Path, *state: int) -> Read:
            return read(path)

        @wraps(read)
        def reading(path: Path) -> Read:
            try:
                now = path.stat()
            except (OSError, ValueError):
                return read(path)  # which says what is wrong
            if abs(time.time() - max(now.st_mtime, now.st_ctime)) < SETTLED_S:
                return read(path)
            return known(path, now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)

        return reading

    return decorate


@contextlib.contextmanager
def answered(name: str, error: type[TalkError] = InputError, doing: str = "read") -> Iterator[None]:
    """The last resort around code that meets a file from outside: what is left of exceptions becomes an answer.

    Args: name: of the file. error: what is raised. doing: what was being done with it.
    """
    try:
        yield
    except (TalkError, MemoryError):
        raise
    except OSError as cause:
        raise error(f"{name} cannot be {doing} ({cause.strerror or cause}). Check the file and its folder.") from cause
    except Exception as cause:  # noqa: BLE001
        logger.debug("%s", name, exc_info=True)
        raise error(
            f"{name} cannot be {doing}: it is damaged or of a kind that is not known "
            f"({type(cause).__name__}: {str(cause)[:200]}).\nIf other programs read it, report this line."
        ) from cause
