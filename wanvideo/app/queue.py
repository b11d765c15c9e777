"""Videos that wait for the one worker, the one that is made, and those that ended."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli.shortage import describe_shortage
from ..errors import InputError, TalkError

if TYPE_CHECKING:
    from ..sampling.window import StepReport

WAITING, RUNNING, FINISHED, CANCELLED, FAILED = "waiting", "running", "finished", "cancelled", "failed"
ENDED = (FINISHED, CANCELLED, FAILED)
MOST_WAITING = 20
MOST_REMEMBERED = 200  # tasks that ended
logger = logging.getLogger("wanvideo")


class Cancelled(Exception):
    """Ends a run between two steps; what is finished of it is kept."""


@dataclass(eq=False)
class Task:
    """One video of the queue.

    Args:
        id: not to be guessed; who knows it may cancel it. work: makes the video, and is given the task.
        user: whose it is.
        step, num_steps: of the whole video, 0 before the first one. window: that runs, from 0 on.
        run: name of the folder that it writes, once that is known. output: the finished file.
        message: what went wrong.
    """

    work: Callable[[Task], Path]
    user: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    state: str = WAITING
    window: int = 0
    num_windows: int | None = None
    step: int = 0
    num_steps: int = 0
    seconds_left: float | None = None
    run: str | None = None
    output: Path | None = None
    message: str = ""
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _first: tuple[int, float] | None = None  # (step, time) that the rate is measured from

    def report(self, report: StepReport) -> None:
        """Called after every step. Raises: Cancelled."""
        if self._cancelled.is_set():
            raise Cancelled
        now = time.monotonic()
        self.window, self.num_windows = report.window_index, report.num_windows
        self.step = report.window_index * report.num_steps + report.step_index + 1
        self.num_steps = (report.num_windows or 0) * report.num_steps
        if self._first is None:
            self._first = self.step, now
        elif self.num_steps:
            done = self.step - self._first[0]
            self.seconds_left = (now - self._first[1]) / max(done, 1) * (self.num_steps - self.step)

    def check(self) -> None:
        """Raises: Cancelled."""
        if self._cancelled.is_set():
            raise Cancelled

    def cancel(self) -> None:
        """End it between two steps, or before it begins."""
        self._cancelled.set()


class TaskQueue:
    """Makes videos one after another, in a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._waiting: deque[Task] = deque()
        self._tasks: dict[str, Task] = {}
        self._is_stopped = False
        self._thread = threading.Thread(target=self._work, name="talking videos", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Task], Path], user: str = "") -> Task:
        """Put a video at the end. Raises: InputError when too many wait."""
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                raise InputError(f"{MOST_WAITING} videos wait already. Wait until some are finished.")
            task = Task(work, user)
            self._tasks[task.id] = task
            ended = [known.id for known in self._tasks.values() if known.state in ENDED]
            for name in ended[: max(0, len(ended) - MOST_REMEMBERED)]:
                del self._tasks[name]
            self._waiting.append(task)
            self._lock.notify()
            return task

    def find(self, name: str) -> Task | None:
        """The task of this id, if there is one."""
        return self._tasks.get(name)

    def cancel(self, name: str) -> None:
        """End the task of this id; nothing happens when it has ended."""
        with self._lock:
            task = self._tasks.get(name)
            if task is None or task.state in ENDED:
                return
            task.cancel()
            if task in self._waiting:
                self._waiting.remove(task)
                task.state = CANCELLED

    def num_before(self, task: Task) -> int:
        """How many videos are made before a waiting one begins."""
        with self._lock:
            if task not in self._waiting:
                return 0
            running = any(known.state == RUNNING for known in self._tasks.values())
            return self._waiting.index(task) + running

    def stop(self, timeout_s: float = 60) -> None:
        """End all; the running video stops after its step and can be gone on with."""
        with self._lock:
            self._is_stopped = True
            for task in self._tasks.values():
                task.cancel()
            self._lock.notify()
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._is_stopped:
                    self._lock.wait()
                if self._is_stopped:
                    return
                task = self._waiting.popleft()
                task.state = RUNNING
            self._make(task)

    def _make(self, task: Task) -> None:
        try:
            task.output = task.work(task)
            task.state = FINISHED
        except Cancelled:
            task.state = CANCELLED
        except TalkError as error:
            task.message, task.state = str(error), FAILED
        except Exception as error:  # noqa: BLE001 the worker goes on with the next video
            logger.exception("A video of the app failed")
            message = describe_shortage(error) or f"{type(error).__name__}: {str(error)[:300]}"
            task.message, task.state = message, FAILED
