"""What was measured of a run's windows: a line of JSON each, in a file that is only appended to.

The manifest is written anew with every window, so what grows with the video has no place in it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

from ..durable import append_synced, write_atomically
from ..errors import InputError, OutputError
from ..job import build
from ..quality.drift import WindowMeasures
from ..untrusted import answered, parse_json, regular_file

NAME = "drift.jsonl"


def read(folder: Path, num_windows: int) -> tuple[WindowMeasures, ...]:
    """Of the first windows of a run; none where the file was deleted, which costs no frame.

    Raises: OutputError when it is damaged.
    """
    return tuple(_parsed(line, f"{folder / NAME}, line {number}") for number, line in _first(folder, num_windows))


def append(folder: Path, measures: WindowMeasures) -> None:
    """Put a window's behind those that are there; they are on the disk when this returns. Raises: OSError."""
    append_synced(folder / NAME, json.dumps(dataclasses.asdict(measures)).encode() + b"\n")


def take(source: Path, folder: Path, num_windows: int) -> None:
    """Have in `folder` those of the first windows in `source`, which may be itself, and no others. Raises: OSError."""
    lines = b"".join(line for _, line in _first(source, num_windows) if line.endswith(b"\n"))
    file = folder / NAME
    if not lines:
        file.unlink(missing_ok=True)
    elif source != folder or file.is_symlink() or file.stat().st_size != len(lines):
        write_atomically(file, lines)


def _first(folder: Path, num_windows: int) -> list[tuple[int, bytes]]:
    """(number from 1, line) of so many windows, or of as many as there are."""
    file = folder / NAME
    with answered(str(file), OutputError):
        if not file.exists():
            return []
        with regular_file(file, "the measures of a run", OutputError).open("rb") as lines:
            return list(enumerate(itertools.islice(lines, num_windows), 1))


def _parsed(line: bytes, where: str) -> WindowMeasures:
    try:
        return build(WindowMeasures, parse_json(line, where), where)
    except InputError as error:
        raise OutputError(
            f"{where} is damaged ({error})\nDelete the file: the video goes on without what was measured so far."
        ) from None
