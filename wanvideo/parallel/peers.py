"""Ulysses of GPUs that write each other's memory: kernels put heads where they are attended to, and rows back.

Between the projections of a block and its attention the ranks of a group meet twice: when all know the shift of keys
and the ranges of values, by which 8 bits are rounded, and when all operands are there; once more when all rows are.
What a rank writes into others' memory it writes after a meeting that these have reached when they had read what lay
there before: operands of a block after the rows of the last one, rows after the operands.
Legend: L tokens of all ranks, l own ones, N heads, P ranks, n = N/P heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ops import kernels
from ..ops.attention.functions import OutAndLse
from ..ops.attention.operands import HeadNorm
from ..ops.attention.regions import FrameRegions, RegionShares
from ..ops.compiled import compile_disabled
from ..ops.quantized import FP8, QuantizedRows
from .memory import ALIGNMENT, SharedMemory

if TYPE_CHECKING:
    from ..ops.kernels.hopper_values import ValueScaling

Averaged = Callable[[RegionShares], RegionShares]


@dataclass(frozen=True)
class Sizes:
    """What is shared in a forward: how many tokens each rank has, of so many heads, queries and keys in which type."""

    counts: tuple[int, ...]
    num_heads: int
    head_width: int
    dtype: torch.dtype

    @property
    def length(self) -> int:
        return sum(self.counts)

    @property
    def columns(self) -> int:
        return self.num_heads * self.head_width

    @property
    def own_heads(self) -> int:
        return self.num_heads // len(self.counts)

    @property
    def in_fp8(self) -> bool:
        return self.dtype == FP8

    def parts(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each part of a rank's memory, the same on all ranks; rows are those of the longest."""
        own = (1, self.length, self.own_heads, self.head_width)
        padded = kernels.value_kernels().padded_length(self.length)
        value = (1, self.own_heads, self.head_width, padded) if self.in_fp8 else own
        return {
            "shift": ((self.num_heads, self.head_width), torch.float32),
            "ranges": ((len(self.counts), 3, self.columns), torch.float32),
            "key": (own, self.dtype),
            "value": (value, self.dtype),
            "query": (own, self.dtype),
            "rows": ((max(self.counts), self.columns), torch.bfloat16),  # some are in fp8, and take half of it
        }

    def starts(self) -> dict[str, int]:
        """Where parts begin, in bytes, and under "" where the last one ends."""
        starts, start = {}, 0
        for name, (shape, dtype) in self.parts().items():
            starts[name] = start
            start += -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        return {**starts, "": start}


class Parts:
    """The parts of a rank's memory by name, and of_*: where those of all ranks are, in elements from the own one on."""

    def __init__(self, sizes: Sizes, memory: SharedMemory, index: int) -> None:
        self.sizes, self.first, self._offsets = sizes, sum(sizes.counts[:index]), memory.offsets
        self._own, starts, device = {}, sizes.starts(), memory.own.device
        for name, (shape, dtype) in sizes.parts().items():
            end = starts[name] + prod(shape) * dtype.itemsize
            self._own[name] = memory.own[starts[name] : end].view(dtype).view(shape)
        tokens = self.first * sizes.own_heads * sizes.head_width
        self.of_shift, self.of_ranges = self._places("shift"), self._places("ranges", index * 3 * sizes.columns)
        self.of_key, self.of_query = self._places("key", tokens), self._places("query", tokens)
        self.of_value = self._places("value", 0 if sizes.in_fp8 else tokens)
        addresses = [address + starts["rows"] for address in memory.addresses]
        first_tokens = [0, *accumulate(sizes.counts)][:-1]
        self.of_rows = kernels.hopper_kernels().RowPlaces(
            torch.tensor(addresses, dtype=torch.int64, device=device),
            torch.tensor(first_tokens, dtype=torch.int32, device=device), index * sizes.own_heads, sizes.num_heads,
        )  # fmt: skip
        if sizes.in_fp8:
            self["value"].view(torch.uint8)[..., sizes.length :].zero_()  # behind the last token, where nobody writes

    def __getitem__(self, name: str) -> Tensor:
        return self._own[name]

    def _places(self, name: str, within: int = 0) -> Tensor:
        own = self[name]
        places = [offset // own.element_size() + within for offset in self._offsets]
        return torch.tensor(places, dtype=torch.int64, device=own.device)


@dataclass
class _Started:
    """What a block's operands are made of, until all of it is there."""

    key: Tensor
    key_norm: HeadNorm
    value: Tensor | None = None


class PeerAttention:
    """Operands and rows of a backend of the Hopper kernels, over ranks of a group that write each other's memory.

    Args: allocate: makes memory of so many bytes, on all ranks together. counts: tokens of each rank, in the video that
        was started last. average: shares over the own heads of all tokens -> over all heads, of the own tokens.
    """

    def __init__(
        self, index: int, allocate: Callable[[int], SharedMemory], counts: Callable[[], tuple[int, ...]],
        average: Averaged,
    ) -> None:  # fmt: skip
        self.index, self._allocate, self._counts, self._average = index, allocate, counts, average
        self._memory: SharedMemory | None = None
        self._parts: Parts | None = None
        self._started: _Started | None = None
        self._scaling: ValueScaling | None = None
        self._dtype = torch.bfloat16  # of the projections, and so of plain rows

    @compile_disabled
    def key(self, projected: Tensor, norm: HeadNorm, dtype: torch.dtype | None) -> Tensor:
        width = projected.shape[1] // norm.num_heads
        parts = self._prepare(Sizes(self._counts(), norm.num_heads, width, dtype or projected.dtype))
        shift = norm.shift(projected, dtype)
        if shift is not None and self.index == 0:  # that of the first rank is as good as any
            kernels.value_kernels().put_copies(shift, parts["shift"], parts.of_shift)
        self._started = _Started(projected, norm)
        return parts["key"]

    @compile_disabled
    def value(self, projected: Tensor, num_heads: int) -> Tensor:
        _, parts = self._ready()
        assert self._started is not None
        self._started.value, self._dtype = projected, projected.dtype
        if parts.sizes.in_fp8:
            kernels.value_kernels().put_value_ranges(projected, parts["ranges"], parts.of_ranges)
        return parts["value"]

    @compile_disabled
    def query(self, projected: Tensor, norm: HeadNorm, dtype: torch.dtype | None) -> Tensor:
        (memory, parts), started = self._ready(), self._started
        assert started is not None and started.value is not None
        values, shift, self._scaling, self._started = kernels.value_kernels(), None, None, None
        value = started.value.unflatten(-1, (norm.num_heads, -1))
        if parts.sizes.in_fp8:
            memory.meet()
            shift, length = parts["shift"], parts.sizes.length
            self._scaling = values.value_scaling(parts["ranges"], length, True)
            values.put_fp8_values(value, self._scaling, parts.first, length, parts["value"], parts.of_value)
        else:
            values.put_heads(value, parts["value"], parts.of_value)
        put = kernels.row_kernels().put_normed_heads
        put(started.key, *started.key_norm, shift, parts["key"], parts.of_key)
        put(projected, *norm, None, parts["query"], parts.of_query)
        memory.meet()
        return parts["query"]

    def function(self, query: Tensor, key: Tensor, value: Tensor, needs_lse: bool = False) -> OutAndLse:
        """Without a log-sum-exp: the own heads of all tokens -> all heads [1, l, N, E] of the own tokens."""
        rows, _ = self.rows(query, key, value, None, torch.bfloat16)
        assert isinstance(rows, Tensor)
        return rows.unflatten(-1, (-1, query.shape[-1]))[None], None

    def rows(
        self, query: Tensor, key: Tensor, value: Tensor, regions: FrameRegions | None, dtype: torch.dtype
    ) -> tuple[Tensor | QuantizedRows, RegionShares | None]:
        """`ops.attention.dispatch.self_attention` of the own heads of all tokens -> of all heads of the own tokens."""
        (memory, parts), library = self._ready(), kernels.hopper_kernels()
        in_fp8 = parts.sizes.in_fp8 and dtype == FP8
        if regions is not None and len(regions.members) > library.MAX_REGIONS:
            regions = None
        if self._scaling is not None:
            scaling = self._scaling if in_fp8 else self._scaling.for_plain_rows()
            columns = parts.sizes.own_heads * parts.sizes.head_width
            value = kernels.value_kernels().Fp8Values(value, scaling.of_columns(self.index * columns, columns))
        made = library.attend(query, key, value, regions, in_fp8, places=parts.of_rows)
        memory.meet()
        own = parts["rows"].view(FP8 if in_fp8 else torch.bfloat16).view(-1, parts.sizes.columns)
        own = own[: parts.sizes.counts[self.index]]
        rows: Tensor | QuantizedRows
        if in_fp8 and self._scaling is not None:
            rows = QuantizedRows.of_one_scale(own, self._scaling.row_scale)
        else:
            rows = own.to(self._dtype)
        return rows, None if made.shares is None else self._average(RegionShares.of_all(made.shares[0]))

    def _prepare(self, sizes: Sizes) -> Parts:
        """Memory for these sizes; other ones than before are the same news to all ranks."""
        if self._parts is None or self._parts.sizes != sizes:
            needed = sizes.starts()[""]
            if self._memory is None or len(self._memory.own) < needed:
                self._parts = self._memory = None
                self._memory = self._allocate(needed)
            self._memory.meet()  # nobody reads any more what lay there
            self._parts = Parts(sizes, self._memory, self.index)
            self._memory.meet()
        return self._parts

    def _ready(self) -> tuple[SharedMemory, Parts]:
        assert self._memory is not None and self._parts is not None, "operands begin with the key"
        return self._memory, self._parts
