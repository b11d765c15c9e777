"""`runs`: videos that are being made, were stopped, or are finished."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, OutputError
from .parser import Parser

if TYPE_CHECKING:
    from ..quality.drift import WindowMeasures
    from ..runs.find import Found

MOST_DRIFTS = 20  # windows of which it is said
COLUMNS = ("run", "is", "windows", "seconds", "MB", "output")


def main(argv: list[str]) -> int:
    parser = Parser("python -m wanvideo runs", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="list|show|resume|remove")
    listing = commands.add_parser("list", help="all runs in a folder")
    listing.add_argument("folder", nargs="?", default=".", help="where videos are written; this folder if not given")
    for name, text in (
        ("show", "what a run was asked for, and how far it is"),
        ("resume", "go on with a run and finish its video"),
        ("remove", "delete a run's folder; a video that was saved elsewhere stays"),
    ):
        commands.add_parser(name, help=text).add_argument("run", help="folder of the run")
    flags = parser.parse_args(argv or ["list"])
    if flags.command == "list":
        return _list(Path(flags.folder))
    if flags.command == "remove":
        return _remove(Path(flags.run))
    return {"show": _show, "resume": _resume}[flags.command](_found(Path(flags.run)))


def _found(folder: Path) -> Found:
    from ..runs.find import Found
    from ..runs.manifest import NAME, Manifest

    if not (folder / NAME).exists():
        raise OutputError(f"{folder} is no run: there is no {NAME} in it. Name a run of `runs list`.")
    return Found(folder, Manifest.read(folder))


def _list(folder: Path) -> int:
    from ..runs.find import orphans, survey

    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Name the one that videos are written to.")
    runs, others = survey(folder)
    rows = [COLUMNS, *map(_row, runs)]
    if len(rows) == 1:
        print(f"There are no runs in {folder.absolute()}.")
    else:
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        for row in rows:
            print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    if others:
        print("\nNot usable as runs; `runs remove` deletes what a run has written there:")
        print("\n".join(f"  {name.name}: {reason}" for name, reason in others))
    if parts := orphans(folder):
        print("\nParts without a run, which can be played but not gone on with; rename or delete them:")
        print("\n".join(f"  {part}" for part in parts))
    return 0


def _row(run: Found) -> tuple[str, ...]:
    manifest, done = run.manifest, run.manifest.progress
    return (
        _name(run.folder), _stage(run), f"{done.num_windows}/{manifest.plan.num_windows}",
        f"{done.num_frames / manifest.plan.fps:.1f}/{manifest.plan.num_frames / manifest.plan.fps:.1f}",
        f"{run.num_bytes / 1e6:.1f}", manifest.output or "",
    )  # fmt: skip


def _name(folder: Path) -> str:
    return f"{folder.name} -> {folder.readlink()}" if folder.is_symlink() else folder.name


def _stage(run: Found) -> str:
    if run.is_live:
        return "running"
    if run.is_gone:
        return "video deleted"
    return "stopped" if run.manifest.video is None else "finished"


def _show(run: Found) -> int:
    from ..runs.measured import read
    from ..runs.store import GROWING

    manifest = run.manifest
    for name, text in zip(COLUMNS, _row(run), strict=True):
        print(f"{name:<24} {text}")
    print(f"{'video':<24} {run.folder / (manifest.video or GROWING)}")
    for name, text in {**manifest.sound, **manifest.identity}.items():
        print(f"{name:<24} {text}")
    for text in _drift(read(run.folder, manifest.progress.num_windows)):
        print(f"{'drift':<24} {text}")
    return 0


def _drift(windows: Sequence[WindowMeasures]) -> list[str]:
    """Of the windows that moved notably, the last ones of many, and of the last window."""
    from ..quality.drift import notable

    told = [*notable(windows)[-MOST_DRIFTS:], *windows[-1:]]
    return [measures.since(windows[0]) for measures in dict.fromkeys(told) if measures is not windows[0]]


def _resume(run: Found) -> int:
    from ..engine.manifests import Job as Stored
    from ..runs.find import free_run
    from ..runs.names import video_name
    from . import generate

    job, folder = run.manifest.job, run.folder.absolute()
    if job is None:
        raise OutputError(f"{run.folder} was begun in ComfyUI. Start the same graph there again.")
    stored = Stored.from_json(job, str(run.folder))
    home = str(job.get("folder", "."))
    try:
        os.chdir(home)  # paths of the job are as they were given there
    except OSError as error:
        raise OutputError(
            f"{run.folder} was begun in {home}, which cannot be entered ({error.strerror}). "
            "Start its command again with the paths of this machine: it goes on with the run."
        ) from None
    request = replace(stored.request, output=str(video_name(free_run(folder))))
    return generate.make(generate.Job(request, stored.files, stored.options, False, str(folder), is_named=False))


def _remove(folder: Path) -> int:
    from ..runs.find import remove

    others = remove(folder)
    print(f"removed {folder}" + (f", but for {', '.join(others)}, which no run wrote" if others else ""))
    return 0
