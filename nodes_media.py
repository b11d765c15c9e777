"""Sounds, pictures, masks and latents as ComfyUI's nodes and those of other packs hand them over, in one form each.

Legend: C channels, N samples, R pictures, H W rows and columns, T latent frames, h w latent rows and columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .nodes_common import logger
from .wanvideo.audio.decode import check_format
from .wanvideo.errors import InputError, UnsupportedError
from .wanvideo.geometry import LATENT_CHANNELS


def samples_of(audio: Any, name: str) -> tuple[np.ndarray, int]:
    """An AUDIO input as samples float32 [C, N] and rate; of a batch the first, which is said.

    Raises: InputError for anything else, for one without samples, and for a rate or channels that are not read.
    """
    try:
        samples, rate = audio["waveform"].detach().cpu().float(), int(audio["sample_rate"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{name} is no AUDIO but {type(audio).__name__}. Connect LoadAudio.") from None
    if samples.ndim > 3:
        raise InputError(f"Sound of shape {list(samples.shape)} is not usable. Give [channels, samples].")
    if not samples.numel():
        raise InputError(f"{name} is empty: it has no samples. Give another sound.")
    if samples.ndim == 3:
        _say_if_several(name, len(samples))
        samples = samples[0]
    samples = torch.atleast_2d(samples)
    check_format(rate, len(samples), name)
    return samples.numpy(), rate


def masks_of(mask: Any, name: str) -> Tensor:
    """A MASK input as [R, H, W] float32 on the CPU: it may be [H, W], or have an axis of one channel.

    Raises: InputError for anything else, and for one without pixels.
    """
    shape = list(getattr(mask, "shape", ()))
    masks = mask.detach().cpu().float() if isinstance(mask, Tensor) else torch.empty(0)
    if masks.ndim == 4 and 1 in (shape[1], shape[3]):
        masks = masks.squeeze(1 if shape[1] == 1 else 3)
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or not masks.numel():
        raise InputError(f"{name} is no MASK but {type(mask).__name__} {shape}. Connect [number, rows, columns].")
    return masks


def size_of(images: Any) -> tuple[int, int]:
    """Width and height of an IMAGE [R, H, W, 3 or 4]. Raises: InputError for anything else, and for no picture."""
    shape = list(getattr(images, "shape", ()))
    if len(shape) != 4 or shape[-1] not in (3, 4) or 0 in shape:
        raise InputError(f"Pictures of shape {shape} are not usable. Give [number, rows, columns, 3].")
    return shape[2], shape[1]


def latents_of(samples: Any) -> Tensor:
    """[16, T, h, w] of a LATENT; of a batch the first, which is said.

    Raises: InputError for another model's, and for anything else.
    """
    if not isinstance(samples, dict):
        raise InputError(f"samples is no LATENT but {type(samples).__name__}. Connect WanVideoEncode.")
    try:
        latents = samples["samples"]
    except KeyError:
        latents = None
    shape = list(getattr(latents, "shape", ()))
    if not isinstance(latents, Tensor) or latents.ndim != 5 or shape[1] != LATENT_CHANNELS or not latents.numel():
        raise InputError(
            f"samples are latents of shape {shape}, this model needs [1, {LATENT_CHANNELS}, frames, rows, columns]. "
            "Encode with WanVideoEncode and a Wan2.1 VAE."
        )
    _say_if_several("samples", len(latents))
    return latents[0]


def check_no_mask(samples: Any) -> None:
    """Raises: UnsupportedError for a LATENT of which a part is to stay."""
    if isinstance(samples, dict) and samples.get("noise_mask") is not None:
        raise UnsupportedError(
            "samples have a noise_mask, which is not supported: all of them would be made anew. Remove the node that "
            "sets it; to keep a part of a video link keep_mask."
        )


def _say_if_several(name: str, count: int) -> None:
    if count > 1:
        logger.warning("%s holds a batch of %d: the first one is used.", name, count)
