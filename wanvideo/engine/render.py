"""Windows to frames, and frames to sinks: the one loop over finished windows that every face consumes.

Legend: F frames, H W rows and columns, T latent frames.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..ops.precision import matmul_modes
from ..protocols import FrameSink
from ..request import LoopSettings
from ..sampling.clip import empty_condition, sample_clip
from ..sampling.loop import Conditioning, finished, run_windows, seeded_draw
from ..sampling.window import StepReport
from .conditioning import Clip, check_prompts, workload_of
from .engine import Engine

logger = logging.getLogger("wanvideo")
OnStep = Callable[[StepReport], None]


@dataclass(frozen=True)
class FinishedWindow:
    """A window's share of the video.

    frames: [F, H, W, 3] uint8 on the CPU, only what is new and inside the video; start: the first one's number;
    seconds: that the window took; latents: [16, T, H/8, W/8] of the whole window.
    """

    index: int
    num_windows: int
    start: int
    frames: Tensor
    seconds: float
    latents: Tensor


def render(
    engine: Engine, conditioning: Conditioning, settings: LoopSettings, seed: int,
    sinks: Sequence[FrameSink] = (), on_step: OnStep | None = None,
) -> Iterator[FinishedWindow]:  # fmt: skip
    """Sample a video window by window; each goes to every sink, and is then yielded.

    The same arguments give the same frames to the bit, whoever asks. Sinks are closed after the last window; when the
    run ends early, by an error or because nobody asks for the next window, they are abandoned.
    Args: on_step: called after every step; what it raises ends the run.
    Raises: InputError when the run cannot fit, before anything is loaded.
    """
    with ExitStack() as stack:
        stack.callback(_abandon, sinks)
        planned = engine.ready(workload_of(conditioning, settings))
        settings = replace(settings, tiled_vae=planned.tiled_vae)
        windows = run_windows(
            engine.transformer, engine.vae, conditioning, settings, seed, on_step, engine.stream_more
        )  # fmt: skip
        for span in planned.windows:
            start = time.perf_counter()
            with _modes(engine):  # not around the yield: whoever asks for windows keeps modes of their own
                window = next(windows)
                frames = finished(window, planned.windows)
            for sink in sinks:
                sink.write(frames)
            seconds = time.perf_counter() - start
            logger.info(
                "Window %d of %d: %d frames, %.1f s.", span.index + 1, len(planned.windows), len(frames), seconds
            )
            yield FinishedWindow(
                span.index, len(planned.windows), span.new_start, frames, seconds, window.latents
            )  # fmt: skip
        stack.pop_all()
    for sink in sinks:
        sink.close()


def render_clip(engine: Engine, clip: Clip, settings: LoopSettings, seed: int, on_step: OnStep | None = None) -> Tensor:
    """Latents [16, T, H/8, W/8] of one clip without a window loop."""
    check_prompts(clip.prompts, settings)
    engine.ready(clip.workload(settings))
    transformer, condition, speech = engine.transformer, clip.condition, clip.speech
    size = clip.geometry.width, clip.geometry.height
    if condition is None and transformer.config.in_dim > clip.geometry.latent_shape[0]:
        condition = empty_condition(clip.geometry)
    with _modes(engine):
        return sample_clip(
            transformer, clip.geometry, condition, settings, seeded_draw(seed, 0), text_embeds=clip.prompts.positive[0],
            negative_text_embeds=clip.prompts.negative, image_embeds=clip.image_embeds,
            audio=speech and speech.features,
            speaker_masks=speech and speech.masks(size, *size),
            samples=clip.samples, on_step=on_step,
        )  # fmt: skip


def _modes(engine: Engine) -> ExitStack:
    stack = ExitStack()
    stack.enter_context(torch.no_grad())
    stack.enter_context(matmul_modes(engine.options.tf32, engine.options.fp16_accumulation))
    return stack


def _abandon(sinks: Sequence[FrameSink]) -> None:
    for sink in sinks:
        sink.abandon()
