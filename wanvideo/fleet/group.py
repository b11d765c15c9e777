"""Worker processes that do one task at a time together, started when they are needed and kept warm."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError
from ..parallel.launch import Place, free_port
from ..parallel.team import PeerStopped
from .channel import Channel
from .messages import Answer, Done, Failed, Question, Stop
from .worker import Task

logger = logging.getLogger("wanvideo")
ROOT = Path(__file__).resolve().parents[2]
# Neither PYTHONPATH nor the folder of a module is looked at by a Python that is isolated, as portable ones are.
START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from wanvideo.fleet.worker import main; main()"
OWN_GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # of Windows, which has no sessions
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_S = 0.1
STOP_S = 120.0  # for a step to end
CLOSE_S = 20.0  # for a process to end by itself
DEATH_S = 0.5  # in which it is known of a process that it has ended, or why
MOST_LINES = 5  # of a dead worker's log in a message
OnLine = Callable[[str], None]


class WorkerDied(UnsupportedError):
    """A worker process ended in the middle of a task."""


class TaskFailed(UnsupportedError):
    """A task ended with an error. is_final: it would again."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message or f"It ended with {failed.kind}. Start it again.")
        self.kind, self.is_final, self.was_stopped = failed.kind, failed.is_final, failed.was_stopped


@dataclass(frozen=True)
class _Process:
    """One rank. index: which one. lines: the last ones of its log."""

    index: int
    process: subprocess.Popen[bytes]
    channel: Channel
    lines: deque[str]


class Group:
    """Ranks on this machine.

    Args:
        devices: numbers of its GPUs, one a rank; or a number of ranks without any.
        on_line: called with every line that the ranks log, from threads; must not raise.
    """

    def __init__(self, devices: Sequence[str] | int, on_line: OnLine | None = None) -> None:
        self.devices = devices
        self.size = devices if isinstance(devices, int) else len(devices)
        self.on_line: OnLine = on_line or logger.info
        self.key: Hashable = None  # of the models that its processes hold
        self._ranks: list[_Process] = []
        self._inbox: queue.Queue[tuple[_Process, Any]] = queue.Queue()
        self._should_stop = threading.Event()

    @property
    def is_warm(self) -> bool:
        """Whether its processes run."""
        return bool(self._ranks)

    @property
    def process_ids(self) -> list[int]:
        return [rank.process.pid for rank in self._ranks]

    def run(
        self, task: Task, answers: Callable[[Question], Any] | None = None, poll: Callable[[], None] | None = None
    ) -> Generator[Any, None, None]:
        """Do a task: what the first rank says of it, the last thing Done. Whoever closes the iterator stops the task.

        Args: answers: gives the first rank what it asks for. poll: called while nothing is said; what it raises stops
            the task.
        Raises: TaskFailed; WorkerDied. Processes that failed are gone, and others are started for the next task.
        """
        self._start(task.key)
        running, failures, result = set(map(id, self._ranks)), dict[int, Failed](), Done()
        try:
            for rank in self._ranks:
                self._send(rank, task.for_rank(rank.index))
            while running:
                rank, message = self._next(running, poll)
                if isinstance(message, Question):
                    self._send(rank, Answer(answers and answers(message)))
                elif isinstance(message, Done | Failed):
                    running.discard(id(rank))
                    if isinstance(message, Failed):
                        failures[rank.index] = message
                        if not message.was_stopped:
                            self._await_others(running, failures)
                            break
                    elif rank.index == 0:
                        result = message
                else:
                    yield message
        except WorkerDied:
            self.close(0.0)
            raise
        except BaseException:
            self._end_task(running)
            raise
        if not all(failure.was_stopped for failure in failures.values()):
            self.close(0.0 if running else CLOSE_S)
        if failures:
            raise TaskFailed(_cause(failures))
        yield result

    def stop(self) -> None:
        """Have the task that runs, or else the next one, end after its step; called from another thread."""
        self._should_stop.set()

    def close(self, patience_s: float = CLOSE_S) -> None:
        """End the processes, and give back all that they hold."""
        ranks, self._ranks, self.key = self._ranks, [], None
        for rank in ranks:
            rank.channel.close()
        end = time.monotonic() + patience_s
        for rank in ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                rank.process.wait(max(0.0, end - time.monotonic()))
                continue
            rank.process.kill()
            rank.process.wait()

    def _start(self, key: Hashable) -> None:
        if self._ranks and (key != self.key or any(rank.process.poll() is not None for rank in self._ranks)):
            self.close()
        if not self._ranks:
            self._inbox = queue.Queue()
            port = free_port()
            self._ranks = [self._spawn(index, port) for index in range(self.size)]
            for rank in self._ranks:
                threading.Thread(target=self._receive, args=(rank, self._inbox), daemon=True).start()
                threading.Thread(target=self._log, args=(rank,), daemon=True).start()
        self.key = key

    def _spawn(self, index: int, port: int) -> _Process:
        environment = {**os.environ, **Place(index, self.size, index).environment("127.0.0.1", port)}
        if not isinstance(self.devices, int):
            environment[VISIBLE] = ",".join(map(_global_name, self.devices))
        process = subprocess.Popen(
            [sys.executable, "-c", START, str(ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=environment,
            start_new_session=True, creationflags=OWN_GROUP,  # Ctrl+C is for whoever started it, who then stops it
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        return _Process(index, process, Channel(process.stdout, process.stdin), deque(maxlen=MOST_LINES))

    def _receive(self, rank: _Process, inbox: queue.Queue[tuple[_Process, Any]]) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                inbox.put((rank, rank.channel.receive()))
        inbox.put((rank, EOFError()))

    def _log(self, rank: _Process) -> None:
        assert rank.process.stderr is not None
        for data in rank.process.stderr:
            line = data.decode(errors="replace").rstrip()
            rank.lines.append(line)
            self.on_line(line)

    def _send(self, rank: _Process, message: object) -> None:
        with contextlib.suppress(OSError, ValueError):  # it is gone, or closed, which its inbox says
            rank.channel.send(message)

    def _next(
        self, running: set[int], poll: Callable[[], None] | None = None, end: float = math.inf
    ) -> tuple[_Process, Any]:
        """What a rank says next.

        Raises: WorkerDied where one ended in the middle of the task; TimeoutError where none says anything until `end`.
        """
        while time.monotonic() < end:
            if self._should_stop.is_set():
                self._should_stop.clear()
                self._ask_to_stop()
            with contextlib.suppress(queue.Empty):
                rank, message = self._inbox.get(timeout=POLL_S)
                if not isinstance(message, EOFError):
                    return rank, message
                if id(rank) in running:
                    raise self._died(rank)
            if poll is not None:
                poll()
        raise TimeoutError

    def _await_others(self, running: set[int], failures: dict[int, Failed]) -> None:
        """A rank that fails may know of another one's end or failure before that one's inbox says so.

        Raises: WorkerDied where it says that it ended within `DEATH_S`; failures are added.
        """
        end = time.monotonic() + DEATH_S
        with contextlib.suppress(TimeoutError):
            while running:
                rank, message = self._next(running, end=end)
                if isinstance(message, Done | Failed):
                    running.discard(id(rank))
                if isinstance(message, Failed):
                    failures[rank.index] = message

    def _died(self, rank: _Process) -> WorkerDied:
        with contextlib.suppress(subprocess.TimeoutExpired):
            rank.process.wait(5.0)
        time.sleep(0.05)  # the last lines of its log are on their way
        said = " / ".join(line for line in rank.lines if line.strip())[-400:]
        return WorkerDied(
            f"Worker {rank.index} of {self.size} ended with status {rank.process.returncode}: "
            f"{said or 'it said nothing'}.\nWhat is finished is kept; start it again to go on."
        )

    def _ask_to_stop(self) -> None:
        for rank in reversed(self._ranks):  # the first one, which ends the task, knows it last
            self._send(rank, Stop())

    def _end_task(self, running: set[int]) -> None:
        """Stop the task, and keep the processes where they do so in time."""
        self._ask_to_stop()
        end = time.monotonic() + STOP_S
        while running:
            try:
                rank, message = self._next(running, end=end)
            except (WorkerDied, TimeoutError):
                break
            if isinstance(message, Done | Failed):
                running.discard(id(rank))
                if isinstance(message, Failed) and not message.was_stopped:
                    break
        else:
            return
        self.close(0.0)


def _cause(failures: Mapping[int, Failed]) -> Failed:
    """Of ranks that failed by their numbers, what the first one said that does not only repeat another one."""
    said = [failure for _, failure in sorted(failures.items())]
    return next((failure for failure in said if failure.kind != PeerStopped.__name__), said[0])


def _global_name(device: str) -> str:
    """What the machine calls a GPU that this process has as number `device`."""
    names = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return names[int(device)] if names else device
