"""Dubbing: a source video goes on outside of a region, and only inside of it something new is made.

Outside, the source's latents are put back at the level of noise of every step, inside and at the edge the model is
free the sooner the more a place belongs to the region; at last the source's own pixels are put back.
Legend: F pixel frames of a window, T latent frames, H W pixel rows and columns, h w latent rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..geometry import VAE_STRIDE, WindowPlan, WindowSpan
from ..protocols import KeptFrames, MotionLatents, NoiseFn, SourceFrames, WindowCondition
from ..video.source import from_bytes
from .cached import Cached
from .codec import VideoCodec
from .color import match_color
from .window import blend_noise

COLOR_SAMPLES = 2**17  # pixels of the source that colors are measured by


@dataclass(frozen=True)
class KeptLatents:
    """What of a window is known while a dub is sampled: the source outside of a region, and the motion latents.

    source: [16, T, h, w]. freedom: [T, h, w], the level of noise in 0..1 at which a place is let go; 0: never, 1: it
    is free from the start. motion: of the mode, put in last.
    Source: differential diffusion (Levin and Fried, 2023), with the time step as its threshold.
    """

    source: Tensor
    freedom: Tensor
    motion: MotionLatents | None

    def hold(self, latents: Tensor, timestep: float, noise: NoiseFn) -> Tensor:
        """`latents` [16, T, h, w] with what is known put in as it is at `timestep`."""
        freedom = self.freedom.to(latents.device)
        source = self.source.to(latents)
        known = blend_noise(source, noise(tuple(latents.shape)).to(latents), timestep)
        is_held = (freedom < timestep / 1000) | (freedom == 0)
        latents = torch.where(is_held, known, latents)
        return latents if self.motion is None else self.motion.hold(latents, timestep, noise)


class Dub:
    """The condition of another mode, with a source video that goes on outside of a region.

    What the mode knows of a window and how its motion latents are kept stays the mode's own. A window of the source is
    kept while it is used and can be read again, so a run goes on in another process.
    """

    def __init__(self, inner: WindowCondition, source: SourceFrames, codec: VideoCodec, plan: WindowPlan) -> None:
        self._inner, self._source, self._codec, self._plan = inner, source, codec, plan
        self._kept: Cached[int, KeptFrames] = Cached()

    def reference_index(self, window_index: int) -> int:
        return self._inner.reference_index(window_index)

    def known(self, window_index: int, last_frames: Tensor | None) -> tuple[Tensor | None, KeptLatents]:
        kept = self.kept(window_index)
        channels, motion = self._inner.known(window_index, last_frames)
        source = self._codec.encode(from_bytes(kept.frames).permute(3, 0, 1, 2))
        return channels, KeptLatents(source, latent_freedom(kept.region), motion)

    def color_reference(self, window_index: int) -> Tensor | None:
        return self._inner.color_reference(window_index)

    def kept(self, window_index: int) -> KeptFrames:
        return self._kept.get(window_index, lambda: self._read(self._plan[window_index]))

    def _read(self, span: WindowSpan) -> KeptFrames:
        """A window of the source. Beyond a cut its last frame repeats, so that none sees the next scene."""
        frames, region = (read(span.start, span.new_stop) for read in (self._source.frames, self._source.region))
        return KeptFrames(*(_continued(part, span.stop - span.start) for part in (frames, region)))


def _continued(part: Tensor, num_frames: int) -> Tensor:
    """[F, ...] with its last one repeated to num_frames."""
    missing = num_frames - len(part)
    return torch.cat((part, part[-1:].expand(missing, *part.shape[1:]))) if missing else part


def latent_freedom(region: Tensor) -> Tensor:
    """[T, h, w] float32 of a window's region [F, H, W]: the most of every pixel that a latent stands for, softened."""
    _, height, width = region.shape
    rows, columns = height // VAE_STRIDE[1], width // VAE_STRIDE[2]
    frames = functional.adaptive_max_pool2d(region[:, None], (rows, columns))[:, 0]
    later = frames[1:].unflatten(0, (-1, VAE_STRIDE[0])).amax(1)  # the first latent stands for one frame
    most = torch.cat((frames[:1], later))
    around = functional.avg_pool2d(most[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    return torch.maximum(most, around)


def match_inside(pixels: Tensor, kept: KeptFrames, method: str, strength: float) -> Tensor:
    """Move the colors of what is made anew towards those that the source's window has in the same place.

    Args: pixels: [F, H, W, 3] in -1..1, which are written over; as `color.match_color` otherwise.
    """
    if method == "disabled" or strength == 0:
        return pixels
    inside = kept.region > 0
    if not inside.any():
        return pixels
    source = kept.frames[inside]
    reference = from_bytes(source[:: -(-len(source) // COLOR_SAMPLES)])[None].to(pixels.device)
    for frame, where in zip(pixels, inside.to(pixels.device), strict=True):
        if where.any():
            frame[where] = match_color(frame[where][None, None], reference, method, strength)[0, 0]
    return pixels
