"""A mode and a sink of a few lines each: what CONTRIBUTING.md says of them is all that there is to it.

Legend: F video frames, H W rows and columns, T latent frames, h w rows and columns of latents, m frames that repeat.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from wanvideo.geometry import VideoGeometry
from wanvideo.sampling.codec import VideoCodec


@dataclass(frozen=True)
class Mirror:
    """A mode: a window begins with the end of the last one, mirrored, and has neither motion latents nor a color."""

    references: Sequence[Tensor] | Tensor
    codec: VideoCodec
    geometry: VideoGeometry
    overlap: int

    def reference_index(self, window_index: int) -> int:
        return 0

    def known(self, window_index: int, last_frames: Tensor | None) -> tuple[Tensor, None]:
        frames = self.references[0][:, None] if last_frames is None else last_frames.flip(-1)
        latents = self.codec.encode_start(frames, self.geometry.num_frames)
        return torch.cat((torch.ones_like(latents[:4]), latents)), None

    def color_reference(self, window_index: int) -> None:
        return None

    def kept(self, window_index: int) -> None:
        return None


@dataclass
class PngFolder:
    """A sink: a folder of pictures, 000000.png and so on. `end` is how the run ended, `longest` the most at a time."""

    path: Path
    num_frames: int = 0
    longest: int = 0
    end: list[str] = field(default_factory=list)

    def write(self, frames: Tensor) -> None:
        self.path.mkdir(exist_ok=True)
        for frame in frames.numpy():
            Image.fromarray(frame).save(self.path / f"{self.num_frames:06}.png")
            self.num_frames += 1
        self.longest = max(self.longest, len(frames))

    def close(self) -> None:
        self.end.append("closed")

    def abandon(self) -> None:
        self.end.append("abandoned")
