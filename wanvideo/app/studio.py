"""What the pages do: plan, make, cancel, list and resume videos of one folder, through the public pipeline.

Where several people reach the app each of them is a name that only their browser keeps, and has a folder of their own
inside. Its name is made from that one: who sees it, in a folder or an address of a video, does not know the user's.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..cli.generate import Job
from ..engine.manifests import Job as Stored
from ..errors import InputError, OutputError
from ..pipeline import TalkingVideoPipeline
from ..request import EngineOptions, ModelFiles, TalkRequest
from ..runs.find import AUTO, Found, find_runs, is_free
from ..runs.names import SUFFIX, video_name
from ..runs.store import DRIFT, GROWING
from .form import Form, read_form
from .queue import RUNNING, Task, TaskQueue
from .uploads import Uploads

SPEECH, USERS = "speech", "users"
NAME = re.compile("[0-9a-f]{32}")  # of a user, or a place: not to be guessed
NOBODY = "The page does not know whose it is. Load it again."


@dataclass(frozen=True)
class RunLine:
    """A run as the list has it. state: running, stopped or finished. seconds: that are there. prompt: the first one."""

    name: str
    state: str
    num_windows: int
    of_windows: int
    seconds: float
    prompt: str


class Studio:
    """One for a server. The models of the last video stay, for the next one of the same models and options.

    Args:
        base: flags of `generate` that the app was started with. folder: of videos, runs, uploads and speech.
        is_shared: whether it has several users, who see their own runs; else all runs are those of the one user, "".
    """

    def __init__(self, base: Sequence[str], folder: Path, uploads: Uploads, is_shared: bool = False) -> None:
        self.base, self.folder, self.uploads, self.is_shared = tuple(base), folder, uploads, is_shared
        self.queue = TaskQueue()
        self._pipeline: TalkingVideoPipeline | None = None

    def read(self, form: Form) -> Job:
        """The job of a form, everything it names opened and checked. Raises: TalkError."""
        job = read_form(form, self.base, self.uploads, str(self.folder / SPEECH))
        TalkingVideoPipeline(job.files, job.options).check(job.request)
        return job

    def plan(self, form: Form) -> str:
        """What it needs and how long it takes. Raises: TalkError."""
        job = read_form(form, self.base, self.uploads, str(self.folder / SPEECH))
        return TalkingVideoPipeline(job.files, job.options).plan(job.request).describe()

    def user(self, known: str) -> str:
        """Who a browser is: as it remembers, else somebody new."""
        if not self.is_shared:
            return ""
        return known if _is_name(known) else secrets.token_hex(16)

    def submit(self, form: Form, user: str = "") -> Task:
        """Queue a video. Raises: TalkError, before anything is queued."""
        self.place(user)
        job = self.read(form)
        return self.queue.submit(
            lambda task: self._make(job.request, job.files, job.options, AUTO, task), self.user(user)
        )  # fmt: skip

    def runs(self, user: str = "") -> list[RunLine]:
        """A user's runs, the newest first."""
        found = sorted(find_runs(self.home(self.place(user))), key=lambda run: -run.changed_at)
        return [_line(run) for run in found]

    def place(self, user: str) -> str:
        """Where a user's videos are. Who knows it may play them; it says nothing of the user's name, who may do more.

        Raises: InputError for what is no user.
        """
        if not self.is_shared:
            return ""
        if not _is_name(user):
            raise InputError(NOBODY)
        return hashlib.blake2b(user.encode(), digest_size=16).hexdigest()

    def home(self, place: str) -> Path:
        """The folder of a user's videos and runs. Raises: InputError for what is no place."""
        if not self.is_shared:
            return self.folder
        if not _is_name(place):
            raise InputError(NOBODY)
        return self.folder / USERS / place

    def resume(self, name: str, user: str = "") -> Task:
        """Queue what a run lacks. Raises: InputError, OutputError."""
        run = self._run(name, self.place(user))
        if run.manifest.job is None:
            raise OutputError(f"{name} was begun in ComfyUI. Queue the same graph there, which goes on with it.")
        if run.is_live:
            raise InputError(f"{name} is being made. Wait for it, or cancel it first.")
        stored = Stored.from_json(run.manifest.job, name)
        self._check_own(stored.request)
        files = _absolute(stored.files, Path(str(run.manifest.job.get("folder", "."))))
        return self.queue.submit(
            lambda task: self._make(stored.request, files, stored.options, str(run.folder), task), self.user(user)
        )  # fmt: skip

    def video_of(self, name: str, place: str = "") -> Path:
        """The file of a run that can be played now. Raises: InputError."""
        run = self._run(name, place)
        file = run.folder / (run.manifest.video or GROWING)
        if not self._is_there(file, place):
            raise InputError(f"{name} has no video here yet. Wait for its first window.")
        return file

    def drift_of(self, name: str, place: str = "") -> Path | None:
        """The plot of a run's drift, or None where there is none (yet). Raises: InputError."""
        file = self._run(name, place).folder / DRIFT
        return file if self._is_there(file, place) else None

    def run_of(self, task: Task) -> str | None:
        """The name of the run folder that a task writes, once it has a window."""
        runs = [run for run in find_runs(self.home(self.place(task.user))) if run.manifest.progress.num_windows]
        if task.output is not None:
            task.run = next((run.folder.name for run in runs if run.manifest.output == str(task.output)), None)
        elif task.state == RUNNING:  # the only one that this worker writes
            task.run = next((run.folder.name for run in runs if run.is_live), task.run)
        return task.run

    def close(self) -> None:
        """Stop the worker; what is finished of its video can be gone on with."""
        self.queue.stop()

    def _make(self, request: TalkRequest, files: ModelFiles, options: EngineOptions, resume: str, task: Task) -> Path:
        task.check()
        home = self.home(self.place(task.user))
        home.mkdir(parents=True, exist_ok=True)
        request = replace(request, output=str(_free_output(home)))
        return (
            self._pipeline_of(files, options)
            .generate(request, on_step=task.report, resume=resume, is_named=False)
            .absolute()
        )

    def _pipeline_of(self, files: ModelFiles, options: EngineOptions) -> TalkingVideoPipeline:
        known = self._pipeline
        if known is None or (known.named, known.options) != (files, options):
            self._pipeline = known = None  # its memory goes before the next one's is taken
            gc.collect()
            self._pipeline = known = TalkingVideoPipeline(files, options)
        return known

    def _run(self, name: str, place: str) -> Found:
        found = next((run for run in find_runs(self.home(place)) if run.folder.name == name), None)
        if found is None:
            raise InputError(f"There is no run {str(name)[:80]!r} in the list. Choose one of it.")
        return found

    def _is_there(self, file: Path, place: str) -> bool:
        """Whether it is a file of this place, and no link to somebody else's."""
        return file.is_file() and file.resolve().is_relative_to(self.home(place).resolve())

    def _check_own(self, request: TalkRequest) -> None:
        """A run's job names files of the app's folder only, whoever wrote it there."""
        masks = [speaker.mask for speaker in request.speakers] + [request.keep.mask if request.keep else None]
        for path in (request.reference, *(speaker.audio for speaker in request.speakers), *masks):
            if path is not None and not Path(path).resolve().is_relative_to(self.folder.resolve()):
                raise InputError(
                    f"The run names {Path(path).name!r}, which is not in the app's folder. "
                    "Run `python -m wanvideo runs resume` for it."
                )


def _is_name(text: object) -> bool:
    """Whatever a browser sent."""
    return isinstance(text, str) and NAME.fullmatch(text) is not None


def _free_output(home: Path) -> Path:
    """A name that no video and no run has, by which `run_of` tells runs apart."""
    names = (home / f"talking_video_{number}{SUFFIX}" for number in itertools.count(1))
    return video_name(next(name for name in names if is_free(name)))


def _line(run: Found) -> RunLine:
    manifest, done = run.manifest, run.manifest.progress
    state = "running" if run.is_live else "stopped" if manifest.video is None else "finished"
    request = (manifest.job or {}).get("request")
    prompts = request.get("prompts") if isinstance(request, dict) else None
    prompt = str(prompts[0]) if isinstance(prompts, list) and prompts else ""
    return RunLine(
        run.folder.name, state, done.num_windows, manifest.plan.num_windows, done.num_frames / manifest.plan.fps, prompt
    )


def _absolute(files: ModelFiles, folder: Path) -> ModelFiles:
    """Paths as they were seen from the folder that a run was begun in."""
    names = ("transformer", "adapter", "folder", "vae", "text_encoder", "tokenizer", "clip_vision", "wav2vec")
    seen = {name: str(folder / Path(path).expanduser()) for name in names if (path := getattr(files, name)) is not None}
    loras = tuple(replace(lora, path=str(folder / Path(lora.path).expanduser())) for lora in files.loras)
    return replace(files, **seen, loras=loras)
