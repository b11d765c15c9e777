"""One clip without a window loop: plain image-to-video, with or without sound.

Legend: F pixel frames = 4(T - 1) + 1, T latent frames, H W pixel rows and columns, S speakers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..audio.features import audio_window
from ..geometry import VideoGeometry
from ..models.transformer import WanTransformer
from ..models.vae import WanVAE
from ..models.vae_tiling import Tiling
from ..request import LoopSettings
from ..video.picture import fit_images
from .denoiser import Contexts, Denoiser, check_blocks
from .guidance import Guidance
from .schedulers import scheduler_of
from .step_cache import open_cache, usable_cache
from .window import Draw, StepReport, blend_noise, denoise_window


def picture_condition(
    vae: WanVAE, geometry: VideoGeometry, start: Tensor | None, end: Tensor | None, tiling: Tiling | None = None,
    start_strength: float = 1.0, end_strength: float = 1.0,
) -> Tensor:  # fmt: skip
    """The 20 condition channels (mask 4, latents 16) of a clip that begins and may end with given pictures.

    Args:
        start, end: [3, f, H, W] in -1..1, or None. Between them the clip is grey and unknown.
        start_strength, end_strength: factors on the first and the last latent frame.
    Returns: [20, T, H/8, W/8] float32.
    """
    frames = geometry.num_frames
    shown = torch.zeros(3, frames, geometry.height, geometry.width, device=vae.device)
    known = torch.zeros(frames, device=vae.device)
    for pictures, place in ((start, slice(None)), (end, slice(-1, None))):
        if pictures is not None:
            count = min(pictures.shape[1], frames)
            where = slice(frames - count, frames) if place.start == -1 else slice(0, count)
            shown[:, where], known[where] = pictures[:, :count].to(shown), 1
    latents = vae.encode(shown, tiling=tiling)
    latents[:, :1] *= start_strength
    latents[:, -1:] *= end_strength
    mask = torch.cat((known[:1].repeat(3), known)).view(-1, 4).T[:, :, None, None]
    return torch.cat((mask.expand(-1, -1, *latents.shape[2:]), latents))


def encode_video(vae: WanVAE, images: Tensor, tiling: Tiling | None = None) -> Tensor:
    """Latents [16, T, H/8, W/8] of images [F, H, W, 3 or 4] in 0..1; the last one is repeated until F is 4n + 1."""
    height, width = images.shape[1:3]
    pixels = fit_images(images, width, height).transpose(0, 1)
    missing = -(pixels.shape[1] - 1) % 4
    return vae.encode(torch.cat((pixels, pixels[:, -1:].expand(-1, missing, -1, -1)), 1), tiling=tiling)


def empty_condition(geometry: VideoGeometry) -> Tensor:
    """The condition of a clip of which nothing is known: [20, T, H/8, W/8] of zeros."""
    _, frames, height, width = geometry.latent_shape
    return torch.zeros(20, frames, height, width)


def sample_clip(
    transformer: WanTransformer,
    geometry: VideoGeometry,
    condition: Tensor | None,
    settings: LoopSettings,
    draw: Draw,
    *,
    text_embeds: Tensor,
    negative_text_embeds: Tensor | None = None,
    image_embeds: Tensor | None = None,
    audio: Sequence[Tensor] | None = None,
    speaker_masks: Tensor | None = None,
    samples: Tensor | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> Tensor:
    """Latents [16, T, H/8, W/8] of one clip; arguments as in `Conditioning`, audio heard from its first frame on."""
    check_blocks(settings.skip_layers, len(transformer.blocks))
    scheduler = scheduler_of(settings)
    device = transformer.device
    guidance = Guidance(settings.guidance_scale, settings.audio_guidance_scale, settings.apg, has_audio=bool(audio))
    negative = speech = null = None
    if guidance.needs_negative and negative_text_embeds is not None:
        negative = transformer.text_context(negative_text_embeds, image_embeds)
    if audio:
        tracks = torch.stack([audio_window(track, 0, geometry.num_frames) for track in audio])
        size = geometry.latent_height, geometry.latent_width
        speech = transformer.audio_context(tracks, speaker_masks, *size, settings.audio_scale)
        if guidance.needs_null_audio:
            null = transformer.audio_context(torch.zeros_like(tracks[:1]), None, *size, settings.audio_scale)
    contexts = Contexts(transformer.text_context(text_embeds, image_embeds), negative, speech, null)
    latents = draw(geometry.latent_shape).to(device)
    if samples is not None:
        given = F.pad(samples, (0,) * 4 + (0, max(0, latents.shape[1] - samples.shape[1])))[:, : latents.shape[1]]
        noisy = settings.add_noise_to_samples or settings.denoise_strength < 1
        latents = blend_noise(given.to(latents), latents, scheduler.timesteps[0]) if noisy else given.to(latents)
    cache = usable_cache(settings.step_cache, scheduler.num_steps)
    denoiser = Denoiser(
        transformer, contexts, guidance, None if condition is None else condition.to(device),
        open_cache(cache, scheduler.num_steps, geometry.width * geometry.height), settings.skip_layers,
        scheduler.num_steps,
    )  # fmt: skip

    def report(step: int, denoised: Tensor) -> None:
        if on_step:
            on_step(StepReport(0, 1, step, len(scheduler.timesteps), denoised))

    return denoise_window(denoiser, scheduler, latents, None, draw, report)
