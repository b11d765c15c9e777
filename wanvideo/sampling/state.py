"""What a window hands to the next: enough to go on in another process, on another machine.

Legend: m pixel frames that two windows share, H W pixel rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import InputError
from ..geometry import VideoGeometry, WindowPlan
from .anchor import Anchor


@dataclass(frozen=True)
class WindowState:
    """Where a run is between two windows. The same conditioning, settings and seed go on from it to the bit.

    Args:
        next_index: of the window to sample next. next_start: the pixel frame of the video where it begins.
        frames: [3, m, H, W] float32 in -1..1, the last m frames so far, with which it begins.
        anchor: of a run that re-anchors; None: it does not.
    """

    next_index: int
    next_start: int
    frames: Tensor
    anchor: Anchor | None = None

    @classmethod
    def after(cls, index: int, plan: WindowPlan, pixels: Tensor, anchor: Anchor | None = None) -> WindowState:
        """The state after window `index` of finished frames [F, H, W, 3]."""
        frames = pixels[-plan.overlap :].permute(3, 0, 1, 2).clone(memory_format=torch.contiguous_format)
        return cls(index + 1, plan.start_of(index + 1), frames, anchor)

    def check_fits(self, plan: WindowPlan, geometry: VideoGeometry, reanchors: bool = False) -> None:
        """Raises: InputError when it comes from a run of another size, window or overlap, or of other anchors."""
        expected = (3, plan.overlap, geometry.height, geometry.width)
        if tuple(self.frames.shape) != expected:
            raise InputError(
                f"The state to go on from holds frames {list(self.frames.shape)}, this run needs {list(expected)} "
                "(colors, motion_frames, height, width). Use the size and motion_frames that the run began with."
            )
        if self.next_start != (expected_start := plan.start_of(self.next_index)):
            raise InputError(
                f"The state to go on from begins window {self.next_index + 1} at frame {self.next_start}, this run "
                f"would at {expected_start}. Use the window_frames and cuts that the run began with."
            )

        picture = None if self.anchor is None else self.anchor.picture
        if reanchors != (self.anchor is not None) or picture is not None and picture.shape != self.frames[:, 0].shape:
            raise InputError(
                "The state to go on from comes from a run with another reanchor, or with an anchor of another size. "
                "Use the reanchor and the size that the run began with."
            )

    def to_bytes(self) -> bytes:
        """As a safetensors file, for `from_bytes`."""
        position = torch.tensor([self.next_index, self.next_start])
        tensors = {"frames": self.frames.cpu().contiguous(), "position": position}
        return save(tensors if self.anchor is None else tensors | self.anchor.to_tensors())

    @classmethod
    def from_bytes(cls, data: bytes) -> WindowState:
        """Raises: InputError when `data` is not what `to_bytes` made."""
        try:
            tensors = load(data)
            next_index, next_start = tensors["position"].tolist()
            return cls(next_index, next_start, tensors["frames"], Anchor.from_tensors(tensors))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"The state to go on from is damaged or something else ({type(error).__name__}: {error}). "
                "Begin the video anew."
            ) from None
