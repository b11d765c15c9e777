"""Groups of ranks and the exchanges within them, of any dtype and of parts of unequal but known sizes.

Everything travels as bytes, so that 8-bit floats go through backends that do not know them. An exchange that is started
runs on the backend's own stream: what waits for it is the device's stream, never the host (on a CPU it is the host).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Work(Protocol):
    """An exchange under way."""

    def wait(self) -> object: ...


@dataclass
class Counter:
    """Exchanges that this rank has started, in all groups together: where it is, for those who compare."""

    count: int = 0


class Group:
    """Ranks that exchange something. ranks: their numbers. index: this rank's place among them."""

    def __init__(self, ranks: Sequence[int], own: int, handle: dist.ProcessGroup | None, counter: Counter) -> None:
        self.ranks, self.index, self.handle, self._counter = tuple(ranks), list(ranks).index(own), handle, counter

    @property
    def size(self) -> int:
        return len(self.ranks)

    def count(self) -> None:
        """Say that this rank starts an exchange."""
        self._counter.count += 1

    def exchange(self, send: Tensor, send_rows: Sequence[int], receive_rows: Sequence[int]) -> tuple[Tensor, Work]:
        """Rows of send [n, ...] go to the ranks in order, so many to each.

        Returns: what the ranks sent here, in their order, [m, ...], and the work to wait for before it is read.
        """
        send = send.contiguous()
        out = send.new_empty(sum(receive_rows), *send.shape[1:])
        width = math.prod(send.shape[1:]) * send.element_size()
        self.count()
        work = dist.all_to_all_single(
            _bytes(out), _bytes(send), [rows * width for rows in receive_rows], [rows * width for rows in send_rows],
            group=self.handle, async_op=True,
        )  # fmt: skip
        return out, work

    def gather(self, own: Tensor, rows: Sequence[int]) -> Tensor:
        """Everybody's rows [n_i, ...] in the order of the ranks: [sum of n_i, ...]."""
        if self.size == 1:
            return own
        own = own.contiguous()
        if len(set(rows)) == 1:
            out = own.new_empty(sum(rows), *own.shape[1:])
            self.count()
            dist.all_gather_into_tensor(_bytes(out), _bytes(own), group=self.handle)
            return out
        copies = own[None].expand(self.size, *own.shape).flatten(0, 1)
        out, work = self.exchange(copies, [len(own)] * self.size, rows)
        work.wait()
        return out

    def start_gather(self, out: Tensor, own: Tensor) -> Work:
        """Everybody's bytes own [n] into out [size * n]."""
        self.count()
        work: Work = dist.all_gather_into_tensor(out, own, group=self.handle, async_op=True)
        return work

    def reduce_(self, x: Tensor, by: str = "sum") -> Tensor:
        """x summed over the ranks, or its largest values, in place."""
        self.start_reduce_(x, by).wait()
        return x

    def start_reduce_(self, x: Tensor, by: str = "sum") -> Work:
        self.count()
        operation = dist.ReduceOp.MAX if by == "max" else dist.ReduceOp.SUM
        work: Work = dist.all_reduce(x, operation, group=self.handle, async_op=True)
        return work

    def broadcast_(self, x: Tensor, index: int) -> None:
        """x of the rank at `index`, on all of them, in place."""
        self.count()
        dist.broadcast(_bytes(x), self.ranks[index], group=self.handle)

    def swap(self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor]) -> list[Work]:
        """Contiguous tensors to and from ranks of the group, by their index."""
        self.count()
        operations = [
            *(dist.P2POp(dist.isend, _bytes(x), self.ranks[index], self.handle) for index, x in sends.items()),
            *(dist.P2POp(dist.irecv, _bytes(x), self.ranks[index], self.handle) for index, x in receives.items()),
        ]
        return list(dist.batch_isend_irecv(operations)) if operations else []


def packed(x: Tensor) -> Tensor:
    """x as it is, or a contiguous copy of it; eight bytes at once where rows allow, which is faster for small types."""
    size = x.element_size()
    steps = (*x.stride()[:-1], x.shape[-1], x.storage_offset())
    if not x.is_contiguous() and x.stride(-1) == 1 and all(step * size % 8 == 0 for step in steps):
        return x.view(torch.int64).contiguous().view(x.dtype)
    return x.contiguous()


def _bytes(x: Tensor) -> Tensor:
    return x.view(-1).view(torch.uint8)
