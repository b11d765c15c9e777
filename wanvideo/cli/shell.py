"""Command lines in the words of this system's shell, so that what is printed or saved can be run as it is."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable

IS_WINDOWS = os.name == "nt"
PLAIN = re.compile(r"[\w+=:,./\\-]+")
SUFFIX = ".bat" if IS_WINDOWS else ".sh"  # of a script


def quoted(text: str) -> str:
    """One argument: for sh, or for cmd and PowerShell, which take no single quotes alike."""
    if not IS_WINDOWS:
        return shlex.quote(text)
    if PLAIN.fullmatch(text):
        return text
    return '"' + re.sub(r'(\\*)("|\Z)', lambda found: 2 * found[1] + found[2].replace('"', r"\""), text) + '"'


def command_line(arguments: Iterable[str]) -> str:
    """A program and its arguments, on one line."""
    return " ".join(map(quoted, arguments))


def script(command: str) -> str:
    """A file that runs a command; it is in UTF-8."""
    if not IS_WINDOWS:
        return f"#!/bin/sh\n{command}\n"
    return "\r\n".join(("@echo off", "chcp 65001 >nul", command.replace("%", "%%"), ""))
