"""What a batch says: a line for every change of a job, a log file a job, a table at the end; as words or as JSON."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..errors import OutputError
from ..untrusted import answered
from .messages import Step

logger = logging.getLogger("wanvideo")
COLUMNS = ("job", "is", "where", "tries", "seconds", "result")
MOST_NOTE = 200  # characters of a reason in a line


class Stage(Enum):
    """How a job is."""

    WAITING = "waiting"
    RUNNING = "running"
    RETRIED = "to be tried again"
    THERE = "there already"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_done(self) -> bool:
        """Whether the video is there."""
        return self in (Stage.DONE, Stage.THERE)


@dataclass
class Row:
    """A job as far as it is. seconds: of its last try. window: the one that runs."""

    name: str
    stage: Stage = Stage.WAITING
    where: str = ""
    tries: int = 0
    seconds: float = 0.0
    note: str = ""
    window: int = -1
    began: float = 0.0

    def cells(self) -> tuple[str, ...]:
        """Of the table."""
        note = self.note.replace("\n", " ")[:MOST_NOTE]
        return self.name, self.stage.value, self.where, str(self.tries), f"{self.seconds:.1f}", note


class Report:
    """Tells of the jobs of a batch; may be called from many threads.

    Args:
        names: of all jobs. logs: folder of their log files.
        say: prints a line. as_json: every line is a JSON object with the key "event".
    """

    def __init__(self, names: Sequence[str], logs: Path, say: Callable[[str], None], as_json: bool = False) -> None:
        self.rows = {name: Row(name) for name in names}
        self._logs, self._say, self._as_json, self._lock = logs, say, as_json, threading.Lock()
        self._num_done, self._has_missed = 0, False
        with answered(str(logs), OutputError, "written"):
            logs.mkdir(parents=True, exist_ok=True)

    def change(self, name: str, stage: Stage, where: str = "", note: str = "") -> None:
        """A job has another state. where: the place that has it. note: its result, or why it failed."""
        with self._lock:
            row = self.rows[name]
            if stage is Stage.RUNNING:
                row.tries, row.where, row.began, row.window = row.tries + 1, where, time.monotonic(), -1
            elif row.began:
                row.seconds = time.monotonic() - row.began
            self._num_done += stage.is_done - row.stage.is_done
            row.stage, row.note = stage, note
            self._write(name, f"{stage.value} {where} {note}".strip())
            event = {"where": row.where, "tries": row.tries, "seconds": round(row.seconds, 3), "note": note}
            self._tell(stage.name.lower(), name, event, " ".join(filter(None, (stage.value, _on(where), _why(note)))))

    def step(self, name: str, step: Step) -> None:
        """A job's step ended. As words only windows are told."""
        with self._lock:
            row = self.rows[name]
            event = {"window": step.window_index + 1, "windows": step.num_windows, "step": step.step_index + 1,
                     "steps": step.num_steps}  # fmt: skip
            if self._as_json or step.window_index != row.window:
                of_all = f" of {step.num_windows}" if step.num_windows else ""
                self._tell("step", name, event, f"window {step.window_index + 1}{of_all} on {row.where}")
            row.window = step.window_index

    def log(self, name: str, line: str) -> None:
        """A line for a job's log file alone."""
        with self._lock:
            self._write(name, line)

    def end(self) -> int:
        """Say how all of it ended. Returns: the exit code, 0 where every job is done."""
        rows = list(self.rows.values())
        if self._as_json:
            self._put(json.dumps({"event": "end", "done": self._num_done, "jobs": len(rows)}))
        else:
            table = [COLUMNS, *(row.cells() for row in rows)]
            widths = [max(len(cells[column]) for cells in table) for column in range(len(COLUMNS))]
            for cells in table:
                self._put("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
            self._put(f"{self._num_done} of {len(rows)} jobs are done. Logs are in {self._logs}")
        return 0 if self._num_done == len(rows) else 1

    def _tell(self, event: str, name: str, values: Mapping[str, object], words: str) -> None:
        if self._as_json:
            self._put(json.dumps({"event": event, "job": name, **values}, ensure_ascii=False))
        else:
            self._put(f"[{self._num_done}/{len(self.rows)}] {name}: {words}")

    def _write(self, name: str, line: str) -> None:
        with self._missing("a log"), (self._logs / f"{name}.log").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    def _put(self, line: str) -> None:
        with self._missing("the report"):
            self._say(line)

    @contextmanager
    def _missing(self, what: str) -> Iterator[None]:
        """Where nothing can be written, on a full disk or to a pipe that is closed, jobs go on all the same."""
        try:
            yield
        except OSError as error:
            if not self._has_missed:
                self._has_missed = True
                logger.warning("Lines of %s are lost (%s). The jobs go on.", what, error.strerror or error)


def _on(where: str) -> str:
    return f"on {where}" if where else ""


def _why(note: str) -> str:
    return f"({note.splitlines()[0][:MOST_NOTE]})" if note else ""
