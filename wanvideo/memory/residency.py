"""Where a model's weights are: all on the device, some blocks streamed, or everything offloaded to host memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import torch
from torch import nn

from ..protocols import BlockModel, ResidentBlocks
from .streaming import BlockStreamer, block_bytes

Whole = TypeVar("Whole", bound=nn.Module)
Movable = TypeVar("Movable", bound="MovableModel")


def module_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


class WholeResidency(Generic[Whole]):
    """A model that is on the device as a whole or not at all."""

    def __init__(self, model: Whole, device: torch.device | str) -> None:
        self.model, self.device = model, torch.device(device)

    @property
    def device_bytes(self) -> int:
        """Device memory that the weights take now."""
        return module_bytes(self.model) if next(self.model.parameters()).device.type == self.device.type else 0

    @torch.inference_mode(False)
    def place(self) -> None:
        self.model.to(self.device)

    def shrink(self, num_bytes: int) -> None:
        """Give at least so much device memory back."""
        self.offload()

    @torch.inference_mode(False)
    def offload(self) -> None:
        self.model.to("cpu")


class MovableModel(BlockModel, Protocol):
    """A module that reads its blocks through a provider."""

    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_children(self) -> Iterator[tuple[str, nn.Module]]: ...
    def to(self, device: str) -> object: ...


class Residency(Generic[Movable]):
    """Moves one transformer between host and device; the model itself never knows.

    Args:
        device: where it runs.
        prefetch: blocks that are copied ahead of the one that runs.
    """

    def __init__(self, model: Movable, device: torch.device | str, prefetch: int = 1) -> None:
        self.model, self.device, self.prefetch = model, torch.device(device), prefetch
        self.streamer: BlockStreamer | None = None
        if self.device.type != "cpu" and next(model.parameters()).device.type == self.device.type:
            self.place(0)  # loaded straight to the device: what it takes there counts from now on

    @property
    def num_streamed(self) -> int | None:
        """Blocks that stream; None while the model is offloaded."""
        return None if self.streamer is None else self.streamer.num_streamed

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest block."""
        return max(block_bytes(block) for block in self.model.blocks)

    @property
    def other_bytes(self) -> int:
        """Bytes of everything outside the blocks; it is on the device whenever the model runs."""
        return sum(map(module_bytes, self._others()))

    @property
    def device_bytes(self) -> int:
        """Device memory that the weights take now."""
        if self.streamer is None:
            return 0
        resident = len(self.model.blocks) - self.streamer.num_streamed
        return self.other_bytes + resident * self.block_bytes + self.streamer.device_bytes

    @torch.inference_mode(False)
    def place(self, num_streamed: int = 0) -> None:
        """Make the model ready to run with `num_streamed` of its blocks (0 to all) streamed."""
        num_streamed = max(0, min(num_streamed, len(self.model.blocks)))
        before = self.streamer
        if before is not None:
            if (before.num_streamed, before.prefetch) == (num_streamed, self.prefetch):
                return
            before.close()
        try:
            for part in self._others():
                part.to(self.device)
            self.streamer = BlockStreamer(self.model.blocks, self.device, num_streamed, self.prefetch, before)
        except BaseException:
            self.offload()  # else what has arrived would stay, and nobody would count it
            raise
        self.model.block_provider = self.streamer

    def stream_more(self) -> bool:
        """Stream a quarter of the blocks more; False when all do already, or none is on the device."""
        if self.streamer is None:
            return False
        before = self.streamer.num_streamed
        self.place(before + max(1, len(self.model.blocks) // 4))
        return self.streamer.num_streamed > before

    def shrink(self, num_bytes: int) -> None:
        """Give at least so much device memory back: by streaming more blocks, else by offloading all."""
        if self.streamer is None:
            return
        before, count = self.device_bytes, len(self.model.blocks)
        self.place(self.streamer.num_streamed + -(-num_bytes // self.block_bytes) + self.prefetch + 1)
        if before - self.device_bytes < num_bytes and self.num_streamed == count:
            self.offload()

    @torch.inference_mode(False)
    def offload(self) -> None:
        """Give all device memory back; weights stay in host memory."""
        if self.streamer is not None:
            self.streamer.close()
        self.streamer, self.model.block_provider = None, ResidentBlocks()
        self.model.to("cpu")

    def _others(self) -> list[nn.Module]:
        return [part for name, part in self.model.named_children() if name != "blocks"]
