"""Block streaming: a model whose blocks live in host memory and are on the device one after another.

Each streamed block's tensors are packed into one host buffer, page-locked where the device is a GPU, so that a block is
one copy. A copy stream runs ahead of the compute stream by `prefetch` blocks; events order the two, the host never
waits, and nothing is copied back, since weights do not change.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

ALIGNMENT = 256  # bytes; every tensor of a packed block starts at a multiple of it
logger = logging.getLogger("wanvideo")

if TYPE_CHECKING:
    from ..protocols import Block, Blocks


def block_tensors(block: nn.Module) -> list[Tensor]:
    """Every parameter and buffer of a block, in a fixed order."""
    return [*block.parameters(), *block.buffers()]


def block_bytes(block: nn.Module) -> int:
    """Bytes of a block when packed."""
    return sum(_padded(tensor.numel() * tensor.element_size()) for tensor in block_tensors(block))


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class _Place:
    """Where one tensor lies in a packed block."""

    tensor: Tensor
    offset: int
    shape: torch.Size
    dtype: torch.dtype

    def view(self, packed: Tensor) -> Tensor:
        size = self.shape.numel() * self.dtype.itemsize
        return packed[self.offset : self.offset + size].view(self.dtype).view(self.shape)


class PackedLayout:
    """Where each of some tensors lies in one buffer of `num_bytes`, whatever their dtypes."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.places, self.num_bytes = list[_Place](), 0
        for tensor in tensors:
            self.places.append(_Place(tensor, self.num_bytes, tensor.shape, tensor.dtype))
            self.num_bytes += _padded(tensor.numel() * tensor.element_size())

    def pack_into(self, packed: Tensor) -> None:
        """Copy what the tensors hold into bytes [num_bytes or more]."""
        for place in self.places:
            place.view(packed).copy_(place.tensor.data)

    def point_to(self, packed: Tensor) -> None:
        """Have the tensors be views of packed bytes."""
        for place in self.places:
            place.tensor.data = place.view(packed)

    def let_go(self, device: torch.device) -> None:
        """Have the tensors hold no memory on a device; they keep shapes and dtypes."""
        for place in self.places:
            place.tensor.data = torch.empty(1, dtype=place.dtype, device=device).expand(place.shape)


class _PackedBlock(PackedLayout):
    """A block whose tensors are views of one host buffer, and for as long as it runs views of a device slot."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block_tensors(block))
        self.host = torch.empty(self.num_bytes, dtype=torch.uint8)
        self.pack_into(self.host)
        self.point_to(self.host)

    def holds(self, block: nn.Module) -> bool:
        """Whether all that a block has now is here."""
        tensors = block_tensors(block)
        return [id(place.tensor) for place in self.places] == [*map(id, tensors)] and all(
            not tensor.numel() or tensor.data_ptr() == place.view(self.host).data_ptr()
            for place, tensor in zip(self.places, tensors, strict=True)
        )


def _page_lock(buffer: Tensor, device: torch.device) -> bool:
    """Page-lock exactly this buffer (the caching host allocator would round it up to a power of two), if it can be."""
    cudart, pointer = torch.cuda.cudart(), buffer.data_ptr()
    status = int(cudart.cudaHostRegister(pointer, buffer.numel(), 0))
    if status:
        logger.warning("Host memory could not be page-locked (CUDA status %d); block streaming will be slower.", status)
        with contextlib.suppress(RuntimeError):  # the failure, which CUDA would tell whoever launches next
            torch.zeros(1, device=device)
            torch.cuda.synchronize(device)
        return False
    weakref.finalize(buffer, cudart.cudaHostUnregister, pointer)
    return True


class BlockStreamer:
    """The `BlockProvider` of a model that is larger than the device: some of its blocks stream.

    Args:
        blocks: all blocks of the model, on any device.
        device: where they run.
        num_streamed: how many of them stream; the others stay. They are spread evenly, so that the copies have the
            most compute to hide behind.
        prefetch: blocks copied ahead of the one that runs.
        before: the streamer of these blocks until now, which is closed and not used again. What both stream stays where
            it is: packed anew it would be in host memory twice.
    """

    def __init__(
        self, blocks: Blocks, device: torch.device, num_streamed: int, prefetch: int = 1,
        before: BlockStreamer | None = None,
    ) -> None:  # fmt: skip
        count = len(blocks)
        num_streamed = max(0, min(num_streamed, count))
        self.device = torch.device(device)
        self.on_gpu = self._locks = self.device.type == "cuda"
        chosen = [i for i in range(count) if (i + 1) * num_streamed // count > i * num_streamed // count]
        known: dict[int, _PackedBlock] = {} if before is None else before.packed
        with torch.inference_mode(False):
            # Those that stream make room for those that stay.
            self.packed: dict[int, _PackedBlock] = {
                index: self._pack(blocks[index], known.pop(index, None)) for index in chosen
            }
            for index, block in enumerate(blocks):
                if index not in chosen:
                    block.to(self.device)
                    known.pop(index, None)
        self.order, self.prefetch = chosen, prefetch
        self.num_slots = min(prefetch + 1, len(chosen))
        self.slots: list[Tensor] = []
        self.copied: list[torch.cuda.Event] = []
        self.free: list[torch.cuda.Event] = []
        self.copy_stream = torch.cuda.Stream(self.device) if self.on_gpu else None
        self.num_run = self.num_copied = 0  # blocks; of the latter the copy is under way or done

    @property
    def num_streamed(self) -> int:
        return len(self.order)

    @property
    def device_bytes(self) -> int:
        """Device memory of the slots that streamed blocks share."""
        return self.num_slots * max((packed.host.numel() for packed in self.packed.values()), default=0)

    def __call__(self, blocks: Iterable[Block]) -> Iterator[Block]:
        self._open()
        if self.order and self.num_run % len(self.order):
            self._restart()
        for index, block in enumerate(blocks):
            if index not in self.packed:
                yield block
                continue
            slot = self._load()
            packed = self.packed[index]
            packed.point_to(self.slots[slot])
            try:
                yield block
            finally:
                packed.point_to(packed.host)
                self._release(slot)

    def close(self) -> None:
        """Give the slots' device memory back; the next forward takes it again."""
        if self.copy_stream is not None and self.slots:
            self.copy_stream.synchronize()
        self.slots, self.copied, self.free = [], [], []
        self.num_run = self.num_copied = 0

    @contextlib.contextmanager
    def editing(self, blocks: Blocks) -> Iterator[None]:
        """No copy is under way while the context is open; afterwards what streams is what the blocks hold by then."""
        self.close()
        try:
            yield
        finally:
            self._repack(blocks)

    def _repack(self, blocks: Blocks) -> None:
        """Take in tensors that streamed blocks were given, and let go of those they lost."""
        with torch.inference_mode(False):
            for index, packed in self.packed.items():
                self.packed[index] = self._pack(blocks[index], packed)

    def _pack(self, block: nn.Module, known: _PackedBlock | None) -> _PackedBlock:
        """A block in a host buffer: the one that is known, if it still has all of the block; page-locked as long as the
        system allows more, for Windows locks about half of the memory."""
        if known is not None and known.holds(block):
            return known
        packed = _PackedBlock(block)
        self._locks = self._locks and _page_lock(packed.host, self.device)
        return packed

    def _open(self) -> None:
        if self.slots or not self.order:
            return
        size = max(packed.host.numel() for packed in self.packed.values())
        with torch.inference_mode(False):
            self.slots = [torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(self.num_slots)]
        if self.on_gpu:
            self.copied = [torch.cuda.Event() for _ in self.slots]
            self.free = [torch.cuda.Event() for _ in self.slots]
            for event in self.free:
                event.record(torch.cuda.current_stream(self.device))

    def _restart(self) -> None:
        """A forward was left early: what was fetched ahead is not what comes first now."""
        if self.copy_stream is not None:
            self.copy_stream.synchronize()
        self.num_run = self.num_copied = 0

    def _load(self) -> int:
        """Start the copies that may start, and make the compute stream wait for the one that is needed now."""
        while self.num_copied < self.num_run + self.num_slots:
            self._copy(self.num_copied)
            self.num_copied += 1
        slot = self.num_run % self.num_slots
        if self.on_gpu:
            torch.cuda.current_stream(self.device).wait_event(self.copied[slot])
        return slot

    def _copy(self, number: int) -> None:
        slot, host = number % self.num_slots, self.packed[self.order[number % len(self.order)]].host
        with contextlib.nullcontext() if self.copy_stream is None else torch.cuda.stream(self.copy_stream):
            if self.copy_stream is not None:
                self.copy_stream.wait_event(self.free[slot])
            self.slots[slot][: host.numel()].copy_(host, non_blocking=True)
            if self.copy_stream is not None:
                self.copied[slot].record(self.copy_stream)

    def _release(self, slot: int) -> None:
        if self.on_gpu:
            self.free[slot].record(torch.cuda.current_stream(self.device))
        self.num_run += 1
