"""Jobs dealt out to places that do one at a time: a queue, retries elsewhere, an orderly end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from ..errors import TalkError, UnsupportedError
from .messages import Step
from .report import Report, Stage

POLL_S = 0.2


class JobFailed(UnsupportedError):
    """A job ended early. is_final: it would again, wherever it is tried."""

    def __init__(self, message: str, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


class PlaceLost(UnsupportedError):
    """A place does not answer any more; its job is tried elsewhere."""


class Stopped(UnsupportedError):
    """A job was stopped because the user asked for it."""


class Work(Protocol):
    """A job. name: unique. output: where its video goes. key: jobs of equal keys share loaded models."""

    @property
    def name(self) -> str: ...

    @property
    def output(self) -> Path: ...

    @property
    def key(self) -> Hashable: ...

    def is_done(self) -> bool:
        """Whether its result is there from an earlier batch."""
        ...


Kind = TypeVar("Kind", bound=Work)
Takes = TypeVar("Takes", bound=Work, contravariant=True)


class Place(Protocol[Takes]):
    """Somewhere a job at a time is done: GPUs of this machine, an actor of a cluster, a server.

    key: of the models that are loaded there.
    """

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> Hashable: ...

    def run(self, work: Takes, on_step: Callable[[Step], None], on_line: Callable[[str], None]) -> Path:
        """The written video. Raises: JobFailed, PlaceLost, Stopped."""
        ...

    def is_there(self) -> bool:
        """Asked after PlaceLost: whether it can be used again. May take a while, and ends soon after `stop`."""
        ...

    def stop(self) -> None:
        """End what runs, after its step; called from another thread."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


@dataclass(eq=False)
class Ticket(Generic[Kind]):
    """A job in the queue. key: one object for all jobs of equal keys. where: places that it was tried at."""

    work: Kind
    key: Hashable
    where: list[str] = field(default_factory=list)


class Dispatcher(Generic[Kind]):
    """Works through jobs on places; every change of a job's state is said to `report`.

    Args: retries: how often a job that failed is tried again.
    """

    def __init__(self, places: Sequence[Place[Kind]], retries: int, report: Report) -> None:
        self.places, self.retries, self.report = list(places), retries, report
        self._changed = threading.Condition()
        self._waiting: list[Ticket[Kind]] = []
        self._keys: dict[Hashable, Hashable] = {}
        self._num_running = 0
        self._stops = False

    def run(self, works: Sequence[Kind]) -> None:
        """Do all of them. Raises: KeyboardInterrupt once what runs has ended, where that is asked for."""
        self._waiting = [Ticket(work, self._keys.setdefault(key, key)) for work in works for key in (work.key,)]
        threads = [threading.Thread(target=self._serve, args=(place,), name=place.name) for place in self.places]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            self._stops = True
            for place in self.places:
                place.stop()
            for thread in threads:
                thread.join()
            raise
        finally:
            for ticket in self._waiting:
                self.report.change(ticket.work.name, Stage.STOPPED if self._stops else Stage.FAILED, note=NOWHERE)
            for place in self.places:
                place.close()

    def _serve(self, place: Place[Kind]) -> None:
        while (ticket := self._take(place)) is not None:
            is_lost = False
            try:
                is_lost = self._do(place, ticket)
            finally:
                with self._changed:
                    self._num_running -= 1
                    self._changed.notify_all()
            if is_lost and not place.is_there():
                return

    def _take(self, place: Place[Kind]) -> Ticket[Kind] | None:
        """The next job for a place: one that it was not tried at, with models that are loaded there, if possible."""
        with self._changed:
            while not self._stops:
                if self._waiting:
                    loaded = self._keys.get(place.key, place.key)
                    best = min(self._waiting, key=partial(_rank, place.name, loaded))
                    is_better_elsewhere = place.name in best.where[-1:] and len(self.places) > 1
                    if not is_better_elsewhere or self._num_running == 0:
                        self._waiting.remove(best)
                        self._num_running += 1
                        return best
                elif self._num_running == 0:
                    return None
                self._changed.wait(POLL_S)
        return None

    def _do(self, place: Place[Kind], ticket: Ticket[Kind]) -> bool:
        """One try. Returns: whether the place is lost."""
        name = ticket.work.name
        ticket.where.append(place.name)
        self.report.change(name, Stage.RUNNING, place.name)
        try:
            path = place.run(
                ticket.work, lambda step: self.report.step(name, step), lambda line: self.report.log(name, line)
            )
        except Stopped as error:
            self.report.change(name, Stage.STOPPED, note=str(error))
        except PlaceLost as error:
            self._again(ticket, str(error))
            return True
        except TalkError as error:
            self._again(ticket, str(error), isinstance(error, JobFailed) and error.is_final)
        except Exception as error:  # noqa: BLE001 - one job's trouble must not end the others
            self._again(ticket, f"{type(error).__name__}: {error}")
        else:
            self.report.change(name, Stage.DONE, note=str(path))
        return False

    def _again(self, ticket: Ticket[Kind], why: str, is_final: bool = False) -> None:
        if is_final or self._stops or len(ticket.where) > self.retries:
            self.report.change(ticket.work.name, Stage.FAILED, note=why)
            return
        self.report.change(ticket.work.name, Stage.RETRIED, note=why)
        with self._changed:
            self._waiting.append(ticket)


def _rank(place: str, loaded: Hashable, ticket: Ticket[Kind]) -> tuple[int, bool]:
    """How little a job suits a place: thousands may wait, so that nothing large is compared."""
    return ticket.where.count(place), ticket.key is not loaded


NOWHERE = "nothing was there to do it"
