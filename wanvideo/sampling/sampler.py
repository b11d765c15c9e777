"""One window, from noise to latents, with all that it is conditioned on.

Legend: S speakers, F pixel frames of a window, m of them repeat the previous one, H W pixel rows and columns, T latent
frames, h w latent rows and columns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry import VideoGeometry
from ..memory.oom import OomRetry
from ..models.transformer import WanTransformer
from ..protocols import MotionLatents, NoiseFn, OneRank, Ranks, WindowCondition
from .conditioning import Conditioning
from .contexts import ContextMaker
from .denoiser import Denoiser, check_blocks
from .finite import check_latents
from .setup import SamplingSetup
from .step_cache import open_cache, usable_cache
from .window import Replay, StepReport, blend_noise, denoise_window

logger = logging.getLogger("wanvideo")
OnStep = Callable[[StepReport], None]


@dataclass(frozen=True)
class WindowInputs:
    """What one window has for itself.

    Args:
        index: of the window. num_windows: of the video, None where that is not known.
        last_frames: [3, m, H, W] in -1..1, with which it begins; None for the first window.
        audio: [S, F, 5, layers, channels], or None for no sound.
        samples: [16, T, h, w], latents of a source video to start from, or None.
        text_index: which of the texts it attends to.
    """

    index: int
    num_windows: int | None
    last_frames: Tensor | None = None
    audio: Tensor | None = None
    samples: Tensor | None = None
    text_index: int = 0

    @property
    def name(self) -> str:
        """In messages."""
        return f"Window {self.index + 1}{f' of {self.num_windows}' if self.num_windows else ''}"


class WindowSampler:
    """Samples windows of one video; between them it keeps only what they share.

    Raises: InputError when settings and conditioning do not fit the model or each other.
    """

    def __init__(
        self, transformer: WanTransformer, conditioning: Conditioning, condition: WindowCondition, setup: SamplingSetup,
        geometry: VideoGeometry, ranks: Ranks | None = None,
    ) -> None:  # fmt: skip
        self._ranks = ranks or OneRank()
        check_blocks(setup.settings.skip_layers, len(transformer.blocks))
        self._transformer, self._condition, self._setup, self._geometry = transformer, condition, setup, geometry
        self._contexts = ContextMaker(transformer, conditioning, setup, geometry)
        self._step_cache = usable_cache(setup.settings.step_cache, setup.num_steps)

    def sample(self, inputs: WindowInputs, noise: NoiseFn, retry: OomRetry, on_step: OnStep | None) -> Tensor:
        """Latents [16, T, h, w] float32 of a window; what runs out of memory starts anew from the same noise.

        Raises: UnsupportedError where they are not finite.
        """
        replay = Replay(noise)
        channels, motion = retry.run(lambda: self._condition.known(inputs.index, inputs.last_frames))
        latents = retry.run(lambda: self._denoise(inputs, channels, motion, replay, on_step))
        began_with = {"known frames": channels, "speech": inputs.audio, "source video's latents": inputs.samples}
        check_latents(latents, inputs.name, self._transformer, began_with)
        return latents

    def _denoise(
        self, inputs: WindowInputs, channels: Tensor | None, motion: MotionLatents | None, replay: Replay,
        on_step: OnStep | None,
    ) -> Tensor:  # fmt: skip
        """Everything that remembers steps is made here."""
        replay.rewind()
        scheduler, device = self._setup.scheduler(), self._transformer.device
        latents = self._start(inputs.samples, scheduler.timesteps[0], replay)
        cache = open_cache(self._step_cache, scheduler.num_steps, self._geometry.width * self._geometry.height)
        if cache is not None:
            cache.ranks = self._ranks
        reference_index = self._condition.reference_index(inputs.index)
        denoiser = Denoiser(
            self._transformer, self._contexts.contexts(inputs.text_index, reference_index, inputs.audio),
            self._setup.guidance(), None if channels is None else channels.to(device), cache,
            self._setup.settings.skip_layers, scheduler.num_steps, self._ranks,
        )  # fmt: skip

        def report(step: int, denoised: Tensor) -> None:
            if on_step:
                on_step(StepReport(inputs.index, inputs.num_windows, step, scheduler.num_steps, denoised))

        latents = denoise_window(denoiser, scheduler, latents, motion, replay, report)
        if cache is not None:
            logger.info("%d of %d steps reused earlier ones.", cache.num_skipped, scheduler.num_steps)
        return latents

    def _start(self, samples: Tensor | None, timestep: float, noise: NoiseFn) -> Tensor:
        """The latents of the first step: noise, or the source video's with as much noise as that step expects."""
        latents = noise(self._geometry.latent_shape).to(self._transformer.device)
        if samples is None:
            return latents
        samples, settings = samples.to(latents), self._setup.settings
        adds_noise = settings.add_noise_to_samples or settings.denoise_strength < 1
        return blend_noise(samples, latents, timestep) if adds_noise else samples


def check_samples(samples: Tensor | None, geometry: VideoGeometry) -> None:
    """Raises: InputError for samples that are no latents [16, n, h, w] of a video of this size."""
    channels, _, height, width = geometry.latent_shape
    if samples is not None and (
        samples.ndim != 4 or not samples.shape[1] or (samples.shape[0], *samples.shape[2:]) != (channels, height, width)
    ):
        needed = f"[{channels}, n, {height}, {width}]"
        raise InputError(
            f"The latents of the source video are {list(samples.shape)}, this run needs {needed} (channels, frames, "
            f"rows, columns). Encode a video of {geometry.width}x{geometry.height} with the Wan2.1 VAE."
        )


def samples_of_window(samples: Tensor, first: int, num_frames: int) -> Tensor:
    """num_frames latent frames of samples [16, n, h, w] from `first` on; beyond its end the last one repeats."""
    indices = torch.arange(first, first + num_frames).clamp_max(samples.shape[1] - 1)
    return samples[:, indices]
