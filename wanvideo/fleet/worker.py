"""A process that works on one task after another, alone or as a rank of a group; its models stay loaded in between.

A Group starts it, and talks to it over its standard input and output.
"""

from __future__ import annotations

import _thread
import logging
import os
import queue
import sys
import threading
from collections.abc import Hashable
from contextlib import ExitStack
from typing import Any, Protocol

import torch

from ..errors import CheckpointError, InputError, TalkError
from ..parallel.launch import Place, joined
from ..parallel.layout import Layout
from ..parallel.team import PeerStopped, Team
from ..sampling.window import StepReport
from .channel import Channel
from .messages import Answer, Done, Failed, Question, Step, Stop

logger = logging.getLogger("wanvideo")
GRACE_S = 10.0  # for what runs here to end by itself once the other process is gone
FINAL = (InputError, CheckpointError)  # what trying again does not mend


class Task(Protocol):
    """A piece of work that ranks do together.

    key: tasks of equal keys use the same models in the same way. A worker only ever gets tasks of one key.
    """

    @property
    def key(self) -> Hashable: ...

    def for_rank(self, rank: int) -> Task:
        """What of it a rank has to know."""
        ...

    def load(self, worker: Worker) -> Any:
        """What stays between tasks of this key."""
        ...

    def perform(self, models: Any, worker: Worker) -> Any:
        """Do it with what `load` made; the result, on the first rank."""
        ...


class Worker:
    """This process's side. place: which rank of its group it is."""

    def __init__(self, channel: Channel, place: Place) -> None:
        self.place, self._channel = place, channel
        self._tasks: queue.Queue[Task | None] = queue.Queue()
        self._answers: queue.Queue[Any] = queue.Queue()
        self._stops, self._is_busy = threading.Event(), False
        self._team: Team | None = None
        self._exits = ExitStack()

    def serve(self) -> None:
        """Work on tasks until the other process closes the channel, or one fails; then this process ends."""
        threading.Thread(target=self._read, name="messages", daemon=True).start()
        models: Any = None
        while (task := self._tasks.get()) is not None:
            try:
                models = task.load(self) if models is None else models
                if self._team is not None:
                    self._team.begin()
                result = Done(task.perform(models, self))
            except BaseException as error:  # noqa: BLE001 - whatever it is, the other process has to know
                if not self._fail(error):
                    break  # what an error leaves behind is not trusted; the next task gets a new process
            else:
                self._say(result)
        sys.stderr.flush()
        os._exit(0)  # nothing is unfinished, and the other ranks, whom a farewell would wait for, go too

    def join(self, layout: Layout, device: torch.device) -> Team:
        """Become one of the ranks of its group, for good."""
        self._team = self._exits.enter_context(joined(layout, device))
        return self._team

    def step(self, report: StepReport) -> None:
        """To be called after every step; ends the task where that is asked for."""
        self.tell(Step(report.window_index, report.num_windows, report.step_index, report.num_steps))
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Raises: KeyboardInterrupt."""
        if self._stops.is_set():
            raise KeyboardInterrupt

    def tell(self, message: object) -> None:
        self._channel.send(message)

    def ask(self, name: str, *at: int) -> Any:
        """A part of the task from the process that has it. Raises: as `stop_if_asked`."""
        self.tell(Question(name, at))
        answer = self._answers.get()
        self.stop_if_asked()
        return answer

    def _say(self, result: object) -> None:
        self._is_busy = False
        self.tell(result)

    def _fail(self, error: BaseException) -> bool:
        """Whether it was asked to stop, so that everything is as it should be."""
        if not isinstance(error, TalkError | KeyboardInterrupt):
            logger.error("%s", type(error).__name__, exc_info=error)
        was_stopped = self._stops.is_set() and isinstance(error, KeyboardInterrupt | PeerStopped)
        failed = Failed(type(error).__name__, str(error)[:2000], isinstance(error, FINAL), was_stopped)
        self._say(failed)
        return was_stopped

    def _read(self) -> None:
        try:
            while True:
                message = self._channel.receive()
                if isinstance(message, Stop):
                    self._stops.set()
                    self._answers.put(None)  # who waits for one goes on and stops
                elif isinstance(message, Answer):
                    self._answers.put(message.value)
                else:
                    self._stops.clear()  # what is there was meant for an earlier task
                    self._answers = queue.Queue()
                    self._is_busy = True
                    self._tasks.put(message)
        except (EOFError, OSError):
            self._tasks.put(None)
            if self._is_busy:  # nobody waits for the result any more
                _thread.interrupt_main()
                threading.Event().wait(GRACE_S)
                os._exit(1)


def own_channel() -> Channel:
    """The channel over standard input and output; what is printed from now on goes to the log."""
    reads, writes = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return Channel(reads, writes)


def main() -> None:
    channel, place = own_channel(), Place.of_environment()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO if place.rank == 0 else logging.WARNING)
    Worker(channel, place).serve()
