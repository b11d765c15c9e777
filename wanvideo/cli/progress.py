"""Progress bars for the command line: windows and steps."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from ..sampling.window import StepReport


class Progress:
    """One bar over all steps of a video that says which window runs, seconds a step and the time left."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def step(self, report: StepReport) -> None:
        if self.bar is None:
            self.bar = tqdm(total=report.num_windows * report.num_steps, unit="step", dynamic_ncols=True)
        self.bar.set_description(f"window {report.window_index + 1}/{report.num_windows}")
        self.bar.update(report.window_index * report.num_steps + report.step_index + 1 - self.bar.n)
