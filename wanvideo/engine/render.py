"""Windows to frames, and frames to sinks: the one loop over finished windows that every face consumes.

Legend: F frames, H W rows and columns, T latent frames.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import torch
from torch import Tensor

from ..ops.precision import matmul_modes
from ..protocols import FrameSink
from ..sampling.clip import empty_condition, sample_clip
from ..sampling.conditioning import Conditioning
from ..sampling.loop import Window, finished, run_windows, seeded_noise
from ..sampling.sampler import OnStep
from ..sampling.setup import SamplingSetup
from ..sampling.state import WindowState
from .conditioning import Clip, check_prompts, workload_of
from .engine import Engine
from .forecast import Outcome

logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class FinishedWindow:
    """A window's share of the video.

    Args:
        num_windows: of the video; None while its length is not known.
        start: number of the first frame. frames: [F, H, W, 3] uint8 on the CPU, only what is new and in the video.
        seconds: that the window took.
        latents: [16, T, H/8, W/8] of the whole window. state: with which a run of the same video goes on after it.
    """

    index: int
    num_windows: int | None
    start: int
    frames: Tensor
    seconds: float
    latents: Tensor
    state: WindowState


def render(
    engine: Engine, conditioning: Conditioning, setup: SamplingSetup, seed: int, sinks: Sequence[FrameSink] = (),
    on_step: OnStep | None = None, state: WindowState | None = None,
) -> Generator[FinishedWindow, None, None]:  # fmt: skip
    """Sample a video window by window; each goes to every sink, and is then yielded.

    The same arguments give the same frames to the bit, whoever asks. Sinks are closed after the last window; when the
    run ends early, by an error or because nobody asks for the next window, they are abandoned.
    Args:
        on_step: called after every step; what it raises ends the run.
        state: of the last window of an earlier run of this video, which goes on from there.
    Raises: InputError when the run cannot fit, before anything is loaded.
    """
    with ending(sinks):
        try:
            plan = engine.ready(workload_of(conditioning, setup))
            setup, outcome = setup.with_tiled_vae(plan.tiled_vae), Outcome(engine, plan, setup.settings)
            windows = run_windows(
                engine.transformer, engine.vae, conditioning, setup, seed, on_step, engine.stream_more, state,
                engine.ranks,
            )  # fmt: skip
            while (window := _next_window(engine, windows)) is not None:
                for sink in sinks:
                    sink.write(window.frames)
                of_all = f" of {window.num_windows}" if window.num_windows else ""
                logger.info(
                    "Window %d%s: %d frames, %.1f s.", window.index + 1, of_all, len(window.frames), window.seconds
                )  # fmt: skip
                outcome.add(window.seconds)
                yield window
            engine.ranks.check()  # another one may still fail to write the last window
        except BaseException as error:  # this rank leaves the run early; the others are told
            engine.ranks.report(error)
            raise
    outcome.report()


@contextmanager
def ending(sinks: Sequence[FrameSink]) -> Iterator[None]:
    """Each sink is closed at the end, in their order, or abandoned after an error: where one cannot be closed, those
    behind it are."""
    with ExitStack() as stack:
        for sink in reversed(sinks):
            stack.push(partial(_end, sink))
        yield


def _end(
    sink: FrameSink, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> None:
    if kind is None:
        sink.close()
    else:
        sink.abandon()


def _next_window(engine: Engine, windows: Iterator[Window]) -> FinishedWindow | None:
    start = time.perf_counter()
    with _modes(engine):  # not around a yield: whoever asks for windows keeps modes of their own
        window = next(windows, None)
        if window is None:
            return None
        frames = finished(window, window.plan)
    seconds = time.perf_counter() - start
    return FinishedWindow(
        window.index, window.plan.num_windows, window.plan[window.index].new_start, frames, seconds, window.latents,
        window.state,
    )  # fmt: skip


def render_clip(engine: Engine, clip: Clip, setup: SamplingSetup, seed: int, on_step: OnStep | None = None) -> Tensor:
    """Latents [16, T, H/8, W/8] of one clip without a window loop."""
    check_prompts(clip.prompts, setup)
    engine.ready(clip.workload(setup))
    transformer, condition, speech = engine.transformer, clip.condition, clip.speech
    size = clip.geometry.width, clip.geometry.height
    if condition is None and transformer.config.in_dim > clip.geometry.latent_shape[0]:
        condition = empty_condition(clip.geometry)
    with _modes(engine):
        return sample_clip(
            transformer, clip.geometry, condition, setup, seeded_noise(seed, 0), text_embeds=clip.prompts.positive[0],
            negative_text_embeds=clip.prompts.negative, image_embeds=clip.image_embeds,
            audio=None if speech is None else speech.audio,
            speaker_masks=None if speech is None else speech.masks(size, *size),
            samples=clip.samples, on_step=on_step, free_memory=engine.stream_more,
        )  # fmt: skip


@contextmanager
def _modes(engine: Engine) -> Iterator[None]:
    with torch.no_grad(), matmul_modes(engine.options.tf32, engine.options.fp16_accumulation):
        yield
