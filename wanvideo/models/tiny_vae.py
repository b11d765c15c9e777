"""The decoder of the tiny video autoencoder of Wan2.1: latents to frames, roughly and many times faster than its VAE.

Legend: T latent frames, h w rows and columns of latents, C channels. Inside, a frame is [1, C, rows, columns]; one at a
time goes through all layers, each of which remembers the frame before it. Module names are those of published files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .vae import GROUP, LATENT_CHANNELS, filled
from .vae_tiling import Tiling, over_tiles

BLOCKS = 3  # of a level
TIMES = (1, 2, 2)  # frames that each level makes of one
FIRST, LEVEL_LAYERS = 3, 6  # where the first level begins, and how many layers one has
LATENT_LIMIT = 3.0


@dataclass(frozen=True)
class TinyVAEConfig:
    """widths: channels of the three levels and of the last layer; 256, 128, 64, 64 in published files."""

    widths: tuple[int, int, int, int]

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> TinyVAEConfig:
        """Args: shapes of the tensors by their names, which have been checked to agree."""
        first, second, third, last = (shapes[f"decoder.{layer}.weight"][0] for layer in (1, 8, 14, 20))
        return cls((first, second, third, last))


class MemoryBlock(nn.Module):
    """Three convolutions over a frame beside the one before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: Tensor, before: Tensor | None) -> Tensor:
        """before: None stands for a frame of zeros."""
        before = torch.zeros_like(x) if before is None else before
        return F.relu(self.conv(torch.cat((x, before), 1)) + x)


class Multiply(nn.Module):
    """One frame to the frames of which it is the latent."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.times = times
        self.conv = nn.Conv2d(width, times * width, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        frames: Tensor = self.conv(x)
        return frames.chunk(self.times, 1)


class TinyVAE(nn.Module):
    """Decodes as `WanVAE.decode` does, from the same latents to the same number of frames, and cannot encode.

    Source: TAEHV (taew2_1), which it equals but for rounding. Frames are rougher than the VAE's, so windows never
    continue from them.
    """

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        layers: list[nn.Module] = [nn.Identity(), _conv(LATENT_CHANNELS, widths[0]), nn.ReLU()]
        for times, width, out in zip(TIMES, widths[:-1], widths[1:], strict=True):
            layers += [MemoryBlock(width) for _ in range(BLOCKS)]
            layers += [nn.Upsample(scale_factor=2), Multiply(width, times), _conv(width, out, bias=False)]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), _conv(widths[-1], 3))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def decode(self, latents: Tensor, tiling: Tiling | None = None) -> Tensor:
        """latents [16, T, h, w], normalized -> pixels [3, 4T - 3, 8h, 8w] in -1..1, in the model's dtype.

        Raises: InputError for other sizes.
        """
        if latents.ndim != 4 or latents.shape[0] != LATENT_CHANNELS or 0 in latents.shape:
            raise InputError(
                f"Latents of shape {list(latents.shape)} cannot be decoded. Give [{LATENT_CHANNELS}, T, h, w]."
            )
        _, frames, rows, columns = latents.shape
        shape = (3, GROUP * (frames - 1) + 1, 8 * rows, 8 * columns)
        if tiling is None:
            return filled(shape, self.dtype, self.device, self.decode_stream(latents))
        return over_tiles(latents, shape, tiling.cells(8), self.decode, from_latents=True)

    def decode_stream(self, latents: Tensor) -> Iterator[Tensor]:
        """latents [16, T, h, w] -> the video's frames [3, 1, 8h, 8w], in order; memory is that of one frame.

        The frames that the first latent's layers make before they have seen another are left out.
        """
        past: dict[int, Tensor] = {}
        for index, latent in enumerate(latents.unbind(1)):
            x = latent[None].to(self.device, self.dtype)
            x = F.relu(self.decoder[1](torch.tanh(x / LATENT_LIMIT) * LATENT_LIMIT))
            for number, frame in enumerate(self._frames(x, 0, past)):
                if index or number == GROUP - 1:
                    yield (2 * frame - 1).clamp(-1, 1).transpose(0, 1)

    def _frames(self, x: Tensor, level: int, past: dict[int, Tensor]) -> Iterator[Tensor]:
        """What the levels from this one on make of a frame, depth first. past: of each memory block, by its number."""
        if level == len(TIMES):
            yield self.decoder[-1](F.relu(x))
            return
        start = FIRST + level * LEVEL_LAYERS
        for layer in range(start, start + BLOCKS):
            past[layer], x = x, self.decoder[layer](x, past.get(layer))
        double, multiply, conv = (self.decoder[layer] for layer in range(start + BLOCKS, start + LEVEL_LAYERS))
        for frame in multiply(x):  # before pixels are doubled, which it has to look at singly: a quarter of the work
            yield from self._frames(conv(double(frame)), level + 1, past)


def _conv(width: int, out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(width, out, 3, padding=1, bias=bias)
