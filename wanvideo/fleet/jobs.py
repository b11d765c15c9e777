"""Job files of a batch: JSON lines, a list in one JSON, or a folder of JSON files; all that is wrong with them at once.

A job is one of MultiTalk / InfiniteTalk (see `wanvideo.job`) with three keys more: "name", "output" (the path of its
mp4) and "flags", an object of the flags of `generate` that are this job's own: {"base_seed": 7, "size": "768x448"}.
"""

from __future__ import annotations

import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import checks
from ..errors import InputError, TalkError
from ..untrusted import answered, parse_json, read_json, regular_file

OWN_KEYS = ("name", "output", "flags")
NAME = re.compile(r"[^\w.\-]+")
IGNORES_CASE = sys.platform in ("win32", "darwin")  # in names of files
MAX_BYTES, MAX_JOBS = 256 * 2**20, 100_000
MAX_NAME_BYTES = 250  # with .log behind it what file systems take


@dataclass(frozen=True)
class Entry:
    """A job as its file has it.

    Args:
        where: file and place in it, for messages. name: unique in the batch, fit for a file's name.
        job: what `wanvideo.job` reads. flags: of this job alone, by their names without dashes. output: the mp4.
    """

    where: str
    name: str
    job: dict[str, Any]
    flags: dict[str, Any]
    output: Path

    @property
    def arguments(self) -> list[str]:
        """Its flags as a command line has them."""
        found = []
        for name, value in self.flags.items():
            if value is not None:
                found += [f"--{name}", *map(_argument, value if isinstance(value, list) else [value])]
        return found


def read_entries(path: Path, folder: Path) -> tuple[list[Entry], list[str]]:
    """The jobs of a file, or of a folder's *.json in the order of their names, and what is wrong with the others.

    Args: folder: where videos go whose job names no output.
    Raises: InputError when there is no such file, or no job in it.
    """
    entries, problems = list[Entry](), list[str]()
    for index, (where, default, read) in enumerate(_sources(path)):
        if index == MAX_JOBS:
            raise InputError(f"{path} has more than {MAX_JOBS} jobs. Split it.")
        try:
            entries.append(_entry(where, default, read(), folder))
        except TalkError as error:
            problems.append(_placed(where, error))
    if not entries and not problems:
        raise InputError(f"{path} has no job. Write one JSON object a line, or a list of them.")
    return entries, [*problems, *_clashes(entries)]


def _placed(where: str, error: TalkError) -> str:
    """What is wrong, behind its place, which messages about JSON begin with themselves."""
    said = str(error)
    return said if said.startswith(where) else f"{where}: {said}"


def _sources(path: Path) -> Iterator[tuple[str, str, Any]]:
    """(where, default name, a function that reads it) of every job."""
    if path.is_dir():
        for file in sorted(file for file in path.glob("*.json") if file.name[0] != "."):
            yield str(file), file.stem, lambda file=file: read_json(file, "a job in JSON")
        return
    file = regular_file(path, "a file of jobs: one JSON object a line, or a list of them")
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        with answered(str(file)):
            if file.stat().st_size > MAX_BYTES:
                raise InputError(f"{file} has more than {MAX_BYTES // 2**20} MB. Split it.")
            lines = file.read_bytes().splitlines()
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{file}, line {number}"
                yield where, f"{file.stem}_{number:03}", lambda line=line, where=where: parse_json(line, where)
        return
    data = read_json(file, "a list of jobs in JSON")
    for number, job in enumerate(data if isinstance(data, list) else [data], 1):
        yield f"{file}, job {number}", f"{file.stem}_{number:03}", lambda job=job: job


def _entry(where: str, default: str, data: Any, folder: Path) -> Entry:
    if not isinstance(data, dict):
        raise InputError(f"{checks.brief(data)} is no job. Write an object {{...}} with its keys.")
    name, output, flags = (data.get(key) for key in OWN_KEYS)
    if name is not None:
        checks.text('"name"', name, 100)
    if output is not None:
        output = checks.mp4_path('"output"', output)
    if flags is not None and not isinstance(flags, dict):
        raise InputError(f'"flags" {checks.brief(flags)} is no object. Write {{"base_seed": 7}} or leave it out.')
    name = NAME.sub("_", name or (Path(output).stem if output else default)).strip("._") or default
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InputError(
            f"The name {checks.brief(name)} has {len(name.encode())} bytes in UTF-8, and its log's may have "
            f'{MAX_NAME_BYTES}. Give it a shorter "name".'
        )
    path = Path(output).expanduser() if output else folder / f"{name}.mp4"
    job = {key: value for key, value in data.items() if key not in OWN_KEYS}
    return Entry(where, name, job, flags or {}, path)


def _clashes(entries: list[Entry]) -> Iterator[str]:
    """Names and outputs that several jobs have."""
    for what, values in (
        ("name", [entry.name for entry in entries]),
        ("output", [os.path.realpath(entry.output) for entry in entries]),
    ):
        alike = defaultdict[str, list[int]](list)
        for number, value in enumerate(values):
            alike[value.casefold() if IGNORES_CASE else value].append(number)
        for found in alike.values():
            if len(found) > 1:
                places = ", ".join(entries[number].where for number in found)
                yield f"{places[:300]}: {len(found)} jobs have the {what} {values[found[0]]}. Give each its own."


def _argument(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
