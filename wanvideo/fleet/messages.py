"""What a worker and the process that started it say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stop:
    """To a worker: leave the task that runs, after its step."""


@dataclass(frozen=True)
class Answer:
    """To a worker: what it asked for."""

    value: Any


@dataclass(frozen=True)
class Question:
    """Of a worker: a part of its task that the other process has. name: of what; at: which part."""

    name: str
    at: tuple[int, ...]


@dataclass(frozen=True)
class Made:
    """Of a worker: a part of the result."""

    value: Any


@dataclass(frozen=True)
class Step:
    """Of a worker: where it is after a step. num_windows: None while the length is not known."""

    window_index: int
    num_windows: int | None
    step_index: int
    num_steps: int


@dataclass(frozen=True)
class Done:
    """Of a worker: the task is finished. value: what it came to, on the first rank."""

    value: Any = None


@dataclass(frozen=True)
class Failed:
    """Of a worker: the task ended early.

    kind: name of the error. is_final: the same task would fail again. was_stopped: it was asked to stop.
    """

    kind: str
    message: str
    is_final: bool = False
    was_stopped: bool = False
