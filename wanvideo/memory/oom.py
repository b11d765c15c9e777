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
from .shortage import is_of_device

logger = logging.getLogger("wanvideo")
Result = TypeVar("Result")
QUARTERS = 4  # of the blocks; each call of free_memory lets one more stream


@dataclass(frozen=True)
class Fallback:
    """A way to need less device memory. `apply` says whether there was anything left to do; `name` is for the log."""

    name: str
    apply: Callable[[], bool]


def ran_out(error: BaseException) -> bool:
    """Whether the device has no memory left."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or is_of_device(error)


def make_fallbacks(free_memory: Callable[[], bool] | None, tile: Callable[[], bool] | None = None) -> list[Fallback]:
    """What may help a window, in order: some blocks leave the device, the VAE works in tiles, then the other blocks.

    Args: free_memory: moves some weights off the device, where someone can. tile: where there is a VAE.
    """
    streams = [] if free_memory is None else [Fallback("more blocks streaming", free_memory)]
    tiles = [] if tile is None else [Fallback("a tiled VAE", tile)]
    return [*streams, *tiles, *streams * (QUARTERS - 1)]


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
            except RuntimeError as error:
                if not ran_out(error):
                    raise
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
        even = f", even with {' and '.join(dict.fromkeys(self._applied))}" if self._applied else ""
        raise UnsupportedError(
            f"Window {self._number} ran out of device memory{even}: {reason}\n"
            "Use a smaller size, fewer frames a window, 8-bit weights (fp8), or stream every block (blocks to swap 40)."
        )
