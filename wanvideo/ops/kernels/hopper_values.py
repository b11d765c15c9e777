"""Values as attention in fp8 takes them: transposed, without their mean, scaled to the range of fp8.

Their scaling is that of all tokens that are attended to, wherever these are computed: each rank's columns are reduced
to `value_ranges`, those of all ranks make one `value_scaling`, and by it each rank rounds its own values into the
memory of those that attend to them. On one GPU the same is done with one rank.
Legend: B batch, M keys, L own tokens, P ranks, N heads, E head width, C = N * E columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantized import FP8, LARGEST, SMALLEST_AMAX

KEY_GROUP = 32  # keys whose order is that of weights in registers, see `token_at`
ROWS_REDUCED, TOKENS_MOVED = 128, 128  # of a program


class ValueScaling(NamedTuple):
    """How values are rounded, rounded = (value - mean) * factor, and what is done to their weighted sums.

    mean, factor, scale, offset: [C] float32; a result is (sum * scale + offset) * row_scale [1] float32, which is 1
    where rows are not in fp8.
    """

    mean: Tensor
    factor: Tensor
    scale: Tensor
    offset: Tensor
    row_scale: Tensor

    def of_columns(self, first: int, count: int) -> ValueScaling:
        mean, factor, scale, offset = (x[first : first + count] for x in self[:-1])
        return ValueScaling(mean, factor, scale, offset, self.row_scale)

    def for_plain_rows(self) -> ValueScaling:
        """The same for rows that are not in fp8."""
        scale, offset = self.scale * self.row_scale, self.offset * self.row_scale
        return ValueScaling(self.mean, self.factor, scale, offset, torch.ones_like(self.row_scale))


class Fp8Values(NamedTuple):
    """data [B, N, E, M rounded up to KEY_GROUP] in fp8, tokens in the order of `token_at`; the rest is zero."""

    data: Tensor
    scaling: ValueScaling


@triton.jit
def _column_ranges(
    x, partial, L, C, ROWS: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Lowest, highest and sum of ROWS rows of x [L, C] -> partial [3, programs, C]."""
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    low = tl.full((TOGETHER, BLOCK), float("inf"), tl.float32)
    high, sums = -low, tl.zeros((TOGETHER, BLOCK), tl.float32)
    for step in range(0, ROWS, TOGETHER):  # rows of a step come at once: a single one would wait for memory each time
        row = tl.program_id(0).to(tl.int64) * ROWS + step + tl.arange(0, TOGETHER)[:, None]
        inside = (columns[None, :] < C) & (row < L)
        value = tl.load(x + row * C + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        low, high = tl.where(inside, tl.minimum(low, value), low), tl.where(inside, tl.maximum(high, value), high)
        sums += value
    place, stride = partial + tl.program_id(0).to(tl.int64) * C + columns, tl.num_programs(0).to(tl.int64) * C
    tl.store(place, tl.min(low, 0), mask=columns < C)
    tl.store(place + stride, tl.max(high, 0), mask=columns < C)
    tl.store(place + 2 * stride, tl.sum(sums, 0), mask=columns < C)


@triton.jit
def _join_ranges(
    partial, out, places, count, C, COPIES: tl.constexpr, STEPS: tl.constexpr, TOGETHER: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """partial [3, count, C] -> [3, C] at each of the COPIES `places` of out."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    low = tl.full((TOGETHER, BLOCK), float("inf"), tl.float32)
    high, sums = -low, tl.zeros((TOGETHER, BLOCK), tl.float32)
    for step in range(STEPS):
        row = step * TOGETHER + tl.arange(0, TOGETHER)[:, None]
        inside, place = (row < count) & (columns[None, :] < C), partial + row * C + columns[None, :]
        low = tl.minimum(low, tl.load(place, mask=inside, other=float("inf")))
        high = tl.maximum(high, tl.load(place + count * C, mask=inside, other=float("-inf")))
        sums += tl.load(place + 2 * count * C, mask=inside, other=0.0)
    low, high, sums = tl.min(low, 0), tl.max(high, 0), tl.sum(sums, 0)
    for copy in tl.static_range(COPIES):
        place = out + tl.load(places + copy) + columns
        tl.store(place, low, mask=columns < C)
        tl.store(place + C, high, mask=columns < C)
        tl.store(place + 2 * C, sums, mask=columns < C)


@triton.jit
def _scaling(
    ranges, bound, mean, factor, scale, offset, row_scale, tokens, C, largest, smallest,
    RANKS: tl.constexpr, FOR_FP8: tl.constexpr, BOUNDED: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ranges [RANKS, 3, C] -> `ValueScaling`, in one program: it is little, and its launch is what it costs."""
    row_factor = 1.0
    if FOR_FP8:
        if BOUNDED:
            amax = tl.load(bound)
        else:
            amax = 0.0
            for chunk in range(CHUNKS):
                columns = chunk * BLOCK + tl.arange(0, BLOCK)
                for rank in tl.static_range(RANKS):
                    low = tl.load(ranges + (3 * rank) * C + columns, mask=columns < C, other=0.0)
                    high = tl.load(ranges + (3 * rank + 1) * C + columns, mask=columns < C, other=0.0)
                    amax = tl.maximum(amax, tl.max(tl.maximum(high, -low)))
        row_factor = tl.maximum(amax / largest, smallest)
    tl.store(row_scale, row_factor)
    for chunk in range(CHUNKS):
        columns = chunk * BLOCK + tl.arange(0, BLOCK)
        inside = columns < C
        low, high = tl.full((BLOCK,), float("inf"), tl.float32), tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for rank in tl.static_range(RANKS):
            place = ranges + (3 * rank) * C + columns
            low = tl.minimum(low, tl.load(place, mask=inside, other=0.0))
            high = tl.maximum(high, tl.load(place + C, mask=inside, other=0.0))
            total += tl.load(place + 2 * C, mask=inside, other=0.0)
        center = total / tokens
        step = tl.maximum(tl.maximum(high - center, center - low), smallest) / largest
        tl.store(mean + columns, center, mask=inside)
        tl.store(factor + columns, 1.0 / step, mask=inside)
        tl.store(scale + columns, step / row_factor, mask=inside)
        tl.store(offset + columns, center / row_factor, mask=inside)


@triton.jit
def token_at(place):
    """Values and indicators lie in the order in which the kernel's `exp_weights` leaves 32 weights in fp8."""
    return place // 16 * 16 + place % 4 // 2 * 8 + place % 16 // 4 * 2 + place % 2


@triton.jit
def _move_values(
    x, mean, factor, out, places, start, L, padded, N, GROUP,
    PLACED: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Own tokens x [B, L, N, E], of which the first is number `start` of all -> out [B, N, E, padded], rounded.

    PLACED: groups of GROUP heads lie where `places` says, and others write the other tokens; else what lies behind
    the last token becomes zero.
    """
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    first = start // 32 * 32 + tl.program_id(0) * BLOCK
    place, columns = first + tl.arange(0, BLOCK), tl.arange(0, E)
    token = token_at(place)
    own = (token >= start) & (token < start + L)
    source = x + ((batch * L + token[:, None] - start) * N + head) * E + columns[None, :]
    value = tl.load(source, mask=own[:, None], other=0.0).to(tl.float32)
    value = (value - tl.load(mean + head * E + columns)[None, :]) * tl.load(factor + head * E + columns)[None, :]
    value = tl.trans(tl.where(own[:, None], value, 0.0)).to(out.dtype.element_ty)
    if PLACED:
        out += tl.multiple_of(tl.load(places + head // GROUP), 16)
        target = out + (head % GROUP * E + columns[:, None]).to(tl.int64) * padded + place[None, :]
        if (first >= start) & (first + BLOCK <= start + L):  # all are own: whole words are written, not bytes
            tl.store(target, value)
        else:
            tl.store(target, value, mask=own[None, :])
    else:
        target = out + ((batch * N + head) * E + columns[:, None]) * padded + place[None, :]
        tl.store(target, value, mask=place[None, :] < padded)


@triton.jit
def _copy(x, out, places, size, COPIES: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + index, mask=index < size)
    for copy in tl.static_range(COPIES):
        tl.store(out + tl.load(places + copy) + index, value, mask=index < size)


@triton.jit
def _move_rows(x, out, places, L, N, GROUP, E: tl.constexpr, HEADS: tl.constexpr, CHUNKS: tl.constexpr):
    """x [L, N, E] in groups of GROUP heads [L, GROUP, E] that lie where `places` says."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, E)[None, :]
    for chunk in tl.static_range(CHUNKS):
        head = chunk * HEADS + tl.arange(0, HEADS)[:, None]
        value = tl.load(x + (row * N + head) * E + column, mask=head < N, other=0.0)
        first = tl.multiple_of(tl.load(places + head // GROUP, mask=head < N, other=0), [16, 16])
        tl.store(out + first + (row * GROUP + head % GROUP) * E + column, value, mask=head < N)


def padded_length(num_keys: int) -> int:
    return triton.cdiv(num_keys, KEY_GROUP) * KEY_GROUP


def put_value_ranges(value: Tensor, out: Tensor, places: Tensor) -> None:
    """Lowest, highest and sum [3, C] float32 of each column of value [L, C], at each of `places` [n] int64.

    Places count from out, in its elements, and may be in memory of other devices.
    """
    length, columns = value.shape
    blocks = triton.cdiv(length, ROWS_REDUCED)
    partial = value.new_empty(3, blocks, columns, dtype=torch.float32)
    _column_ranges[(blocks, triton.cdiv(columns, 1024))](
        value, partial, length, columns, ROWS=ROWS_REDUCED, TOGETHER=8, BLOCK=1024, num_warps=4
    )
    _join_ranges[(triton.cdiv(columns, 64),)](
        partial, out, places, blocks, columns,
        COPIES=len(places), STEPS=triton.cdiv(blocks, 32), TOGETHER=32, BLOCK=64, num_warps=4,
    )  # fmt: skip


def value_ranges(value: Tensor) -> Tensor:
    """[1, 3, C] of value [L, C], as `value_scaling` takes them."""
    out = value.new_empty(1, 3, value.shape[1], dtype=torch.float32)
    put_value_ranges(value, out, _nowhere_else(value.device))
    return out


def _nowhere_else(device: torch.device) -> Tensor:
    return torch.zeros(1, dtype=torch.int64, device=device)


def value_scaling(ranges: Tensor, num_tokens: int, for_fp8: bool, bound: Tensor | None = None) -> ValueScaling:
    """ranges: [P, 3, C] of all `num_tokens`. for_fp8: rows are given in fp8, with one scale for all.

    bound: a float32 number that no value exceeds, from which that scale is made; None: the largest value of `ranges`.
    """
    ranks, _, columns = ranges.shape
    mean, factor, scale, offset = ranges.new_empty(4, columns)
    row_scale = ranges.new_empty(1)
    _scaling[(1,)](
        ranges, ranges if bound is None else bound, mean, factor, scale, offset, row_scale, num_tokens, columns,
        LARGEST[FP8], SMALLEST_AMAX,
        RANKS=ranks, FOR_FP8=for_fp8, BOUNDED=bound is not None, CHUNKS=triton.cdiv(columns, 1024), BLOCK=1024,
        num_warps=8,
    )  # fmt: skip
    return ValueScaling(mean, factor, scale, offset, row_scale)


def fp8_values(value: Tensor, for_fp8: bool, bound: Tensor | None = None, dtype: torch.dtype = FP8) -> Fp8Values:
    """value [B, M, N, E], of which all are here; see `value_scaling`."""
    value = value.contiguous()
    batch, length, heads, width = value.shape
    flat = value.view(batch * length, heads * width)
    scaling = value_scaling(value_ranges(flat), len(flat), for_fp8, bound)
    padded = padded_length(length)
    out = value.new_empty(batch, heads, width, padded, dtype=dtype)
    _move_values[(triton.cdiv(padded, TOKENS_MOVED), heads, batch)](
        value, scaling.mean, scaling.factor, out, out, 0, length, padded, heads, heads,
        PLACED=False, E=width, BLOCK=TOKENS_MOVED, num_warps=4,
    )  # fmt: skip
    return Fp8Values(out, scaling)


def put_fp8_values(
    value: Tensor, scaling: ValueScaling, start: int, num_keys: int, out: Tensor, places: Tensor
) -> None:
    """Own tokens [L, N, E], of which the first is number `start` of num_keys, into every rank's `Fp8Values.data`.

    places: [P] int64, where that of each rank [N/P, E, padded] begins, in elements of out; multiples of 16.
    """
    length, heads, width = value.shape
    blocks = triton.cdiv(start % KEY_GROUP + length, TOKENS_MOVED)
    _move_values[(blocks, heads, 1)](
        value, scaling.mean, scaling.factor, out, places, start, length, padded_length(num_keys), heads,
        heads // len(places),
        PLACED=True, E=width, BLOCK=TOKENS_MOVED, num_warps=4,
    )  # fmt: skip


def put_copies(x: Tensor, out: Tensor, places: Tensor) -> None:
    """A few numbers x, to each of `places` [n] int64, see `put_value_ranges`."""
    _copy[(triton.cdiv(x.numel(), 1024),)](
        x.contiguous(), out, places, x.numel(), COPIES=len(places), BLOCK=1024, num_warps=4
    )


def put_heads(x: Tensor, out: Tensor, places: Tensor) -> None:
    """x [L, N, E] in groups of heads, one for each of `places` [G] int64: where [L, N/G, E] begin, see above."""
    length, heads, width = x.shape
    together = max(1, 1024 // width)
    _move_rows[(length,)](
        x, out, places, length, heads, heads // len(places),
        E=width, HEADS=together, CHUNKS=triton.cdiv(heads, together), num_warps=4,
    )  # fmt: skip
