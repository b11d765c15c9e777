"""The ranks of one video as a mesh: who runs which passes, who splits heads, who splits keys."""

from __future__ import annotations

from itertools import product

import torch
import torch.distributed as dist

from .groups import Counter, Group
from .layout import Layout


class Mesh:
    """Groups of ranks by what they share; made by all ranks of the default process group together.

    Args: layout: its world is that of the process group. device: of this rank.
    Attributes: passes: ranks with the same tokens and other passes. sequence: those that split the tokens of the same
        passes, in the order of their tokens; of these ulysses split heads and ring keys. everybody: all ranks.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout, self.device, self.counter = layout, device, Counter()
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        if layout.world != self.world:
            raise ValueError(f"a layout of {layout.world} ranks does not fit {self.world}")
        cfg, ring, ulysses = layout.cfg, layout.ring, layout.ulysses
        self.everybody = Group(range(self.world), self.rank, None, self.counter)
        self.passes = self._group([[c * layout.sequence + s for c in range(cfg)] for s in range(layout.sequence)])
        self.sequence = self._group([range(c * layout.sequence, (c + 1) * layout.sequence) for c in range(cfg)])
        rows = list(product(range(cfg), range(ring)))
        self.ulysses = self._group([[(c * ring + j) * ulysses + u for u in range(ulysses)] for c, j in rows])
        columns = list(product(range(cfg), range(ulysses)))
        self.ring = self._group([[(c * ring + j) * ulysses + u for j in range(ring)] for c, u in columns])

    def _group(self, all_ranks: list[list[int]] | list[range]) -> Group:
        """The group of this rank; every rank makes all of them, in one order."""
        own = None
        for ranks in all_ranks:
            handle = None if len(ranks) == 1 else dist.new_group(list(ranks))
            if self.rank in ranks:
                own = Group(ranks, self.rank, handle, self.counter)
        assert own is not None, "every rank is in one of the groups"
        return own
