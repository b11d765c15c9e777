"""What to do when the device runs out of memory: the same work again, with less of the device in use."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..errors import UnsupportedError
from ..protocols import OneRank, Ranks

logger = logging.getLogger("wanvideo")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Fallback:
    """A way to need less device memory. `apply` says whether there was anything left to do; `name` is for the log."""

    name: str
    apply: Callable[[], bool]


def more_streaming(free_memory: Callable[[], bool] | None) -> list[Fallback]:
    """The fallback that moves weights off the device, where someone can."""
    return [] if free_memory is None else [Fallback("more blocks streaming", free_memory)]


class OomRetry:
    """Runs the parts of one window; each fallback may help it once, in order, and all ranks take the same ones.

    Raises: UnsupportedError when the device runs out of memory and no fallback is left.
    """

    def __init__(self, window_index: int, fallbacks: Sequence[Fallback], ranks: Ranks | None = None) -> None:
        self._number, self._fallbacks, self._ranks = window_index + 1, list(fallbacks), ranks or OneRank()
        self._applied: list[str] = []

    def run(self, work: Callable[[], Result]) -> Result:
        """`work()`, called again after every fallback; it must be able to start anew."""
        while True:
            try:
                result = work()
                self._ranks.check()
                return result
            except torch.cuda.OutOfMemoryError as error:
                self._ranks.report(error)
                reason = str(error).partition("\n")[0].partition(" If reserved")[0]
            # Out here the failed try's tensors are no longer held by its traceback.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._fall_back(reason)

    def _fall_back(self, reason: str) -> None:
        while self._fallbacks:
            fallback = self._fallbacks.pop(0)
            if self._ranks.agree(fallback.apply()):
                logger.warning("Window %d ran out of device memory; again, with %s.", self._number, fallback.name)
                self._applied.append(fallback.name)
                return
        even = f", even with {' and '.join(self._applied)}" if self._applied else ""
        raise UnsupportedError(
            f"Window {self._number} ran out of device memory{even}: {reason}\n"
            "Use a smaller size, fewer frames a window, 8-bit weights (fp8), or stream every block (blocks to swap 40)."
        )
