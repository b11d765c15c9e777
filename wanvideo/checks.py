"""Values that a user gives, checked where they are taken in: a check names the value, what is allowed, what to do.

`name` is a field's, a key's or a flag's: it begins the message, so that a face may put its own in its place.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath, PureWindowsPath
from typing import Any

from .errors import InputError

MOST_BRIEF = 80  # characters of a wrong value
MAX_PATH, MAX_NAME = 4096, 255  # characters of a path, bytes of a name in it
IS_WINDOWS = os.name == "nt"
# Names that Windows takes for devices, those with characters that part streams or stand for others, and those that it
# would write without their end.
NO_NAME = re.compile(r"(?i)(con|prn|aux|nul|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\..*)?|.*[<>:\"|?*\x01-\x1f].*|.*[. ]")


def brief(value: object) -> str:
    """A wrong value on one line, however large it is."""
    if isinstance(value, int) and abs(value) > 10**24:
        return f"of {value.bit_length()} bits"
    if isinstance(value, str):
        return repr(value if len(value) <= MOST_BRIEF else value[:MOST_BRIEF] + "...")
    if value is None:
        return "null"
    if isinstance(value, float | int):
        return repr(value)
    if isinstance(value, dict):
        return "{...}"
    if isinstance(value, list | tuple) and all(isinstance(item, str | int | float) for item in value):
        text = f"[{', '.join(map(brief, value[:20]))}]"
        return text if len(text) <= MOST_BRIEF else f"of {len(value)} values"
    return f"of type {type(value).__name__}"


def meant(value: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A sentence that asks for the known name that is near, or nothing."""
    close = difflib.get_close_matches(str(value)[:MOST_BRIEF], list(known), 1, cutoff)
    return f" Did you mean {close[0]!r}?" if close else ""


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise InputError(
            f"{name} {brief(value)} is not offered.{meant(value, allowed)} Use one of {', '.join(allowed)}."
        )


def number(name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    """A finite number from `low` to `high`; True and False are none."""
    kind = int if whole else int | float
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(
            f"{name} {brief(value)} is not usable: it must be a {'whole ' * whole}number from {low} to {high}. "
            "Give one of these."
        )


def flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InputError(f"{name} {brief(value)} is neither true nor false. Use one of them, without quotes.")


def text(name: str, value: Any, most: int) -> None:
    """Unicode text without NUL, of at most so many characters; it may be empty."""
    if not isinstance(value, str):
        raise InputError(f"{name} {brief(value)} is no text. Write it in quotes.")
    if len(value) > most:
        raise InputError(f"{name} has {len(value)} characters, at most {most} are taken. Make it shorter.")
    wrong = next((c for c in value if c == "\0" or "\ud800" <= c <= "\udfff"), None)
    if wrong is not None:
        raise InputError(
            f"{name} {brief(value)} has the character {wrong!r} at place {value.index(wrong) + 1}, "
            "which no text can have. Remove it."
        )


def path(name: str, value: Any) -> str:
    """The path as text; a pathlib.Path is one too."""
    given: str = os.fspath(value) if isinstance(value, os.PathLike) else value
    text(name, given, MAX_PATH)
    if not given.strip():
        raise InputError(f"{name} is an empty path. Name a file, or leave it out.")
    if any(len(part.encode()) > MAX_NAME for part in given.replace("\\", "/").split("/")):
        raise InputError(f"{name} {brief(given)} has a name of more than {MAX_NAME} bytes. Make it shorter.")
    return given


def mp4_path(name: str, value: Any) -> str:
    """The path of an mp4 as text, with that suffix where it has none; the 5 of take_1.5 is none."""
    given = path(name, value)
    if given.endswith(("/", "\\")):
        raise InputError(f"{name} {brief(given)} is a folder. Name the video in it.")
    suffix = PurePath(given).suffix
    if suffix and not suffix[1:].isdigit() and suffix.lower() != ".mp4":
        raise InputError(f"{name} {brief(given)} ends with {suffix}, and the video is an mp4. Use .mp4, or no suffix.")
    if suffix.lower() != ".mp4":
        given = f"{given}.mp4"
    _check_names(name, given)
    return given


def _check_names(name: str, given: str) -> None:
    """Raises: InputError for a path that Windows would write elsewhere, or not at all."""
    pure = PureWindowsPath(given)
    names = (part for part in pure.parts[bool(pure.anchor) :] if part != "..")
    wrong = next(filter(NO_NAME.fullmatch, names), None)
    if IS_WINDOWS and wrong is not None:
        raise InputError(f"{name} {brief(given)} has the name {brief(wrong)}, which Windows lacks. Choose another.")


def instance(name: str, value: Any, kind: type, what: str) -> None:
    if not isinstance(value, kind):
        raise InputError(f"{name} {brief(value)} is not {what}. Give {what}.")


def noise_levels(sigmas: Sequence[float], steps: int) -> list[float]:
    """The steps + 1 noise levels of a schedule of one's own, of which the last one, 0, may be left out.

    Raises: InputError for another number of them, and where they do not fall from at most 1 to 0.
    """
    instance("sigmas", sigmas, Sequence, "a list of noise levels")
    for index, level in enumerate(sigmas):
        number(f"sigmas[{index}]", level, 0, 1)
    levels = [*map(float, sigmas), *([0.0] if len(sigmas) == steps else [])]
    if len(levels) != steps + 1:
        raise InputError(
            f"sigmas holds {len(levels)} noise levels, which does not fit {steps} steps. "
            f"Give {steps + 1}, or {steps} and 0 is appended."
        )
    for index, (level, following) in enumerate(zip(levels, levels[1:], strict=False)):
        if not level > following:
            raise InputError(
                f"sigmas[{index}] = {level:g} is followed by {following:g}. Give noise levels that fall from at most "
                "1 to 0."
            )
    return levels
