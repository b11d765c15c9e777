"""Progress bars for the command line: windows and steps."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

if TYPE_CHECKING:
    from ..sampling.window import StepReport


class Progress:
    """One bar over all steps of a video that says which window runs, seconds a step and the time left."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.stack = ExitStack()

    def __enter__(self) -> Progress:
        self.stack.enter_context(logging_redirect_tqdm())  # log lines go above the bar, not into it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def step(self, report: StepReport) -> None:
        if self.bar is None:
            total = report.num_windows and report.num_windows * report.num_steps
            before = report.window_index * report.num_steps + report.step_index  # by the run that this one goes on with
            self.bar = self.stack.enter_context(tqdm(total=total, initial=before, unit="step", dynamic_ncols=True))
        self.bar.set_description(f"window {report.window_index + 1}/{report.num_windows or '?'}", refresh=False)
        self.bar.update()
