"""All windows of a video, one after another. Tensors only: no files, no durations, no model loading.

Legend: F pixel frames of a window, m of them repeat the previous one, H W pixel rows and columns, T latent frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import VAE_STRIDE, VideoGeometry, WindowPlan, WindowSpan
from ..memory.oom import OomRetry, make_fallbacks
from ..models.transformer import WanTransformer
from ..models.vae import WanVAE
from ..protocols import NoiseFn, OneRank, Ranks
from ..request import LoopSettings
from ..video.composite import composite
from .anchor import Anchor
from .codec import VideoCodec
from .color import match_color
from .conditioning import Conditioning
from .conditions import make_condition
from .contexts import read_audio_window
from .dub import match_inside
from .sampler import OnStep, WindowInputs, WindowSampler, check_samples, samples_of_window
from .setup import SamplingSetup
from .state import WindowState

__all__ = ["Conditioning", "LoopSettings", "Window", "finished", "run_windows", "seeded_noise"]


@dataclass(frozen=True)
class Window:
    """A finished window.

    Args:
        start: the pixel frame of the video where it begins.
        latents: [16, T, H/8, W/8]. pixels: [F, H, W, 3] float in -1..1, colors matched.
        num_new: so many of the last pixels are new, counted without the video's end.
        plan: all windows, as far as the video's length is known by now. state: what the next window begins with.
    """

    index: int
    start: int
    latents: Tensor
    pixels: Tensor
    num_new: int
    plan: WindowPlan
    state: WindowState


def seeded_noise(seed: int, window_index: int) -> NoiseFn:
    """Noise of one window, the same on every machine and in every order of windows: standard normal float32.

    PyTorch's generator of CPUs takes the lowest 32 bits of a seed: seeds that are equal in these give the same noise.
    """
    generator = torch.Generator().manual_seed((seed + 0x9E3779B97F4A7C15 * window_index) % 2**64)
    return lambda shape: torch.randn(shape, generator=generator, dtype=torch.float32)


def run_windows(
    transformer: WanTransformer,
    vae: WanVAE,
    conditioning: Conditioning,
    settings: LoopSettings | SamplingSetup,
    draw: NoiseFn | int,
    on_step: OnStep | None = None,
    free_memory: Callable[[], bool] | None = None,
    state: WindowState | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Window]:
    """Sample a video window by window; what a window allocates dies with it.

    Args:
        settings: or a SamplingSetup that was made from them.
        draw: noise of a given shape, float32, asked for in the order: window, motion, then step by step; or a seed.
        on_step: called after every step; what it raises ends the run.
        free_memory: called when the device has run out of memory: moves weights off it and says whether it could. The
            window goes on from its last finished part, then with a tiled VAE, then with more weights off the device.
        state: the `Window.state` that an earlier run of the same video came to; this one goes on from there.
        ranks: who make the video together, each by a call of its own; None: this process alone.
    Source: the loops of MultiTalk and InfiniteTalk. Unlike them, the tail is padded with silence, never reversed
    speech, and the caller trims the last window's frames beyond the end.
    """
    if not isinstance(settings, SamplingSetup):
        settings = SamplingSetup.of(settings, conditioning.has_audio)
    yield from _Run(
        transformer, vae, conditioning, settings, draw, on_step, free_memory, state, ranks or OneRank()
    ).windows()


def finished(window: Window, plan: WindowPlan) -> Tensor:
    """What a window adds to the video, as bytes: [F, H, W, 3] uint8 on the CPU; frames beyond the plan's end are cut.

    Where the plan's length is only known later, `window.plan` is the one to cut by.
    """
    new = window.pixels[-window.num_new :][: plan[window.index].num_new]
    return new.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8).cpu()


class _Run:
    """One video; from window to window only `state` changes, and what the parts keep for the next window."""

    def __init__(
        self, transformer: WanTransformer, vae: WanVAE, conditioning: Conditioning, setup: SamplingSetup,
        draw: NoiseFn | int, on_step: OnStep | None, free_memory: Callable[[], bool] | None, state: WindowState | None,
        ranks: Ranks,
    ) -> None:  # fmt: skip
        self.conditioning, self.settings, self.state = conditioning, setup.settings, state
        self.draw, self.on_step, self.ranks = draw, on_step, ranks
        self.audio = conditioning.audio_source
        height, width = conditioning.references[0].shape[-2:]
        self.geometry = VideoGeometry(width, height, self.settings.window_frames)
        check_samples(conditioning.samples, self.geometry)
        if state is not None:
            state.check_fits(self.plan, self.geometry, self.settings.reanchor > 0)
        self.codec = VideoCodec(vae, self.settings.tiled_vae)
        self.fallbacks = make_fallbacks(free_memory, self.codec.tile)
        self.condition = make_condition(
            self.settings, conditioning, self.codec, self.geometry, self.plan, lambda: self.anchor
        )  # fmt: skip
        self.sampler = WindowSampler(transformer, conditioning, self.condition, setup, self.geometry, ranks)

    @property
    def plan(self) -> WindowPlan:
        """All windows, as far as the sound says by now how long it is."""
        settings, conditioning = self.settings, self.conditioning
        return WindowPlan(
            conditioning.total_frames, settings.window_frames, settings.motion_frames, conditioning.cuts
        )  # fmt: skip

    @property
    def anchor(self) -> Anchor | None:
        """Of the next window."""
        return None if self.state is None else self.state.anchor

    def windows(self) -> Iterator[Window]:
        while (index := self.state.next_index if self.state else 0) in (plan := self.plan):
            audio = None
            if self.audio is not None:
                audio = read_audio_window(self.audio, plan[index], lambda: self.plan.num_windows)
                if audio is None:
                    return
            yield self.window(index, audio)  # not by name: it must not outlive its use while the next one is made

    def window(self, index: int, audio: Tensor | None) -> Window:
        plan, retry = self.plan, OomRetry(index, self.fallbacks, self.ranks)
        span = plan[index]
        noise = seeded_noise(self.draw, index) if isinstance(self.draw, int) else self.draw
        last_frames = None if self.state is None or span.begins_scene else self.state.frames
        text_index = self.conditioning.text_index(span)
        inputs = WindowInputs(index, plan.num_windows, last_frames, audio, self._samples(span), text_index)
        latents = self.sampler.sample(inputs, noise, retry, self.on_step)
        pixels = retry.run(lambda: self._finish(self.codec.decode(latents, inputs.name), index))
        self.state = WindowState.after(index, plan, pixels, self._next_anchor(index, pixels))
        num_new = span.stop - span.new_start
        return Window(index, span.start, latents, pixels, num_new, plan, self.state)

    def _next_anchor(self, index: int, pixels: Tensor) -> Anchor | None:
        """After window `index`; None for settings that keep to the reference picture."""
        every = self.settings.reanchor
        return Anchor.after(index, pixels, self.anchor, every) if every else None

    def _samples(self, span: WindowSpan) -> Tensor | None:
        samples = self.conditioning.samples
        if samples is None:
            return None
        return samples_of_window(samples, span.start // VAE_STRIDE[0], self.geometry.latent_frames)

    def _finish(self, pixels: Tensor, index: int) -> Tensor:
        """Colors matched, and what a source video keeps put back."""
        method, strength = self.settings.color_match, self.settings.color_strength
        kept = self.condition.kept(index)
        if kept is not None:
            return composite(match_inside(pixels, kept, method, strength), kept)
        reference = self.condition.color_reference(index)
        if reference is None or method == "disabled" or strength == 0:
            return pixels
        return match_color(pixels, reference.permute(1, 2, 0).to(pixels), method, strength)
