"""The VAE as windows use it: whole until memory runs out, and in tiles from then on.

Legend: F pixel frames, H W pixel rows and columns, T latent frames.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..models.vae import WanVAE
from ..models.vae_tiling import Tiling
from .finite import check_pixels


class VideoCodec:
    """Encodes known frames and decodes finished windows. tiled: whether the VAE works in tiles from the start."""

    def __init__(self, vae: WanVAE, tiled: bool = False) -> None:
        self._vae, self._tiling = vae, Tiling.default() if tiled else None

    @property
    def is_tiled(self) -> bool:
        return self._tiling is not None

    def encode(self, frames: Tensor) -> Tensor:
        """frames [3, F, H, W] in -1..1, F = 4n + 1 -> latents [16, T, H/8, W/8] float32."""
        return self._vae.encode(frames.to(self._vae.device), tiling=self._tiling)

    def encode_start(self, frames: Tensor, num_frames: int) -> Tensor:
        """Latents of a clip of num_frames that starts with frames [3, f, H, W] and is gray from there on."""
        padded = F.pad(frames.to(self._vae.device), (0, 0, 0, 0, 0, num_frames - frames.shape[1]))
        return self._vae.encode(padded, tiling=self._tiling)

    def decode(self, latents: Tensor, window: str) -> Tensor:
        """latents [16, T, H/8, W/8] -> frames [F, H, W, 3] float32, about -1..1.

        Args: window: its name in messages. Raises: UnsupportedError where they are not finite.
        """
        frames = self._vae.decode(latents, tiling=self._tiling).float()
        check_pixels(frames, window, self._vae.dtype)
        return frames.permute(1, 2, 3, 0)

    def tile(self) -> bool:
        """Work in tiles from now on; False when that is so already."""
        was_whole, self._tiling = self._tiling is None, self._tiling or Tiling.default()
        return was_whole
