"""A run that is written behind the sampling: a window is encoded and put on the disk while the next one is sampled.

Legend: F frames, H W rows and columns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from ..quality.drift import WindowMeasures
from .store import Run

logger = logging.getLogger("wanvideo")


class WrittenBehind:
    """The sink of a run: `write`, then `commit`, for each window; `close` or `abandon` at the end.

    One thread writes, a window at a time and in order, each as `Run` does, so that a kill at any time leaves what a
    kill without the thread leaves. Whoever is faster waits: no more than one window is behind. An error is raised by
    the next call, and nothing is written after it.
    Args: on_commit: called in the thread with the number of windows that are there, once the last one counts.
    """

    def __init__(self, run: Run, on_commit: Callable[[int], None] | None = None) -> None:
        self.run, self._on_commit = run, on_commit
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._frames: Tensor | None = None
        self._written: Future[None] | None = None

    def write(self, frames: Tensor) -> None:
        """A window's frames, [F, H, W, 3] uint8, which are not changed any more. Raises: OutputError."""
        self._settle()
        self._frames = frames

    def commit(self, state: bytes, speech: str, measures: WindowMeasures) -> None:
        """Begin to write that window, see `Run.commit`."""
        assert self._frames is not None, "a window is written before it counts"
        self._written = self._pool.submit(self._put, self._frames, state, speech, measures)
        self._frames = None

    def close(self) -> Path:
        """Finish the video once all is written. Returns: its path. Raises: OutputError."""
        try:
            self._settle()
        except BaseException:
            self.abandon()
            raise
        self._pool.shutdown()
        return self.run.close()

    def abandon(self) -> None:
        """Stop; a window that was sampled as a whole is still written."""
        try:
            self._settle()
        except Exception as error:  # noqa: BLE001 - the run ends by another error, and its folder stays as it should
            logger.warning("The last window was not written: %s", error)
        finally:
            self._pool.shutdown()
            self.run.abandon()

    def _settle(self) -> None:
        """Wait for the window that is being written."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def _put(self, frames: Tensor, state: bytes, speech: str, measures: WindowMeasures) -> None:
        self.run.write(frames)
        self.run.commit(state, speech, measures)
        if self._on_commit is not None:
            self._on_commit(self.run.manifest.progress.num_windows)
