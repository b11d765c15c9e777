"""Re-anchoring: now and then a later picture of the video takes the place of the reference picture.

Legend: F pixel frames of a window, H W pixel rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..video.source import to_bytes
from .measures import WINDOW_FRAMES, PixelMeasures, evenly, has_moved, measure_frames


@dataclass(frozen=True)
class Anchor:
    """What a run that re-anchors hands from window to window.

    Args:
        first: measures of the video's first window, from which none may have drifted that gives an anchor.
        window: the one that `picture` is the last frame of; -1: there is none yet.
        picture: [3, H, W] float32 in -1..1, in place of the reference picture; None: the reference picture stays.
    """

    first: PixelMeasures
    window: int = -1
    picture: Tensor | None = None

    @classmethod
    def after(cls, index: int, pixels: Tensor, before: Anchor | None, every: int) -> Anchor:
        """The anchor after window `index` of finished frames [F, H, W, 3]: another one after `every` windows at most.

        Args: before: the anchor until now; None: this is the first window.
        """
        anchor = before or cls(_measure(pixels))
        if (index + 1) % every or has_moved(_measure(pixels), anchor.first):
            return anchor
        picture = pixels[-1].permute(2, 0, 1).clamp(-1, 1).contiguous()
        return replace(anchor, window=index, picture=picture.clone())

    def to_tensors(self) -> dict[str, Tensor]:
        """For `from_tensors`."""
        measures = [*self.first.lab_mean, *self.first.lab_std, self.first.sharpness]
        tensors = {
            "anchor.first": torch.tensor(measures, dtype=torch.float64), "anchor.window": torch.tensor(self.window)
        }  # fmt: skip
        return tensors if self.picture is None else tensors | {"anchor.picture": self.picture.cpu()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Anchor | None:
        """None where they hold no anchor. Raises: ValueError, KeyError where it is damaged."""
        if "anchor.first" not in tensors:
            return None
        *lab, sharpness = tensors["anchor.first"].tolist()
        first = PixelMeasures(tuple(lab[:3]), tuple(lab[3:]), sharpness)
        return cls(first, int(tensors["anchor.window"]), tensors.get("anchor.picture"))


def _measure(pixels: Tensor) -> PixelMeasures:
    return measure_frames(to_bytes(evenly(pixels, WINDOW_FRAMES)), WINDOW_FRAMES)
