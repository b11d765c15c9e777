"""A dubbed window put back into its source: what is outside of the region are the source's own pixels.

Legend: F frames, H W rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..protocols import KeptFrames
from .source import from_bytes

AT_ONCE = 8  # frames; what they need in between dies with them


def composite(pixels: Tensor, kept: KeptFrames) -> Tensor:
    """Made pixels [F, H, W, 3] in -1..1, which are written over: where the region is 0 they are the source's.

    There the result, as bytes, is the source's to the bit.
    """
    for first in range(0, len(pixels), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        source = from_bytes(kept.frames[part].to(pixels.device)).to(pixels.dtype)
        region = kept.region[part].to(pixels)[..., None]
        pixels[part] = torch.where(region > 0, torch.lerp(source, pixels[part], region), source)
    return pixels
