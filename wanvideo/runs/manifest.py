"""The manifest of a run: what decides its frames, its plan, and how far it is. The file is the run's one truth."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..durable import write_atomically
from ..errors import InputError, OutputError
from ..job import build
from ..keep import CRF, MAX_CRF
from ..untrusted import read_json
from ..video.part import Position
from .names import VIDEO_SUFFIX, from_stored, is_near, to_stored

NAME = "manifest.json"
DRAWN = "drawn"  # what identifies a seed that the request leaves open
FORMAT = 2  # raised when a folder of an older version cannot be gone on with
MARKER = "wanvideo_run"
STATE = re.compile(r"state_\d{6,}\.safetensors")  # name of a file with what a window begins with


@dataclass(frozen=True)
class Plan:
    """The numbers of a run: size in pixels, frames a second, frames and windows of the whole video, x264's quality."""

    width: int
    height: int
    fps: float
    num_frames: int
    num_windows: int
    crf: int = CRF


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        num_windows: finished. num_frames, num_bytes: of the growing file with them.
        state: name of the file with what the next window begins with. speech: hash of the speech so far.
    """

    num_windows: int = 0
    num_frames: int = 0
    num_bytes: int = 0
    state: str = ""
    speech: str = ""

    @property
    def position(self) -> Position:
        """In the growing file."""
        return Position(self.num_frames, self.num_bytes)


@dataclass(frozen=True)
class Manifest:
    """A run.

    Args:
        identity: what decides its frames but for the sound, by name. sound: what decides the sound and the length.
        job: with which its face makes the same video again, as JSON; None where only the face's user can.
        output: the name that its user asked for, or that its video has, or None. On the disk it is seen from the
            folder where it is beside it, so that a folder of videos may be moved.
        video: the finished file, seen from the folder; None before.
        seed: that was drawn for it, where the request leaves it open; whoever goes on takes it.
        can_grow: whether a longer video may begin with the same windows: it ends before its sound does, or has none.
        tail: where the last window began, of a finished run that can grow.
    """

    identity: Mapping[str, str]
    sound: Mapping[str, str]
    plan: Plan
    job: Mapping[str, Any] | None = None
    output: str | None = None
    progress: Progress = field(default_factory=Progress)
    video: str | None = None
    seed: int | None = None
    can_grow: bool = False
    tail: Progress | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all windows are there."""
        return self.progress.num_windows >= self.plan.num_windows

    def finished_file(self, folder: Path) -> Path | None:
        """The finished video of the run in `folder`; None while there is none, or where it is not there any more."""
        file = None if self.video is None else folder / self.video
        return file if file is not None and is_near(folder, file) and file.is_file() else None

    def own_output(self, folder: Path) -> str | None:
        """`output`, where it is a name that videos of the run in `folder` are given."""
        path = Path(self.output or "")
        return self.output if path.suffix.lower() == VIDEO_SUFFIX and is_near(folder, path) else None

    def at(self, progress: Progress) -> Manifest:
        """The same run, further on."""
        return replace(self, progress=progress)

    def write(self, folder: Path) -> None:
        """Put it in place of the one that is there, in one step. Raises: OSError."""
        data = {MARKER: FORMAT, **vars(self), **_renamed(vars(self), folder, to_stored)}
        write_atomically(folder / NAME, json.dumps(data, ensure_ascii=False, indent=1, default=vars).encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises: OutputError when the folder is no run, or one that this version cannot go on with."""
        file = folder / NAME
        data = read_json(file, "the manifest of a run", OutputError)
        marker = data.pop(MARKER, None) if isinstance(data, dict) else None
        if type(marker) is int and marker > FORMAT:
            raise OutputError(
                f"{file} is of a newer version of this program. Update this one, or begin the video anew."
            )
        if marker != FORMAT:
            raise OutputError(f"{file} is no manifest of a run, or of another version. Begin the video anew.")
        try:
            inner: dict[str, Any] = {
                "plan": Plan(**data["plan"]),
                "progress": build(Progress, data["progress"], "progress"),
            }
            if data.get("tail") is not None:
                inner["tail"] = build(Progress, data["tail"], "tail")
            manifest = cls(**{**data, **inner, **_renamed(data, folder, from_stored)})
        except (TypeError, KeyError, InputError) as error:
            raise OutputError(f"{file} is damaged ({error}). Begin the video anew.") from None
        _check(manifest, file)
        return manifest


def _renamed(fields: Mapping[str, Any], folder: Path, rename: Callable[[Path, str], str]) -> dict[str, str]:
    """Names of files outside of the folder, of a manifest in memory for the disk or the other way round."""
    names = {field: fields.get(field) for field in ("output", "video")}
    return {field: rename(folder, name) for field, name in names.items() if isinstance(name, str)}


def _check(manifest: Manifest, file: Path) -> None:
    """Values of the types and in the ranges that the fields are declared with, and names of states as runs give."""
    plan, places = manifest.plan, [manifest.progress, manifest.tail or Progress()]
    whole = [plan.width, plan.height, plan.num_frames, plan.num_windows, plan.crf]
    whole += [number for at in places for number in (at.num_windows, at.num_frames, at.num_bytes)]
    names = [manifest.video or "", manifest.output or "", *(name for at in places for name in (at.state, at.speech))]
    maps = [manifest.identity, manifest.sound, {} if manifest.job is None else manifest.job]
    is_drawn = manifest.identity.get("seed") == DRAWN if isinstance(manifest.identity, dict) else False
    is_right = (
        all(type(number) is int and number >= 0 for number in whole)
        and isinstance(plan.fps, int | float)
        and plan.fps > 0
        and plan.crf <= MAX_CRF
        and all(isinstance(name, str) for name in names)
        and all(isinstance(values, dict) for values in maps)
        and all(isinstance(value, str) for named in maps[:2] for value in named.values())
        and all(STATE.fullmatch(at.state) for at in places if at.state)
        and (type(manifest.seed) is int and 0 <= manifest.seed < 2**64 if is_drawn else manifest.seed is None)
        and isinstance(manifest.can_grow, bool)
    )
    if not is_right:
        raise OutputError(f"{file} is damaged: its values are of other kinds than a run has. Begin the video anew.")
