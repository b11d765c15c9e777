"""Which run a request goes on with: the folders that are there, compared with what is asked for."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError, ResumeError
from ..untrusted import answered, once_per_state
from ..video.soundtrack import Soundtrack
from . import lock
from .identity import MACHINE, differences, identify
from .lock import is_locked
from .manifest import NAME, Manifest
from .names import SUFFIX, is_same, video_name
from .store import GROWING, PASSING, Run, own_files, remove_own

AUTO, NEVER = "auto", "never"
MOST_DIFFERENCES = 4  # that a message lists
MOST_KNOWN = 4096  # manifests of some 30 kB that are remembered
logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class Found:
    """A run folder as it is on the disk."""

    folder: Path
    manifest: Manifest

    @property
    def is_live(self) -> bool:
        """Whether some process writes it now."""
        return is_locked(self.folder)

    @property
    def is_gone(self) -> bool:
        """Whether it is finished, and its video was deleted."""
        return self.manifest.video is not None and self.manifest.finished_file(self.folder) is None

    @property
    def num_bytes(self) -> int:
        """Of all its files. Whoever writes it may take some away meanwhile."""
        total = 0
        with contextlib.suppress(OSError):
            for file in self.folder.iterdir():
                with contextlib.suppress(OSError):
                    total += file.stat().st_size if file.is_file() else 0
        return total

    @property
    def changed_at(self) -> float:
        """When its manifest was written, in seconds; 0 where it was removed meanwhile."""
        try:
            return (self.folder / NAME).stat().st_mtime
        except OSError:
            return 0.0


def find_runs(root: Path) -> Iterator[Found]:
    """Runs in folders of `root`, in order of their names; what is no run is passed over.

    Manifests that have not changed are not read again: whoever goes on with a run reads its own (see store.Run).
    """
    for file in sorted(root.glob(f"*/{NAME}")):
        yield from _read(file)


def _read(file: Path) -> Iterator[Found]:
    try:
        yield Found(file.parent, _manifest(file))
    except OutputError as error:
        logger.debug("%s", error)


@once_per_state(MOST_KNOWN)
def _manifest(file: Path) -> Manifest:
    return Manifest.read(file.parent)


class Neighbors:
    """Runs beside videos. Each folder is listed once, for thousands of videos in it; what comes later is not seen."""

    def __init__(self) -> None:
        self._names: dict[Path, list[str]] = {}

    def runs_of(self, video: Path) -> Iterator[Found]:
        """Those that may have made a video, by their names: NAME.run, NAME_2.run."""
        names = self._listed(video.parent)
        own = re.compile(rf"{re.escape(video.stem)}(_[0-9]+)?{re.escape(SUFFIX)}")
        for index in range(bisect_left(names, video.stem), len(names)):
            if not names[index].startswith(video.stem):
                return
            if own.fullmatch(names[index]) and (file := video.with_name(names[index]) / NAME).exists():
                yield from _read(file)

    def _listed(self, folder: Path) -> list[str]:
        if folder not in self._names:
            self._names[folder] = []
            with contextlib.suppress(OSError):  # it is not there yet, or is not to be listed
                self._names[folder] = sorted(path.name for path in folder.iterdir())
        return self._names[folder]


def why_not_made(video: Path, wanted: Manifest, neighbors: Neighbors) -> str:
    """Why a video is not the one that is wanted, from a run beside it; empty where it is, whichever machine made it."""
    now = _asked(wanted)
    reasons = []
    for run in neighbors.runs_of(video):
        file = run.manifest.finished_file(run.folder)
        if file is None or identify([file]) != identify([video]):
            continue
        changes = differences(_asked(run.manifest), now)
        if not changes:
            return ""
        reasons.append(_listed(changes))
    return next(iter(reasons), "no run beside it made it")


def _asked(manifest: Manifest) -> dict[str, str]:
    named = {**manifest.identity, **manifest.sound}
    return {name: value for name, value in named.items() if name not in MACHINE}


def last_writes(video: Path, neighbors: Neighbors) -> frozenset[tuple[str, int]]:
    """Runs beside a video that were begun for it, and when each of them was written last."""
    own = [run.folder for run in neighbors.runs_of(video) if run.manifest.output == str(video.absolute())]
    return frozenset((folder.name, (folder / NAME).stat().st_mtime_ns) for folder in own)


def written_since(video: Path, before: frozenset[tuple[str, int]]) -> Path | None:
    """The run that was begun, or begun anew, for a video since `before` (see last_writes)."""
    names = sorted(name for name, _ in last_writes(video, Neighbors()) - before)
    return video.with_name(names[-1]) if names else None


def survey(root: Path) -> tuple[list[Found], list[tuple[Path, str]]]:
    """Runs in folders of `root`, in order of their names, and what looks like one and cannot be read, with the reason.

    Every manifest is read once.
    """
    runs, others = list[Found](), list[tuple[Path, str]]()
    for folder in sorted({*(file.parent for file in root.glob(f"*/{NAME}")), *root.glob(f"*{SUFFIX}")}):
        if folder.is_symlink() and not folder.exists():
            others.append((folder, f"a link to {folder.readlink()}, which is not there"))
        elif os.path.lexists(folder / NAME):
            try:
                runs.append(Found(folder, Manifest.read(folder)))
            except OutputError as error:
                others.append((folder, str(error).replace(str(folder / NAME), NAME)))
        elif folder.is_dir() and not is_locked(folder):
            others.append((folder, f"no {NAME}"))
    return runs, others


def remove(folder: Path) -> list[str]:
    """Delete the files of a run that nobody writes, and its folder if it has no others.

    Returns: the names of the others, which stay. Raises: OutputError for a link, no folder, no run, or a live one.
    """
    if folder.is_symlink():
        raise OutputError(f"{folder} is a link to {folder.readlink()}. Name that folder, or delete the link itself.")
    if not folder.is_dir():
        raise OutputError(f"There is no folder {folder}. Name a run of `runs list`.")
    with answered(str(folder), OutputError, "deleted"):
        is_own = own_files(folder) or (folder / lock.NAME).exists()
        if not is_own and (any(folder.iterdir()) or folder.suffix != SUFFIX):
            raise OutputError(f"{folder} has no file of a run, and is left as it is. Name a run of `runs list`.")
        held = lock.FolderLock(folder)  # nobody writes it, and nobody begins to
        try:
            remove_own(folder)
        finally:
            held.release()
        others = sorted(file.name for file in folder.iterdir())
        if not others:
            with contextlib.suppress(PermissionError):  # Windows keeps one that a program works in
                folder.rmdir()
        return others


def orphans(root: Path) -> list[Path]:
    """Parts that versions without run folders left: they can be played, and nothing goes on from them."""
    return sorted(root.glob(".*.partial-??????.mp4"))


def open_run(
    wanted: Manifest, folder: Path, resume: str, soundtrack: Soundtrack | None, replaced: Path | None = None
) -> Run:
    """The run of a request: one that was begun, if it is of the same request, else a new one.

    Args:
        folder: of a new run; one with a number is made if it is taken. Runs to go on with lie beside it.
        resume: auto, never, or the folder of the run to go on with.
        replaced: a file that the result will be put in place of; the finished run that made it is replaced too.
    Raises: OutputError when the run that is named, or the one that is there under this name, cannot be gone on with.
    """
    if resume not in (AUTO, NEVER):
        return _go_on(_named(Path(resume).expanduser(), wanted), wanted, soundtrack)
    if resume == AUTO:
        neighbors = list(find_runs(folder.parent))
        usable = [run for run in neighbors if (run.folder == folder or run.manifest.video is None) and not run.is_live]
        same = [run for run in usable if not (differs(run.manifest, wanted) or _is_drawn_and_done(run.manifest))]
        related = [run for run in usable if shares_beginning(run.manifest, wanted)]
        order = sorted(same or related, key=lambda run: (run.folder != folder, -run.manifest.progress.num_windows))
        for run in order:
            try:
                return _go_on(run, wanted, soundtrack)
            except ResumeError as error:
                logger.warning("%s", error)
        for run in neighbors:
            if run.folder == folder:
                _say_why_not(run, wanted)
        finished = [run for run in neighbors if may_continue(run, wanted)]
        for run in sorted(finished, key=lambda run: -run.manifest.plan.num_frames):
            try:
                return _continue(run, wanted, folder, soundtrack)
            except ResumeError as error:
                logger.warning("%s", error)
    if replaced is not None and is_made(folder, replaced):
        return Run(folder, wanted, soundtrack)
    return _begin(folder, wanted, soundtrack)


def _begin(folder: Path, wanted: Manifest, soundtrack: Soundtrack | None, beginning: Path | None = None) -> Run:
    """A new run, in another folder where somebody else takes this one at the same moment."""
    while True:
        free = free_run(folder) if _is_taken(folder) else folder
        try:
            return Run(free, wanted, soundtrack, beginning=beginning)
        except OutputError:
            if not is_locked(free):
                raise


def differs(before: Manifest, now: Manifest) -> list[str]:
    """What of two requests differs, a sentence each; nothing: they make the same video."""
    return differences({**before.identity, **before.sound}, {**now.identity, **now.sound})


def shares_beginning(before: Manifest, now: Manifest) -> bool:
    """Whether a run that was stopped may turn out to be the beginning of another one: all but its sound is the same.

    Whether the speech of its windows is the same too is known once it is encoded (see engine.recorded).
    """
    done = before.progress.num_windows
    is_begun = before.video is None and not before.is_complete and 0 < done < now.plan.num_windows
    return is_begun and dict(before.identity) == dict(now.identity)


def may_continue(finished: Found, now: Manifest) -> bool:
    """Whether a finished run may turn out to be the beginning of a longer one, as of `shares_beginning`."""
    before = finished.manifest
    if before.video is None or before.plan.num_frames >= now.plan.num_frames or finished.is_live:
        return False
    if dict(before.identity) != dict(now.identity) or finished.is_gone:
        return False
    if before.tail is None:
        logger.info(
            "%s is finished and cannot be made longer: its video ends with its sound, and the speech encoder and the "
            "loudness take in all of a sound. The longer video is made anew.", finished.folder,
        )  # fmt: skip
        return False
    return (finished.folder / before.tail.state).is_file()


def _continue(found: Found, wanted: Manifest, folder: Path, soundtrack: Soundtrack | None) -> Run:
    tail = found.manifest.tail
    assert tail is not None
    logger.info(
        "The first %d windows are taken from the finished video in %s, which stays.", tail.num_windows, found.folder
    )
    return _begin(folder, wanted, soundtrack, found.folder)


def _named(folder: Path, wanted: Manifest) -> Found:
    found = Found(folder, Manifest.read(folder))
    changes = differs(found.manifest, wanted)
    if changes and not shares_beginning(found.manifest, wanted):
        raise OutputError(
            f"{folder} is the run of another request: {_listed(changes)}.\n"
            "Ask for what it was begun with, or leave --resume out and begin another one."
        )
    return found


def _go_on(found: Found, wanted: Manifest, soundtrack: Soundtrack | None) -> Run:
    if found.is_gone:
        logger.info("The video of %s was removed; it is made again.", found.folder)
        return Run(found.folder, wanted, soundtrack)
    run = Run(found.folder, wanted, soundtrack, goes_on=True)
    if run.video:
        logger.info("%s has the finished video of this request.", run.folder)
    else:
        done, of_all = run.manifest.progress.num_windows, run.manifest.plan.num_windows
        logger.info("The run in %s goes on: %d of %d windows are there.", run.folder, done, of_all)
    return run


def _is_drawn_and_done(manifest: Manifest) -> bool:
    """Whether it made its video from a seed that was drawn, so that the same request means another one."""
    is_there = manifest.output is not None and Path(manifest.output).exists()
    return manifest.seed is not None and manifest.video is not None and is_there


def is_free(folder: Path) -> bool:
    """Whether a new run may have this folder, and its video the name of it."""
    return not (_is_taken(folder) or os.path.lexists(video_name(folder)))


def free_run(folder: Path) -> Path:
    """`folder` if it is free, else with the first number that is."""
    free, number = folder, 1
    while not is_free(free):
        number += 1
        free = folder.with_stem(f"{folder.stem}_{number}")
    return free


def _is_taken(folder: Path) -> bool:
    """By anything but what a process left that ended there before it wrote a manifest."""
    if not os.path.lexists(folder):
        return False
    if folder.is_symlink() or not folder.is_dir() or is_locked(folder):
        return True
    try:
        return not all(PASSING.fullmatch(file.name) or file.name == lock.NAME for file in folder.iterdir())
    except PermissionError:  # another user's
        return True


def is_made(folder: Path, video: Path) -> bool:
    """Whether the run in a folder is finished and `video` is another name of its file."""
    try:
        found = Manifest.read(folder)
    except OutputError:
        return False
    return found.video is not None and is_same(folder / found.video, video) and not is_locked(folder)


def _say_why_not(run: Found, wanted: Manifest) -> None:
    if run.is_live:
        raise OutputError(f"{run.folder} is being written by another process. Wait for it, or choose another name.")
    changes = differs(run.manifest, wanted)
    if run.manifest.video is None and changes:
        logger.warning(
            "The unfinished run in %s is of another request and stays as it is: %s.\nWhat it has can be played: %s",
            run.folder, _listed(changes), run.folder / GROWING,
        )  # fmt: skip


def _listed(changes: list[str]) -> str:
    more = len(changes) - MOST_DIFFERENCES
    return "; ".join(changes[:MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
