"""A run beside its plan: what it will need of the disk, what it took, and what later plans learn from that."""

from __future__ import annotations

import logging
import shutil
import statistics
from pathlib import Path

import torch

from ..memory.budget import GIB
from ..memory.learned import learn
from ..memory.planner import RunPlan, kind_of_run
from ..request import LoopSettings
from .engine import Engine

VIDEO_BITS = 0.5  # of a pixel of the encoded video, at most about
AUDIO_BYTES = 24_000  # of a second
CHANNEL_BYTES = 4  # of a value of a state
logger = logging.getLogger("wanvideo")


def disk_bytes(plan: RunPlan) -> int:
    """What a run takes in its folder at most, about; 0 while the video's length is not known.

    That is the video twice, when it is finished and joined with its sound, and the state of a window.
    """
    frames, size = plan.windows.total_frames, plan.geometry
    if frames is None:
        return 0
    pixels = size.width * size.height
    video = frames * pixels * VIDEO_BITS / 8 + frames / plan.fps * AUDIO_BYTES
    return round(2 * video + plan.windows.overlap * pixels * 3 * CHANNEL_BYTES)


def forecast(plan: RunPlan, folder: Path) -> str:
    """A few lines for the user: the plan, and the disk. Warns where `folder`, or the one it will be in, has no room."""
    needed = disk_bytes(plan)
    if not needed:
        return plan.describe()
    there = next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), Path.cwd())
    free = shutil.disk_usage(there).free
    if free < needed:
        logger.warning(
            "The video takes about %.1f GB on the disk, and %s has %.1f GB free. Make room, or choose another folder.",
            needed / 1e9, there, free / 1e9,
        )  # fmt: skip
    return f"{plan.describe()}\nAbout {needed / 1e6:.0f} MB on the disk, {free / 1e9:.0f} GB are free."


class Outcome:
    """Measures a run from here on.

    Args: engine: that is ready. plan: of the run. settings: of its windows.
    """

    def __init__(self, engine: Engine, plan: RunPlan, settings: LoopSettings) -> None:
        self._engine, self._plan, self._settings = engine, plan, settings
        self._windows = list[float]()
        self._is_gpu = engine.host.device.type == "cuda"
        if self._is_gpu:
            torch.cuda.reset_peak_memory_stats(engine.host.device)

    def add(self, seconds: float) -> None:
        """A window is finished."""
        self._windows.append(seconds)

    def report(self) -> None:
        """Say what was planned and what was measured, and keep the latter for later plans."""
        if not self._windows:
            return
        plan, passes = self._plan, self._plan.work.num_steps * self._plan.work.num_passes
        window_s = statistics.median(self._windows[1:] or self._windows)  # the first one warms up
        planned = (
            "a time not known" if plan.step_seconds is None else f"{plan.step_seconds * plan.work.num_steps:.1f} s"
        )
        measured = f"{window_s:.1f} s a window, {sum(self._windows):.1f} s in all"
        if self._is_gpu:
            peak = torch.cuda.max_memory_allocated(self._engine.host.device)
            planned = f"{plan.memory.device_bytes / GIB:.1f} GiB and {planned}"
            measured = f"{peak / GIB:.1f} GiB and {measured}"
        logger.info("Planned: %s a window. Measured: %s.", planned, measured)
        if self._is_typical():
            weights = self._engine.weights
            learn(
                kind_of_run(plan.geometry, weights, plan.device, plan.work, plan.memory.num_streamed, window_s / passes)
            )

    def _is_typical(self) -> bool:
        """Whether it says something of other runs: on one GPU, as planned, each pass computed, and not compiled."""
        if not self._is_gpu or self._engine.team is not None:
            return False
        if self._engine.residency.num_streamed != self._plan.memory.num_streamed:
            return False  # memory ran out on the way, and what was begun anew is in the time
        compiles = self._engine.options.compile is not None
        is_whole = self._settings.step_cache is None and self._settings.skip_layers is None
        return is_whole and not (compiles and len(self._windows) < 2)
