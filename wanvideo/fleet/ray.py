"""Jobs on a Ray cluster: an actor for each job that runs at a time, which starts its workers on its own machine.

Ray is optional. All machines see the files that jobs name, and the folders of the videos, under the same paths.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from contextlib import closing
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UnsupportedError
from .dispatch import JobFailed, PlaceLost, Stopped
from .group import Group, TaskFailed, WorkerDied
from .local import VideoWork
from .messages import Done, Failed, Step
from .tasks import VideoTask

POLL_S = 1.0
PACKAGE = Path(__file__).resolve().parents[1]


class Actor:
    """What lives on a machine of the cluster. num_gpus: that Ray gave it, and made the only visible ones; 0: none."""

    def __init__(self, num_gpus: int, num_ranks: int) -> None:
        self._lines: list[str] = []
        self._step: Step | None = None
        self._lock = threading.Lock()
        self._group = Group([str(index) for index in range(num_gpus)] or num_ranks, self._log)

    def run(self, task: VideoTask) -> str | Failed:
        """The path of the video, or why there is none."""
        try:
            with closing(self._group.run(task)) as messages:
                for message in messages:
                    if isinstance(message, Done):
                        return str(message.value)
                    self._step = message if isinstance(message, Step) else self._step
        except TaskFailed as error:
            return Failed(error.kind, str(error), error.is_final, error.was_stopped)
        except WorkerDied as error:
            return Failed(type(error).__name__, str(error))
        raise AssertionError("a group ends with Done")

    def news(self) -> tuple[Step | None, list[str]]:
        """The last step, and the lines of the log, since this was asked before."""
        with self._lock:
            step, lines, self._step, self._lines = self._step, self._lines, None, []
        return step, lines

    def stop(self) -> None:
        self._group.stop()

    def process(self) -> int:
        """Its number on its machine."""
        return os.getpid()

    def _log(self, line: str) -> None:
        with self._lock:
            self._lines.append(line)


class RayPlace:
    """An actor, made anew where it died. Args: num_gpus: that it asks for; 0 on clusters without any."""

    def __init__(self, ray: ModuleType, num_gpus: int, num_ranks: int, number: int) -> None:
        self.name = f"actor {number}"
        self.key: Hashable = None
        self._ray, self._num_gpus, self._num_ranks = ray, num_gpus, num_ranks
        self._actor: Any = None
        self._stops = threading.Event()

    def run(self, work: VideoWork, on_step: Callable[[Step], None], on_line: Callable[[str], None]) -> Path:
        if self._stops.is_set():
            raise Stopped("It was not begun. Start the batch again.")
        ray, actor = self._ray, self._made()
        try:
            self.key = work.key
            running, is_told = actor.run.remote(work.task), False
            while not ray.wait([running], timeout=POLL_S)[0]:
                if self._stops.is_set() and not is_told:
                    is_told = bool(ray.get(actor.stop.remote()) is None)
                step, lines = ray.get(actor.news.remote())
                for line in lines:
                    on_line(line)
                if step is not None:
                    on_step(step)
            result = ray.get(running)
        except ray.exceptions.RayError as error:
            self._actor = self.key = None
            said = " ".join(str(error).split())[:300]
            raise PlaceLost(f"{self.name} is gone: {said}\nIt is made anew. For the cause read Ray's log.") from None
        if isinstance(result, Failed) and result.was_stopped:
            raise Stopped("What is finished is kept. Start the batch again to go on.")
        if isinstance(result, Failed):
            raise JobFailed(result.message, result.is_final)
        return Path(result)

    def is_there(self) -> bool:
        return not self._stops.is_set()

    def stop(self) -> None:
        self._stops.set()

    def close(self) -> None:
        if self._actor is not None:
            self._ray.kill(self._actor)
            self._actor = None

    def _made(self) -> Any:
        if self._actor is None:
            kind = self._ray.remote(num_gpus=self._num_gpus, num_cpus=1, max_concurrency=4)(Actor)
            self._actor = kind.remote(self._num_gpus, self._num_ranks)
        return self._actor


def ray_places(address: str | None, gpus_per_job: int, num_workers: int | None) -> list[RayPlace]:
    """Actors on a cluster: as many as it has GPUs for, or as many as are asked for.

    Raises: UnsupportedError where Ray is not installed or the cluster cannot be reached.
    """
    if find_spec("ray") is None:
        raise UnsupportedError("--engine ray needs Ray, which is not installed. Install it: pip install ray")
    ray = import_module("ray")
    if not ray.is_initialized():
        environment = {"py_modules": [str(PACKAGE)]}
        try:
            ray.init(address=address, runtime_env=environment, logging_level="warning", log_to_driver=False)
        except (OSError, RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:300]
            raise UnsupportedError(
                f"The Ray cluster {address or 'of this machine'} cannot be used: {said}\nCheck --address."
            ) from None
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    count = num_workers or max(1, num_gpus // gpus_per_job)
    wanted = gpus_per_job if num_gpus else 0
    return [RayPlace(ray, wanted, gpus_per_job, number + 1) for number in range(count)]
