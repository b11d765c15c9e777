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
    weights, around = torch.zeros(mask.shape), _around(mask, feather)  # beyond it all is 0
    distance = torch.from_numpy(distance_transform_edt(~mask[around].numpy())).float()
    ramp = (1 - distance / (feather + 1)).clamp(0, 1)
    weights[around] = ramp * ramp * (3 - 2 * ramp)
    return weights


def _around(mask: Tensor, reach: int) -> tuple[slice, slice]:
    """The rows and columns of a mask with anything in it, and `reach` pixels on each side."""
    bounds = (mask.any(axis).nonzero()[[0, -1], 0].tolist() for axis in (1, 0))
    rows, columns = (slice(max(0, first - reach), last + reach + 1) for first, last in bounds)
    return rows, columns
