"""Where a dubbed video is made anew: a box, a painted mask, one for every frame, or a video of masks.

Legend: F frames of the result, H W its rows and columns; masks are bool [H, W] in pixels of the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..keep import DEFAULT_FEATHER, Keep
from .picture import fit_mask, load_mask
from .reader import VideoFrames, is_video
from .regions import box_region, resized_mask
from .source import SourceVideo, in_time_order

WHITE = 127  # levels above it count as white


class Region(Protocol):
    """The part of a source's frames that is made anew."""

    def weights(self, times: Sequence[float]) -> Tensor:
        """[F, H, W] float32 for these seconds of the source: 1 inside, falling to 0 outside, where pixels are kept."""
        ...


class DubSource:
    """A source video and the part of it that is made anew: a `protocols.SourceFrames`."""

    def __init__(self, video: SourceVideo, region: Region) -> None:
        self._video, self._region = video, region

    def frames(self, start: int, stop: int) -> Tensor:
        return self._video.frames(start, stop)

    def region(self, start: int, stop: int) -> Tensor:
        return self._region.weights([self._video.time_of(index) for index in range(start, stop)])


def open_region(keep: Keep, video: SourceVideo) -> Region:
    """The region of a source that a request names.

    Raises: InputError when the mask cannot be read, has not the source's shape, or lies outside of what is seen.
    """
    width, height = video.result_size
    if keep.box is not None:
        return StillRegion(box_region(keep.box, "box of keep", *video.size), width, height, keep.feather)
    assert keep.mask is not None  # Keep has one of both
    if is_video(keep.mask):
        return VideoRegion(keep.mask, video.size, width, height, keep.feather)
    mask = resized_mask(load_mask(keep.mask), f"mask {keep.mask}", *video.size)
    return StillRegion(mask, width, height, keep.feather)


def dub_source(video: SourceVideo, masks: Tensor, feather: int = DEFAULT_FEATHER) -> DubSource:
    """A source and its masks [n, H, W] in 0..1, one or one for every frame of it, above 0.5 where it is made anew."""
    regions, (width, height) = masks.cpu().numpy() > 0.5, video.result_size
    if len(regions) > 1:
        return DubSource(video, FrameRegions(regions, video, width, height, feather))
    mask = resized_mask(regions[0], "mask of what is made anew", *video.size)
    return DubSource(video, StillRegion(mask, width, height, feather))


class StillRegion:
    """The same region throughout. mask: [H, W] bool of the source's size."""

    def __init__(self, mask: np.ndarray, width: int, height: int, feather: int) -> None:
        fitted = fit_mask(mask, width, height)
        if not fitted.any() or fitted.all():
            raise InputError(
                f"The mask of what is made anew is {'everywhere' if fitted.any() else 'nowhere'} white once it is "
                f"fitted to {width}x{height}. Paint white what is to be made anew, black what is to stay."
            )
        self._weights = feathered(fitted, feather)

    def weights(self, times: Sequence[float]) -> Tensor:
        return self._weights.expand(len(times), -1, -1)


class FrameRegions:
    """A region for every frame of the source. masks: [n, H, W] bool, n of them or one, of the source's shape."""

    def __init__(self, masks: np.ndarray, video: SourceVideo, width: int, height: int, feather: int) -> None:
        if len(masks) != video.num_frames:
            raise InputError(
                f"There are {len(masks)} masks for a source of {video.num_frames} frames. "
                "Give one mask, or one for every frame."
            )
        resized_mask(masks[0], "mask of what is made anew", *video.size)
        self._masks, self._size, self._result = masks, video.size, (width, height)
        self._frames_per_s, self._feather = len(masks) / video.duration_s, feather

    def weights(self, times: Sequence[float]) -> Tensor:
        last = len(self._masks) - 1
        indices = [min(int(time_s * self._frames_per_s + 1e-3), last) for time_s in times]
        return torch.stack([self._weights(index) for index in indices])

    def _weights(self, index: int) -> Tensor:
        mask = resized_mask(self._masks[index], "mask of what is made anew", *self._size)
        return feathered(fit_mask(mask, *self._result), self._feather)


class VideoRegion:
    """A region that a video of masks shows, which runs along with the source; its last frame remains."""

    def __init__(self, path: str, size: tuple[int, int], width: int, height: int, feather: int) -> None:
        self._video, self._size, self._result, self._feather = VideoFrames(path), size, (width, height), feather
        self._what = f"mask {path}"
        self._mask(0.0)

    def weights(self, times: Sequence[float]) -> Tensor:
        return torch.stack(in_time_order(times, lambda time_s: feathered(self._mask(time_s), self._feather)))

    def _mask(self, time_s: float) -> Tensor:
        mask = self._video.frame_at(time_s).mean(-1) > WHITE
        return fit_mask(resized_mask(mask, self._what, *self._size), *self._result)


def feathered(mask: Tensor, feather: int) -> Tensor:
    """[H, W] float32 of a mask [H, W] bool: 1 inside, falling smoothly to 0 from `feather` pixels outside on."""
    from scipy.ndimage import distance_transform_edt

    if feather == 0 or not mask.any():
        return mask.float()
    distance = torch.from_numpy(distance_transform_edt(~mask.numpy())).float()
    ramp = (1 - distance / (feather + 1)).clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)
