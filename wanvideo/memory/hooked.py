"""Block streaming for models of other libraries, whose forward cannot be asked to fetch its blocks: through hooks."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from .streaming import BlockStreamer, block_tensors


class HookedStreamer:
    """Brings each block's weights to the device right before it runs and takes them off after, as `BlockStreamer` does.

    Args:
        blocks: run one after another, all of them, once in every forward.
        device: where they run. num_streamed, prefetch: as of `BlockStreamer`.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], device: torch.device | str, num_streamed: int, prefetch: int = 1
    ) -> None:
        self.blocks = list(blocks)
        self.streamer = BlockStreamer(self.blocks, torch.device(device), num_streamed, prefetch)
        self._visits: Generator[nn.Module] | None = None
        self._hooks = [block.register_forward_pre_hook(self._arrive) for block in self.blocks]
        self._hooks.append(self.blocks[-1].register_forward_hook(self._finish))

    def close(self) -> None:
        """Leave the blocks as they were found, with their weights in host memory."""
        self._finish()
        for hook in self._hooks:
            hook.remove()
        self.streamer.close()

    def _arrive(self, block: nn.Module, _: object) -> None:
        if block is self.blocks[0]:
            self._finish()
            self._visits = self.streamer(self.blocks)
        next(self._visits)

    def _finish(self, *_: object) -> None:
        """The last block has run, or a forward was left early."""
        if self._visits is not None:
            self._visits.close()
        self._visits = None


@contextmanager
def streaming(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device | str) -> Iterator[None]:
    """`model` ready to run on `device` with all of `blocks` visiting it and everything else there."""
    inside = {id(tensor) for block in blocks for tensor in block_tensors(block)}
    with torch.inference_mode(False):
        for tensor in block_tensors(model):
            if id(tensor) not in inside:
                tensor.data = tensor.data.to(device)
    streamer = HookedStreamer(blocks, device, len(blocks))
    try:
        yield
    finally:
        streamer.close()
