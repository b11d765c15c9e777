"""Regions of one latent frame among the keys of an attention, wherever the frame's keys lie.

Legend: R regions, K keys of the frame, M keys of the attention, N heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FrameRegions:
    """Regions of a frame, and where that frame's keys lie.

    members: [R, K] float32 of zeros and ones, a column for each of the frame's keys in the order in which they lie; a
    key may be in any number of regions.
    spans: runs (start, stop) of the frame's keys among all M, ascending, together K of them. They are numbers of the
    host, so that no device is waited for, and the same for all blocks and steps, so that tables of them are made once.
    Raises: ValueError where spans do not hold K keys, overlap or descend.
    """

    members: Tensor
    spans: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        held, num_keys = sum(stop - start for start, stop in self.spans), self.members.shape[1]
        if held != num_keys:
            raise ValueError(f"regions of {num_keys} keys are given for spans of {held} keys")
        apart = all(before[1] <= after[0] for before, after in pairwise(self.spans))
        if not apart or any(start < 0 or start >= stop for start, stop in self.spans):
            raise ValueError(f"spans of keys have to ascend without overlap, not {self.spans}")

    @classmethod
    def of_first_keys(cls, members: Tensor) -> FrameRegions:
        """The frame's keys come first, as in a video's own order of tokens: members [R, K]."""
        return cls(members, ((0, members.shape[1]),))

    @classmethod
    def among(cls, regions: Tensor, in_frame: Tensor) -> FrameRegions:
        """regions [R, M] of zeros and ones over all keys, in_frame [M] bool: which are the frame's; waits for both."""
        positions = in_frame.nonzero().flatten()
        spans: list[tuple[int, int]] = []
        for position in positions.tolist():
            if spans and spans[-1][1] == position:
                spans[-1] = spans[-1][0], position + 1
            else:
                spans.append((position, position + 1))
        return cls(regions[:, positions].float(), tuple(spans))

    def keys_of_frame(self, key: Tensor) -> Tensor:
        """key [M, N, E] -> [K, N, E]; a view where the frame's keys lie together."""
        parts = [key[start:stop] for start, stop in self.spans]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class RegionShares(NamedTuple):
    """Shares [R, L] of tokens' attention to a frame, and each region's least and largest [R, 1] among all tokens.

    The tokens may be some of a video's, the extremes are those of all.
    """

    values: Tensor
    least: Tensor
    most: Tensor

    @classmethod
    def of_all(cls, values: Tensor) -> RegionShares:
        """values [R, L] are those of all tokens."""
        return cls(values, *torch.aminmax(values, dim=1, keepdim=True))
