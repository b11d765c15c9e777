"""A video's tokens over ranks: some positions of every frame for each, and attention that exchanges heads (Ulysses).

Every rank has all frames, so that attention to the audio of a frame needs nobody else. Full attention takes tokens in
any order, so that gathered ones stay in the order (rank, frame, position).
Legend: L tokens of all ranks, l own ones, N heads, P ranks, n = N/P heads, E head width, R regions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from ..errors import InputError
from ..ops.attention.backends import Backend
from ..ops.attention.dispatch import self_attention
from ..ops.attention.functions import OutAndLse, hopper_rows
from ..ops.attention.operands import HeadNorm
from ..ops.attention.regions import FrameRegions, RegionShares
from ..ops.compiled import compile_disabled
from ..ops.quantized import FP8, QuantizedRows
from .groups import Group, Work, packed
from .memory import PeerMemory, can_share
from .mesh import Mesh
from .peers import PeerAttention


def strips(num_positions: int, count: int) -> tuple[int, ...]:
    """Positions of a frame for each of `count` ranks: as even as can be, the first ones get one more.

    Raises: InputError where some rank would have none.
    """
    if num_positions < count:
        raise InputError(
            f"{num_positions} tokens a frame cannot be split over {count} GPUs. Use fewer for such a small picture."
        )
    each, more = divmod(num_positions, count)
    return tuple(each + (index < more) for index in range(count))


def key_heads(projected: Tensor, norm: HeadNorm, dtype: torch.dtype | None, group: Group, num_groups: int) -> Tensor:
    """Keys [num_groups, l, N/num_groups, E] without the shift of a group's first rank, which is as good as any."""
    shift = norm.shift(projected, dtype)
    if shift is not None:
        group.broadcast_(shift, 0)
    return norm.heads(projected, dtype, shift, num_groups)


class StripSplit:
    """The `TokenSplit` of a rank: a strip of every frame's positions.

    counts: tokens of every rank of the sequence in the video that was started last.
    """

    def __init__(self, group: Group) -> None:
        self.group, self.counts = group, tuple[int, ...]()
        self._frames, self._strips = 0, tuple[int, ...]()

    def start(self, num_frames: int, num_positions: int) -> None:
        self._frames, self._strips = num_frames, strips(num_positions, self.group.size)
        self.counts = tuple(num_frames * strip for strip in self._strips)

    def take(self, tokens: Tensor) -> Tensor:
        first = sum(self._strips[: self.group.index])
        frames: Tensor = tokens.view(self._frames, -1, *tokens.shape[1:])
        return frames[:, first : first + self._strips[self.group.index]].flatten(0, 1)

    def join(self, tokens: Tensor) -> Tensor:
        gathered = self.group.gather(tokens, self.counts)
        parts = [part.unflatten(0, (self._frames, -1)) for part in gathered.split(self.counts)]
        return torch.cat(parts, 1).flatten(0, 1)

    def first_frame(self, num_frames: int, num_positions: int) -> tuple[tuple[int, int], ...]:
        widths = strips(num_positions, self.group.size)
        starts = accumulate((num_frames * width for width in widths[:-1]), initial=0)
        return tuple((start, start + width) for start, width in zip(starts, widths, strict=True))


@dataclass(frozen=True)
class _Sent:
    """A value, query or key on its way here, and the bound of the values if it is one that needs it."""

    work: Work
    bound: Tensor | None = None
    bound_work: Work | None = None


def ulysses(backend: Backend, mesh: Mesh, split: StripSplit) -> Backend:
    """Attention of all ranks of `mesh.ulysses` by `backend`, each to N/P of the heads.

    What it returns is of the own tokens and all heads.
    """
    group = mesh.ulysses
    if group.size == 1:
        return backend
    exchange = _Ulysses(backend, group, mesh, split)
    if mesh.ring.size == 1 and backend.rows is hopper_rows and can_share(group, mesh.device):
        among = PeerAttention(
            group.index, lambda size: PeerMemory(group, size, mesh.device), lambda: split.counts, exchange.own_shares
        )
        return replace(backend, function=among.function, rows=among.rows, operands=among)
    return replace(backend, function=exchange.function, rows=exchange.rows, operands=exchange)


class _Ulysses:
    """What is under way between operands that are handed over and the attention that takes them."""

    def __init__(self, backend: Backend, group: Group, mesh: Mesh, split: StripSplit) -> None:
        self.backend, self.group, self.mesh, self.split = backend, group, mesh, split
        self._sent: list[_Sent] = []

    @property
    def _in_fp8(self) -> bool:
        return self.backend.rows is hopper_rows and self.backend.query_dtype == FP8

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each rank of the group."""
        first = self.mesh.sequence.index // self.group.size * self.group.size
        return self.split.counts[first : first + self.group.size]

    @compile_disabled
    def key(self, projected: Tensor, norm: HeadNorm, dtype: torch.dtype | None) -> Tensor:
        return self._send(key_heads(projected, norm, dtype, self.mesh.sequence, self.group.size))

    @compile_disabled
    def value(self, projected: Tensor, num_heads: int) -> Tensor:
        bound = bound_work = None
        if self._in_fp8:  # rows in fp8 share the bound of the values
            bound = torch.linalg.vector_norm(projected, float("inf")).float()
            bound_work = self.group.start_reduce_(bound, "max")
        size = self.group.size
        groups = projected.unflatten(-1, (size, num_heads // size, -1)).transpose(0, 1)
        return self._send(groups, bound, bound_work)

    @compile_disabled
    def query(self, projected: Tensor, norm: HeadNorm, dtype: torch.dtype | None) -> Tensor:
        return self._send(norm.heads(projected, dtype, None, self.group.size))

    def _send(self, operand: Tensor, bound: Tensor | None = None, bound_work: Work | None = None) -> Tensor:
        """Heads [P, l, n, E] of the own tokens -> the own heads [1, L, n, E] of all; they come while others are made.

        Each is exchanged by itself, so that it arrives as the kernels take it, and while the next one is computed.
        """
        own, counts = operand.shape[1], self.counts
        received, work = self.group.exchange(packed(operand).flatten(0, 1), [own] * self.group.size, counts)
        self._sent.append(_Sent(work, bound, bound_work))
        return received[None]

    def function(self, query: Tensor, key: Tensor, value: Tensor, needs_lse: bool = False) -> OutAndLse:
        """The own heads of all tokens -> all heads [1, l, N, E] of the own tokens, and their log-sum-exp [1, N, l]."""
        self._wait()
        out, lse = self.backend.function(query, key, value, needs_lse)
        heads = query.shape[2]
        rows = self._send_back(out[0].flatten(1)).unflatten(-1, (self.group.size * heads, -1))
        if lse is None or not needs_lse:
            return rows[None], None
        return rows[None], self._send_back(lse[0].T).T[None]

    def rows(
        self, query: Tensor, key: Tensor, value: Tensor, regions: FrameRegions | None, dtype: torch.dtype
    ) -> tuple[Tensor | QuantizedRows, RegionShares | None]:
        """`ops.attention.dispatch.self_attention` of the own heads of all tokens -> of all heads of the own tokens."""
        bound = self._wait()
        if self.backend.rows is hopper_rows:
            made, shares = hopper_rows(query, key, value, regions, dtype, bound)
        else:
            made, shares = self_attention(query, key, value, regions, self.backend, dtype)
        rows: Tensor | QuantizedRows
        if isinstance(made, QuantizedRows) and bound is not None:  # everybody's have the same scale
            data = self._send_back(made.data)
            rows = QuantizedRows(data, made.scale[:1].expand(len(data), 1).contiguous())
        elif isinstance(made, QuantizedRows):
            rows = self._send_back(made.dense(value.dtype))
        else:
            rows = self._send_back(made)
        return rows, None if shares is None else self.own_shares(shares)

    def _wait(self) -> Tensor | None:
        """Have what is computed from here on wait for what was handed over. Returns: the bound of the values."""
        sent, self._sent = self._sent, []
        bound = None
        for operand in sent:
            operand.work.wait()
            if operand.bound_work is not None:
                operand.bound_work.wait()
                bound = operand.bound
        return bound

    def _send_back(self, rows: Tensor) -> Tensor:
        """The own columns [L, C] of all tokens -> all columns [l, P * C] of the own tokens."""
        counts = self.counts
        own = counts[self.group.index]
        received, work = self.group.exchange(rows, counts, [own] * self.group.size)
        work.wait()
        return packed(received.view(self.group.size, own, -1).transpose(0, 1)).flatten(1)

    def own_shares(self, shares: RegionShares) -> RegionShares:
        """Shares averaged over the own heads, of all tokens -> over all heads, of the own tokens."""
        total = self.group.reduce_(shares.values.contiguous()).div_(self.group.size)
        counts = self.counts
        first = sum(counts[: self.group.index])
        own = total[:, first : first + counts[self.group.index]].contiguous()
        if self.mesh.ring.size == 1:
            return RegionShares(own, *torch.aminmax(total, dim=1, keepdim=True))
        least, most = torch.aminmax(total, dim=1, keepdim=True)
        return RegionShares(own, *_extremes(least, most, self.mesh.ring))


def _extremes(least: Tensor, most: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """The least and the largest of all ranks."""
    both = group.reduce_(torch.cat((-least, most)), "max")
    return -both[: len(least)], both[len(least) :]


def spread_extremes(shares: RegionShares, group: Group) -> RegionShares:
    """Shares of the own tokens, with the extremes of those of all ranks of a group."""
    return RegionShares(shares.values, *_extremes(shares.least, shares.most, group))
