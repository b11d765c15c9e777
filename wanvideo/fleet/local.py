"""Jobs on the GPUs of this machine: a group of warm worker processes for each job that runs at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .dispatch import JobFailed, Stopped
from .group import Group, TaskFailed, WorkerDied
from .messages import Done, Step
from .tasks import VideoTask


@dataclass(frozen=True)
class VideoWork:
    """A job through the pipeline. is_made: whether its video is there from an earlier batch."""

    name: str
    task: VideoTask
    is_made: bool = False

    @property
    def output(self) -> Path:
        return Path(self.task.request.output or f"{self.name}.mp4")

    @property
    def key(self) -> Hashable:
        return self.task.key

    def is_done(self) -> bool:
        return self.is_made


class LocalPlace:
    """Some GPUs of this machine, or some processes on its CPU. Args: devices: see Group."""

    def __init__(self, devices: list[str] | int, number: int = 1) -> None:
        many = "GPU" if not isinstance(devices, int) and len(devices) == 1 else "GPUs"
        self.name = f"worker {number}" if isinstance(devices, int) else f"{many} {', '.join(devices)}"
        self._on_line: Callable[[str], None] = print_nothing
        self._group = Group(devices, lambda line: self._on_line(line))
        self._is_stopped = False

    @property
    def key(self) -> Hashable:
        return self._group.key if self._group.is_warm else None

    @property
    def process_ids(self) -> list[int]:
        """Of its workers."""
        return self._group.process_ids

    def run(self, work: VideoWork, on_step: Callable[[Step], None], on_line: Callable[[str], None]) -> Path:
        self._on_line = on_line
        if self._is_stopped:
            raise Stopped("It was not begun. Start the batch again.")
        try:
            with closing(self._group.run(work.task)) as messages:
                for message in messages:
                    if isinstance(message, Step):
                        on_step(message)
                    elif isinstance(message, Done):
                        return Path(message.value)
        except TaskFailed as error:
            if error.was_stopped:
                raise Stopped("What is finished is kept. Start the batch again to go on.") from None
            raise JobFailed(str(error), error.is_final) from None
        except WorkerDied as error:
            raise JobFailed(str(error)) from None
        raise AssertionError("a group ends with Done")

    def is_there(self) -> bool:
        return True

    def stop(self) -> None:
        self._is_stopped = True
        self._group.stop()

    def close(self) -> None:
        self._group.close()


def print_nothing(line: str) -> None:
    """For lines that no job is there for."""


def local_places(
    gpus: list[str] | None, gpus_per_job: int, num_workers: int | None, num_gpus: int
) -> list[LocalPlace]:  # fmt: skip
    """Where jobs run on this machine.

    Args:
        gpus: numbers of those to use; None: all num_gpus of them. num_workers: jobs at a time; None: as many as fit.
    Raises: InputError for numbers that the machine does not have.
    """
    if num_gpus == 0 and not gpus:
        return [LocalPlace(gpus_per_job, number + 1) for number in range(num_workers or 1)]
    chosen = gpus or [str(index) for index in range(num_gpus)]
    unknown = [name for name in chosen if not name.isdigit() or int(name) >= num_gpus]
    if unknown or len(set(chosen)) < len(chosen):
        raise InputError(
            f"--gpus {','.join(chosen)} are not {len(chosen)} of this machine's {num_gpus} GPUs, which are numbered "
            "from 0. Give some of these, each once."
        )
    count = min(num_workers or len(chosen), len(chosen) // gpus_per_job)
    if count == 0:
        raise InputError(
            f"--gpus_per_job {gpus_per_job} is more than the {len(chosen)} GPUs that may be used. Give at most that."
        )
    if num_workers is not None and num_workers > count:
        raise InputError(
            f"--workers {num_workers} of {gpus_per_job} GPUs each do not fit {len(chosen)} GPUs. Use at most {count}."
        )
    return [LocalPlace(chosen[n * gpus_per_job : (n + 1) * gpus_per_job], n + 1) for n in range(count)]
