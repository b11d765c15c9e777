"""Where a dubbed video is made anew: a box, a painted mask, one for every frame, or a video of masks.

Legend: F frames of the result, H W its rows and columns; masks are bool [H, W] in pixels of the source.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..keep import DEFAULT_FEATHER, WHOLE, Keep, Trim
from ..untrusted import regular_file
from .feather import feathered
from .mouth import MouthRegion
from .picture import fit_mask, load_mask
from .reader import is_video, open_frames
from .regions import box_region, resized_mask
from .source import LastSpan, SourceVideo

WHITE = 127  # levels above it count as white


class Region(Protocol):
    """The part of a source's frames that is made anew."""

    def weights(self, start: int, stop: int) -> Tensor:
        """[F, H, W] float32 of the result's frames start..stop: 1 inside, falling to 0 outside, where pixels stay."""
        ...


class DubSource:
    """A source video and the part of it that is made anew: a `protocols.SourceFrames`."""

    def __init__(self, video: SourceVideo, region: Region) -> None:
        self._video, self._region = video, region

    def frames(self, start: int, stop: int) -> Tensor:
        return self._video.frames(start, stop)

    def region(self, start: int, stop: int) -> Tensor:
        return self._region.weights(start, stop)


def open_region(keep: Keep, video: SourceVideo, trim: Trim = WHOLE) -> Region:
    """The region of a source that a request names. Args: trim: of a video of masks, the part that is meant.

    Raises: InputError when the mask cannot be read, has not the source's shape, or lies outside of what is seen.
    """
    width, height = video.result_size
    if keep.box is not None:
        return StillRegion(box_region(keep.box, "box of keep", *video.size), width, height, keep.feather)
    if keep.mask is None:
        return MouthRegion(video, keep.feather)
    if is_video(regular_file(keep.mask, "a picture or a video of masks")):
        return VideoRegion(keep.mask, video, keep.feather, trim)
    mask = resized_mask(load_mask(keep.mask), f"mask {keep.mask}", *video.size)
    return StillRegion(mask, width, height, keep.feather)


def region_of(masks: Tensor, video: SourceVideo, feather: int = DEFAULT_FEATHER) -> Region:
    """Of masks [n, H, W] in 0..1, one or one for every frame of the source, above 0.5 where it is made anew."""
    regions, (width, height) = masks.cpu().numpy() > 0.5, video.result_size
    if len(regions) > 1:
        return FrameRegions(regions, video, feather)
    mask = resized_mask(regions[0], "mask of what is made anew", *video.size)
    return StillRegion(mask, width, height, feather)


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

    def weights(self, start: int, stop: int) -> Tensor:
        return self._weights.expand(stop - start, -1, -1)


class FrameRegions:
    """A region for every frame of the source. masks: [n, H, W] bool, as many as the source has, of its shape."""

    def __init__(self, masks: np.ndarray, video: SourceVideo, feather: int) -> None:
        if len(masks) != video.num_frames:
            raise InputError(
                f"There are {len(masks)} masks for a source of {video.num_frames} frames. "
                "Give one mask, or one for every frame."
            )
        resized_mask(masks[0], "mask of what is made anew", *video.size)
        self._masks, self._video, self._feather = masks, video, feather

    def weights(self, start: int, stop: int) -> Tensor:
        return torch.stack([self._weights(self._video.index_of(index)) for index in range(start, stop)])

    def _weights(self, index: int) -> Tensor:
        mask = self._masks[min(index, len(self._masks) - 1)]
        mask = resized_mask(mask, "mask of what is made anew", *self._video.size)
        return feathered(fit_mask(mask, *self._video.result_size), self._feather)


class VideoRegion:
    """A region that a video of masks shows, which runs along with the source; its last frame remains."""

    def __init__(self, path: str, video: SourceVideo, feather: int, trim: Trim = WHOLE) -> None:
        self._file, self._video, self._feather, self._what = open_frames(path, trim), video, feather, f"mask {path}"
        self._masks = LastSpan()
        self._mask(0.0)

    def weights(self, start: int, stop: int) -> Tensor:
        masks = self._masks.of(start, stop, self._video.time_of, self._mask)
        return torch.stack([feathered(mask, self._feather) for mask in masks])

    def _mask(self, time_s: float) -> Tensor:
        mask = self._file.frame_at(time_s).mean(-1) > WHITE
        return fit_mask(resized_mask(mask, self._what, *self._video.size), *self._video.result_size)
