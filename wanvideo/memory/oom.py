"""Second attempts after the device ran out of memory, each with less of it in use."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..errors import UnsupportedError

logger = logging.getLogger("wanvideo")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Relief:
    """A way to need less device memory. `act` says whether there was anything left to do; `what` names it."""

    what: str
    act: Callable[[], bool]


class Attempts:
    """Runs the parts of one window; each relief may help it once, in order.

    Raises: UnsupportedError when the device runs out of memory and no relief is left.
    """

    def __init__(self, window_index: int, reliefs: Sequence[Relief]) -> None:
        self.number, self.reliefs = window_index + 1, list(reliefs)
        self.tried: list[str] = []

    def run(self, work: Callable[[], Result]) -> Result:
        """`work()`, called again after every relief; it must be able to start anew."""
        while True:
            try:
                return work()
            except torch.cuda.OutOfMemoryError as error:
                reason = str(error).partition("\n")[0].partition(" If reserved")[0]
            # Out here the failed attempt's tensors are no longer held by its traceback.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._relieve(reason)

    def _relieve(self, reason: str) -> None:
        while self.reliefs:
            relief = self.reliefs.pop(0)
            if relief.act():
                logger.warning("Window %d ran out of device memory; again, with %s.", self.number, relief.what)
                self.tried.append(relief.what)
                return
        tried = f", even with {' and '.join(self.tried)}" if self.tried else ""
        raise UnsupportedError(
            f"Window {self.number} ran out of device memory{tried}: {reason}\n"
            "Use a smaller size, fewer frames a window, 8-bit weights (fp8), or stream every block (blocks to swap 40)."
        )
