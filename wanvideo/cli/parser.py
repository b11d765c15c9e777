"""Command lines: wrong flags are errors of one sentence that say which flag, what is allowed and what was meant."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .. import checks
from ..errors import InputError, OutputError, TalkError

Number = TypeVar("Number", int, float)
YES, NO = ("true", "yes", "1", "t", "y", "on"), ("false", "no", "0", "f", "n", "off")


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are InputErrors; flags are written in full."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise InputError(f"{message[:300]}. Use {self.prog} --help to see every flag.")

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]  # always a new one
        flags, unknown = self.parse_known_args(args)
        if unknown:
            near = checks.meant(unknown[0].partition("=")[0], self._option_string_actions)
            raise InputError(
                f"{checks.brief(unknown[0])} is no flag of {self.prog}.{near} Use {self.prog} --help to see every flag."
            )
        return flags

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            with named({"value": _name(action)}):
                checks.choice("value", value, tuple(action.choices))


def yes_or_no(text: str) -> bool:
    """`true`, `yes`, `1` ... as the reference's flags take them."""
    if (value := text.strip().lower()) in (*YES, *NO):
        return value in YES
    raise argparse.ArgumentTypeError(f"{checks.brief(text)} is neither true nor false")


def whole(text: str) -> int:
    return _read(int, text, "whole number")


def real(text: str) -> float:
    return _read(float, text, "number")


def _read(kind: Callable[[str], Number], text: str, what: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{checks.brief(text)} is no {what}") from None


def keep_existing(flag: str, path: Path, overwrite: bool) -> None:
    """What a command is to write takes the place of nothing, unless it was told so. Raises: OutputError."""
    if not overwrite and path.exists():
        raise OutputError(f"{path} exists and is left as it is. Name another place with {flag}, or add --overwrite.")


@contextlib.contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Errors that begin with the name of a field begin with what the user wrote in its place."""
    try:
        yield
    except TalkError as error:
        message = str(error)
        for field in sorted(names, key=len, reverse=True):
            if message.startswith(f"{field} "):
                raise type(error)(names[field] + message[len(field) :]) from None
        raise


def _name(action: argparse.Action) -> str:
    return "/".join(action.option_strings) or action.dest
