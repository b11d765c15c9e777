"""One clip without a window loop: plain image-to-video, with or without sound.

Legend: F pixel frames = 4(T - 1) + 1, T latent frames, H W pixel rows and columns, S speakers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import VideoGeometry, WindowSpan
from ..memory.oom import OomRetry, make_fallbacks
from ..models.transformer import WanTransformer
from ..models.vae import WanVAE
from ..models.vae_tiling import Tiling
from ..protocols import AudioSource, NoiseFn
from ..request import LoopSettings
from ..video.picture import fit_images
from .conditioning import Conditioning
from .conditions import Plain
from .contexts import read_audio_window
from .sampler import OnStep, WindowInputs, WindowSampler, check_samples
from .setup import SamplingSetup


def picture_condition(
    vae: WanVAE, geometry: VideoGeometry, start: Tensor | None, end: Tensor | None, tiling: Tiling | None = None,
    start_strength: float = 1.0, end_strength: float = 1.0,
) -> Tensor:  # fmt: skip
    """The 20 condition channels (mask 4, latents 16) of a clip that begins and may end with given pictures.

    Args:
        start, end: [3, f, H, W] in -1..1, or None. Between them the clip is gray and unknown; of more frames than it
            has it takes the first ones of start, the last ones of end.
        start_strength, end_strength: factors on the first and the last latent frame.
    Returns: [20, T, H/8, W/8] float32.
    """
    frames = geometry.num_frames
    known_frames = torch.zeros(3, frames, geometry.height, geometry.width, device=vae.device)
    is_known = torch.zeros(frames, device=vae.device)
    if start is not None:
        count = min(start.shape[1], frames)
        known_frames[:, :count], is_known[:count] = start[:, :count].to(known_frames), 1
    if end is not None:
        first = frames - min(end.shape[1], frames)
        known_frames[:, first:], is_known[first:] = end[:, first - frames :].to(known_frames), 1
    latents = vae.encode(known_frames, tiling=tiling)
    latents[:, :1] *= start_strength
    latents[:, -1:] *= end_strength
    mask = torch.cat((is_known[:1].repeat(3), is_known)).view(-1, 4).T[:, :, None, None]
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
    settings: LoopSettings | SamplingSetup,
    draw: NoiseFn,
    *,
    text_embeds: Tensor,
    negative_text_embeds: Tensor | None = None,
    image_embeds: Tensor | None = None,
    audio: AudioSource | Sequence[Tensor] | None = None,
    speaker_masks: Tensor | None = None,
    samples: Tensor | None = None,
    on_step: OnStep | None = None,
    free_memory: Callable[[], bool] | None = None,
) -> Tensor:
    """Latents [16, T, H/8, W/8] of one clip; arguments as in `Conditioning` and `run_windows`.

    Its sound begins with the clip, and its last entry goes on where it is shorter. Samples end in zeros.
    """
    check_samples(samples, geometry)
    conditioning = Conditioning(
        (), [text_embeds], negative_text_embeds, image_embeds, audio, None, speaker_masks, None, geometry.num_frames
    )
    setup = settings
    if not isinstance(setup, SamplingSetup):
        setup = SamplingSetup.of(setup, conditioning.has_audio)
    sampler = WindowSampler(transformer, conditioning, Plain(condition), setup, geometry)
    source, window = conditioning.audio_source, None
    if source is not None:
        window = read_audio_window(source, WindowSpan(0, 0, geometry.num_frames, 0, geometry.num_frames), lambda: 1)
    if samples is not None:
        missing = max(0, geometry.latent_frames - samples.shape[1])
        samples = F.pad(samples, (0, 0, 0, 0, 0, missing))[:, : geometry.latent_frames]
    inputs = WindowInputs(0, 1, audio=window, samples=samples)
    return sampler.sample(inputs, draw, OomRetry(0, make_fallbacks(free_memory)), on_step)
