"""Ring attention: every rank keeps its queries, and keys and values go around.

Legend: l tokens of a rank or of a Ulysses group, M its keys, N heads, E head width, R regions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..ops.attention.backends import Backend
from ..ops.attention.dispatch import region_attention
from ..ops.attention.functions import OutAndLse
from ..ops.attention.lse import merge
from ..ops.attention.operands import HeadNorm, OwnOperands
from ..ops.attention.regions import FrameRegions, RegionShares
from ..ops.compiled import compile_disabled
from .mesh import Mesh
from .sequence import StripSplit, key_heads, spread_extremes


def ring(backend: Backend, mesh: Mesh, split: StripSplit) -> Backend:
    """Attention to the keys of all ranks of `mesh.ring` by `backend`, which has to give its log-sum-exp."""
    if mesh.ring.size == 1:
        return backend
    around = _Ring(backend, mesh, split)
    return replace(backend, function=around.function, rows=around.rows, operands=around)


class _Ring(OwnOperands):
    def __init__(self, backend: Backend, mesh: Mesh, split: StripSplit) -> None:
        self.backend, self.mesh, self.group, self.split = backend, mesh, mesh.ring, split

    @property
    def _bounds(self) -> list[tuple[int, int]]:
        """Where the keys of each rank of the ring begin and end, among all."""
        counts, each, bounds, start = self.split.counts, self.mesh.ulysses.size, [], 0
        for index in range(self.group.size):
            stop = start + sum(counts[index * each : (index + 1) * each])
            bounds.append((start, stop))
            start = stop
        return bounds

    @compile_disabled
    def key(self, projected: Tensor, norm: HeadNorm, dtype: torch.dtype | None) -> Tensor:
        return key_heads(projected, norm, dtype, self.mesh.sequence, 1)

    def function(self, query: Tensor, key: Tensor, value: Tensor, needs_lse: bool = False) -> OutAndLse:
        """The own query [1, l, N, E], key and value [1, M, N, E] -> attention to everybody's keys."""
        parts = (self.backend.attend_with_lse(query, *pair) for pair in self._around(key, value))
        return merge(parts)

    def _around(self, key: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Everybody's keys and values, the own ones first; the next ones come while these are attended to."""
        sizes = [stop - start for start, stop in self._bounds]
        packed = torch.cat([x.contiguous().view(torch.uint8).flatten() for x in (key, value)])
        size, index = self.group.size, self.group.index
        after, before = (index + 1) % size, (index - 1) % size
        for step in range(size):
            works = []
            if step + 1 < size:
                rows = sizes[(index - step - 1) % size]
                coming = packed.new_empty(packed.numel() // sizes[(index - step) % size] * rows)
                works = self.group.swap({after: packed}, {before: coming})
            yield self._unpacked(packed, key, value, sizes[(index - step) % size])
            for work in works:
                work.wait()
            if works:
                packed = coming

    @staticmethod
    def _unpacked(packed: Tensor, key: Tensor, value: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        shape = (1, rows, *key.shape[2:])
        middle = rows * key[0, :1].numel() * key.element_size()
        return packed[:middle].view(key.dtype).view(shape), packed[middle:].view(value.dtype).view(shape)

    def rows(
        self, query: Tensor, key: Tensor, value: Tensor, regions: FrameRegions | None, dtype: torch.dtype
    ) -> tuple[Tensor, RegionShares | None]:
        """`ops.attention.dispatch.self_attention` of the own tokens to everybody's keys."""
        out, _ = self.function(query, key, value)
        shares = None if regions is None else self._shares(query, key, regions)
        return out[0].flatten(1), shares

    def _shares(self, query: Tensor, key: Tensor, regions: FrameRegions) -> RegionShares:
        """Attention of the own tokens to the first frame, whose keys are gathered for it."""
        bounds = self._bounds
        inside = [
            [(a - start, b - start) for a, b in regions.spans if start <= a and b <= stop] for start, stop in bounds
        ]
        own = torch.cat([key[0, a:b] for a, b in inside[self.group.index]])
        frame = self.group.gather(own, [sum(b - a for a, b in spans) for spans in inside])
        values = region_attention(query[0], frame, FrameRegions.of_first_keys(regions.members))
        return spread_extremes(RegionShares.of_all(values), self.group)
