"""Soft edges of regions.

Legend: H W rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def feathered(mask: Tensor, feather: int) -> Tensor:
    """[H, W] float32 of a mask [H, W] bool: 1 inside, falling smoothly to 0 over `feather` pixels outside."""
    from scipy.ndimage import distance_transform_edt

    if feather == 0 or not mask.any():
        return mask.float()
    distance = torch.from_numpy(distance_transform_edt(~mask.numpy())).float()
    ramp = (1 - distance / (feather + 1)).clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)
