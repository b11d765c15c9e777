"""Sharded weights: of every block each rank keeps a part of the bytes, and the whole block is there while it runs.

This is what FSDP2 does for inference, by bytes: a block is packed into one buffer whatever its tensors are (bf16, fp8
with scales, int8, GGUF, LoRA branches), so that no format needs a word here, which `fully_shard` cannot do: it wants
parameters of floating point and leaves buffers whole. The gather of the next block runs on the backend's own stream
while this one computes; events order the two and the host never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..memory.streaming import PackedLayout, block_tensors
from .groups import Group, Work

if TYPE_CHECKING:
    from ..protocols import Block, Blocks

GRAIN = 256  # bytes; parts are a multiple of it


class ShardedBlocks:
    """The `BlockProvider` of a model whose blocks' weights are spread over a group of ranks.

    Args:
        blocks: all blocks; their tensors may be on any device, or, where they are not read here, on the meta device.
        device: where they run.
        owner: of a block, by its number: the rank of the group that has its tensors; None: every rank has all.
        in_host: parts are kept in host memory and copied to the device before they are gathered.
    """

    def __init__(
        self, blocks: Blocks, group: Group, device: torch.device, owner: Callable[[int], int] | None = None,
        in_host: bool = False,
    ) -> None:  # fmt: skip
        self.group, self.device, self.in_host = group, torch.device(device), in_host
        self._on_gpu = self.device.type == "cuda"
        self._parts: list[Tensor] = []
        self._layouts: list[PackedLayout] = []
        self._slots: list[Tensor] = []
        with torch.inference_mode(False):
            for index, block in enumerate(blocks):
                self._shard(index, block, owner)

    @property
    def part_bytes(self) -> int:
        """Bytes of all blocks that this rank keeps."""
        return sum(part.numel() for part in self._parts)

    @property
    def device_bytes(self) -> int:
        """Device memory that blocks take: the parts, and two whole blocks."""
        slots = 2 * max((part.numel() * self.group.size for part in self._parts), default=0)
        return slots + (0 if self.in_host else self.part_bytes)

    def __call__(self, blocks: Iterable[Block]) -> Iterator[Block]:
        self._open()
        pending: list[tuple[Work, Tensor]] = [self._gather(0)]
        for index, block in enumerate(blocks):
            work, whole = pending.pop()
            work.wait()
            if index + 1 < len(self._parts):
                # The slot of the next block was read by the one before this, which the device may still compute; the
                # gather is put behind that on the current stream, and runs beside what comes after it here.
                pending.append(self._gather(index + 1))
            self._layouts[index].point_to(whole)
            try:
                yield block
            finally:
                self._layouts[index].let_go(self.device)

    @contextmanager
    def editing(self, blocks: Blocks) -> Iterator[None]:
        """While the context is open every rank has whole blocks in host memory; afterwards they are sharded anew."""
        self.close()
        with torch.inference_mode(False):
            for index, part in enumerate(self._parts):
                whole = self._whole(part).cpu()
                self._layouts[index].point_to(whole)
        try:
            yield
        finally:
            self._parts, self._layouts = [], []
            with torch.inference_mode(False):
                for index, block in enumerate(blocks):
                    self._shard(index, block, None)

    def to_host(self) -> None:
        """Keep the parts in host memory from now on."""
        with torch.inference_mode(False):
            self._parts = [part.cpu().pin_memory() if self._on_gpu else part.cpu() for part in self._parts]
        self.in_host = True

    def close(self) -> None:
        """Give the device memory of whole blocks back; the next forward takes it again."""
        self._slots = []

    def _shard(self, index: int, block: nn.Module, owner: Callable[[int], int] | None) -> None:
        """Keep this rank's part of a block, which the owner has as a whole."""
        if any(tensor.is_meta for tensor in block_tensors(block)):
            block.to_empty(device="cpu")  # what is not written takes no memory, and a tensor cannot leave meta
        layout = PackedLayout(block_tensors(block))
        size = -(-layout.num_bytes // (self.group.size * GRAIN)) * GRAIN
        source = self.group.index if owner is None else owner(index)
        if source == self.group.index:
            packed = torch.zeros(size * self.group.size, dtype=torch.uint8)
            layout.pack_into(packed)
        if owner is None:
            part = packed[self.group.index * size :][:size].clone()
        else:
            part = self._scattered(packed if source == self.group.index else None, size, source)
        part = part.cpu() if self.in_host else part.to(self.device)
        if self.in_host and self._on_gpu:
            part = part.pin_memory()
        self._parts.append(part)
        self._layouts.append(layout)
        layout.let_go(self.device)

    def _scattered(self, packed: Tensor | None, size: int, source: int) -> Tensor:
        """This rank's part of what the source packed."""
        part = torch.empty(size, dtype=torch.uint8, device=self.device)
        sends: dict[int, Tensor] = {}
        if packed is not None:
            pieces = packed.to(self.device).split(size)
            part.copy_(pieces[source])
            sends = {index: piece for index, piece in enumerate(pieces) if index != source}
        for work in self.group.swap(sends, {} if packed is not None else {source: part}):
            work.wait()
        return part

    def _open(self) -> None:
        if not self._slots and self._parts:
            size = max(part.numel() for part in self._parts) * self.group.size
            with torch.inference_mode(False):
                self._slots = [torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(2)]

    def _gather(self, index: int) -> tuple[Work, Tensor]:
        """Start to gather a block into its slot."""
        part = self._parts[index]
        whole = self._slots[index % 2][: part.numel() * self.group.size]
        if self.in_host:
            part = part.to(self.device, non_blocking=True)
        return self.group.start_gather(whole, part), whole

    def _whole(self, part: Tensor) -> Tensor:
        whole = torch.empty(part.numel() * self.group.size, dtype=torch.uint8, device=self.device)
        self.group.start_gather(whole, part.to(self.device)).wait()
        return whole
