"""All windows of a video, one after another. Tensors only: no files, no durations, no model loading.

Legend: F pixel frames of a window, m of them repeat the previous one, H W pixel rows and columns, T latent frames,
S speakers, R reference pictures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..audio.features import audio_window
from ..errors import InputError
from ..geometry import FPS, VideoGeometry, WindowPlan, WindowSpan
from ..memory.oom import Attempts, Relief
from ..models.transformer import TextContext, WanTransformer
from ..models.vae import Tiling, WanVAE
from ..request import LoopSettings
from .color import match_colour
from .denoiser import Contexts, Denoiser, check_blocks
from .guidance import Guidance
from .schedulers import scheduler_of
from .step_cache import open_cache, usable_cache
from .window import Draw, Motion, Replay, StepReport, blend_noise, denoise_window

__all__ = ["Conditioning", "LoopSettings", "Window", "run_windows", "seeded_draw"]

logger = logging.getLogger("wanvideo")
AUDIO_REACH = 2  # frames on each side that a frame hears
AUDIO_TAIL = 3  # frames of silence beyond the last window's end, so that its last frames hear silence ahead


@dataclass(frozen=True)
class Conditioning:
    """What a video is made from.

    Args:
        references: [R, 3, H, W] in -1..1, or any sequence of [3, H, W]; picture k serves window k, the last repeats.
        text_embeds: one [n, dim] a window, the last repeats. negative_text_embeds: [n, dim] or None.
        image_embeds: [1 or R, 257, image_dim] or None.
        audio: for each speaker [frames, layers, channels], one entry a video frame; None for no sound.
        silence: [n, layers, channels]; its last frames are appended where the last window outruns a track.
        speaker_masks: [S + 1, H, W], the background last; needed from two speakers on.
        samples: [16, N, H/8, W/8], latents of a source video to start from, or None.
        num_frames: frames of the video; None: as many as the first speaker's track has.
        fps: frames a second.
    """

    references: Tensor | Sequence[Tensor]
    text_embeds: Sequence[Tensor]
    negative_text_embeds: Tensor | None = None
    image_embeds: Tensor | Sequence[Tensor] | None = None
    audio: Sequence[Tensor] | None = None
    silence: Tensor | None = None
    speaker_masks: Tensor | None = None
    samples: Tensor | None = None
    num_frames: int | None = None
    fps: float = FPS

    @property
    def total_frames(self) -> int:
        if self.num_frames is not None:
            return self.num_frames
        if not self.audio:
            raise InputError("Without sound the video needs a length: give num_frames.")
        return self.audio[0].shape[0]


@dataclass(frozen=True)
class Window:
    """A finished window.

    latents [16, T, H/8, W/8]; pixels [F, H, W, 3] float in -1..1, colour-matched, of which the last num_new are new;
    start: the pixel frame of the video where it begins.
    """

    index: int
    start: int
    latents: Tensor
    pixels: Tensor
    num_new: int


def seeded_draw(seed: int, window_index: int) -> Draw:
    """Noise of one window, the same on every machine and in every order of windows: standard normal float32."""
    generator = torch.Generator().manual_seed((seed + 0x9E3779B97F4A7C15 * window_index) % 2**64)
    return lambda shape: torch.randn(shape, generator=generator, dtype=torch.float32)


def run_windows(
    transformer: WanTransformer,
    vae: WanVAE,
    conditioning: Conditioning,
    settings: LoopSettings,
    draw: Draw | int,
    on_step: Callable[[StepReport], None] | None = None,
    relieve: Callable[[], bool] | None = None,
) -> Iterator[Window]:
    """Sample a video window by window; what a window allocates dies with it.

    Args:
        draw: noise of a given shape, float32, asked for in the order: window, motion, then step by step; or a seed.
        on_step: called after every step; what it raises ends the run.
        relieve: called when the device has run out of memory: moves weights off it and says whether it could. The
            window goes on from its last finished part, then once more with a tiled VAE.
    Source: the loops of MultiTalk and InfiniteTalk. Unlike them, the tail is padded with silence, never reversed
    speech, and the caller trims the last window's frames beyond the end.
    """
    reliefs = [Relief("more blocks streaming", relieve)] if relieve else []
    run = _Run(transformer, vae, conditioning, settings, reliefs)
    for span in run.plan:
        noise = seeded_draw(draw, span.index) if isinstance(draw, int) else draw
        yield run.window(span, noise, on_step or (lambda report: None))


def finished(window: Window, plan: WindowPlan) -> Tensor:
    """What a window adds to the video, as bytes: [F, H, W, 3] uint8 on the CPU; frames beyond the end are cut."""
    new = window.pixels[-window.num_new :][: plan[window.index].num_new]
    return new.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8).cpu()


class _Run:
    """What windows hand on: the last frames, and contexts and conditions that did not change."""

    def __init__(
        self, transformer: WanTransformer, vae: WanVAE, conditioning: Conditioning, settings: LoopSettings,
        reliefs: Sequence[Relief],
    ) -> None:  # fmt: skip
        self.transformer, self.vae, self.given, self.settings = transformer, vae, conditioning, settings
        self.reliefs = reliefs
        self.plan = WindowPlan(conditioning.total_frames, settings.window_frames, settings.motion_frames)
        height, width = conditioning.references[0].shape[-2:]
        self.geometry = VideoGeometry(width, height, settings.window_frames)
        self.tiling = Tiling.default() if settings.tiled_vae else None
        self.tail: Tensor | None = None  # the last m finished frames, [3, m, H, W]
        self.cache: dict[str, tuple[object, object]] = {}
        if not conditioning.text_embeds:
            raise InputError("There is no prompt. Encode at least one text, even an empty one.")
        check_blocks(settings.skip_layers, len(transformer.blocks))
        self.step_cache = usable_cache(settings.step_cache, scheduler_of(settings).num_steps)

    def window(self, span: WindowSpan, draw: Draw, on_step: Callable[[StepReport], None]) -> Window:
        attempts = Attempts(span.index, [*self.reliefs, Relief("a tiled VAE", self._tile)])
        replay = Replay(draw)
        condition, motion = attempts.run(lambda: self._condition(span.index))
        latents = attempts.run(lambda: self._sample(span, condition, motion, replay, on_step))
        pixels = attempts.run(lambda: self._decode(span.index, latents))
        self.tail = pixels[-self.plan.overlap :].permute(3, 0, 1, 2).clone()
        num_new = self.plan.window - (self.plan.overlap if span.index else 0)
        return Window(span.index, span.start, latents, pixels, num_new)

    def _sample(
        self, span: WindowSpan, condition: Tensor, motion: Motion | None, replay: Replay,
        on_step: Callable[[StepReport], None],
    ) -> Tensor:  # fmt: skip
        """Latents of a window, from its noise on; everything that remembers steps is made here."""
        replay.rewind()
        scheduler = scheduler_of(self.settings)
        latents = self._start(span.index, scheduler.timesteps[0], replay)
        guidance = self._guidance()
        cache = open_cache(self.step_cache, scheduler.num_steps, self.geometry.width * self.geometry.height)
        denoiser = Denoiser(
            self.transformer, self._contexts(span, guidance), guidance, condition, cache, self.settings.skip_layers,
            scheduler.num_steps,
        )  # fmt: skip

        def report(step: int, denoised: Tensor) -> None:
            on_step(StepReport(span.index, len(self.plan), step, scheduler.num_steps, denoised))

        latents = denoise_window(denoiser, scheduler, latents, motion, replay, report)
        if cache is not None:
            logger.info("%d of %d steps reused earlier ones.", cache.num_skipped, scheduler.num_steps)
        return latents

    def _decode(self, index: int, latents: Tensor) -> Tensor:
        pixels = self.vae.decode(latents, tiling=self.tiling).float().permute(1, 2, 3, 0)
        return self._match_colour(pixels, index)

    def _tile(self) -> bool:
        """Let the VAE work in tiles from now on; False when it does already."""
        was_whole, self.tiling = self.tiling is None, self.tiling or Tiling.default()
        return was_whole

    def _guidance(self) -> Guidance:
        s = self.settings
        return Guidance(s.guidance_scale, s.audio_guidance_scale, s.apg, has_audio=bool(self.given.audio))

    def _condition(self, index: int) -> tuple[Tensor, Motion | None]:
        """The 20 channels of what is known (mask, latents), and the motion latents, if any."""
        clean = self.settings.mode == "infinitetalk"
        if clean or index == 0:
            latents = self._kept(
                "reference", self._reference_index(index), lambda: self._encode_shown(self._shown(index))
            )
        else:
            latents = self._encode_shown(self.tail)
        mask = latents.new_zeros(4, *latents.shape[1:])
        mask[:, 0] = 1
        condition = torch.cat((mask, latents))
        if index == 0:
            # The VAE is causal: the reference alone has the same latent as the reference followed by anything.
            return condition, Motion(latents[:, :1], clean) if clean else None
        if clean:
            return condition, Motion(self.vae.encode(self.tail, tiling=self.tiling), clean)
        return condition, Motion(latents[:, : 1 + (self.plan.overlap - 1) // 4], clean)

    def _encode_shown(self, shown: Tensor) -> Tensor:
        """Latents of a window that starts with frames `shown` [3, f, H, W] and is grey from there on."""
        padded = F.pad(shown, (0, 0, 0, 0, 0, self.plan.window - shown.shape[1]))
        return self.vae.encode(padded, tiling=self.tiling)

    def _shown(self, index: int) -> Tensor:
        return self._reference(index)[:, None].to(self.vae.device)

    def _reference_index(self, index: int) -> int:
        return min(index, len(self.given.references) - 1)

    def _reference(self, index: int) -> Tensor:
        return self.given.references[self._reference_index(index)]

    def _start(self, index: int, timestep: float, draw: Draw) -> Tensor:
        noise = draw(self.geometry.latent_shape).to(self.transformer.device)
        if self.given.samples is None:
            return noise
        frames = self.geometry.latent_frames
        first = index * ((self.plan.stride - 1) // 4 + 1)
        last = self.given.samples.shape[1] - 1
        picks = torch.arange(first, first + frames).clamp_max(last)
        samples = self.given.samples[:, picks].to(noise)
        adds_noise = self.settings.add_noise_to_samples or self.settings.denoise_strength < 1
        return blend_noise(samples, noise, timestep) if adds_noise else samples

    def _contexts(self, span: WindowSpan, guidance: Guidance) -> Contexts:
        prompt = min(span.index, len(self.given.text_embeds) - 1)
        image = 0 if self.given.image_embeds is None else min(span.index, len(self.given.image_embeds) - 1)
        positive = self._kept("prompt", (prompt, image), lambda: self._text(self.given.text_embeds[prompt], image))
        negative = speech = null = None
        if guidance.needs_negative:
            negative = self._kept("negative", image, lambda: self._text(self._negative_embeds(), image))
        if self.given.audio:
            tracks = torch.stack([self._hearing(speaker, span) for speaker in range(len(self.given.audio))])
            speech = self._speech(tracks, self.given.speaker_masks)
            if guidance.needs_null_audio:
                null = self._kept("null", None, lambda: self._speech(torch.zeros_like(tracks[:1]), None))
        return Contexts(positive, negative, speech, null)

    def _text(self, embeds: Tensor, image: int) -> TextContext:
        images = self.given.image_embeds
        return self.transformer.text_context(embeds, None if images is None else images[image][None])

    def _negative_embeds(self) -> Tensor:
        if self.given.negative_text_embeds is None:
            raise InputError(
                f"guidance_scale {self.settings.guidance_scale} compares with a negative prompt, and there is none. "
                "Encode one (it may be empty) or set guidance_scale to 1."
            )
        return self.given.negative_text_embeds

    def _speech(self, tracks: Tensor, masks: Tensor | None):
        height, width = self.geometry.latent_height, self.geometry.latent_width
        return self.transformer.audio_context(tracks, masks, height, width, self.settings.audio_scale)

    def _hearing(self, speaker: int, span: WindowSpan) -> Tensor:
        """What a window hears of a speaker: [F, 5, layers, channels]. Only this part of the track is touched.

        In the last of several windows silence follows a track that ends before the window does.
        """
        track, silence = self.given.audio[speaker], self.given.silence
        first = max(0, span.start - AUDIO_REACH)
        near, missing = track[first:], span.stop - track.shape[0]
        if 0 < span.index == len(self.plan) - 1 and missing >= 0 and silence is not None:
            length = missing + AUDIO_TAIL
            repeated = silence.repeat(-(-length // silence.shape[0]), 1, 1)
            near = torch.cat((near, repeated[-length:].to(near)))
        return audio_window(near, span.start - first, self.plan.window)

    def _match_colour(self, pixels: Tensor, index: int) -> Tensor:
        s = self.settings
        if s.colour_match == "disabled" or s.colour_strength == 0:
            return pixels
        target = self._reference(index if s.mode == "infinitetalk" else 0)
        return match_colour(pixels, target.permute(1, 2, 0).to(pixels), s.colour_match, s.colour_strength)

    def _kept(self, name: str, key: object, make: Callable[[], object]) -> object:
        """The latest value made under `name`, made anew when `key` changes."""
        if name not in self.cache or self.cache[name][0] != key:
            self.cache.pop(name, None)
            self.cache[name] = (key, make())
        return self.cache[name][1]
