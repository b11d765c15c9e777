"""A block provider for models of other libraries, whose forward cannot be asked to fetch its blocks: through hooks."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..protocols import BlockProvider
from .streaming import BlockStreamer, block_tensors

if TYPE_CHECKING:
    from ..protocols import Blocks


class HookedBlocks:
    """Has a provider bring each block's weights right before the block runs, as the model's own loop would.

    Args:
        blocks: run one after another, all of them, once in every forward.
        provider: decides where their weights are.
    """

    def __init__(self, blocks: Blocks, provider: BlockProvider) -> None:
        self.blocks, self.provider = list(blocks), provider
        self._ready: Iterator[nn.Module] | None = None
        self._hooks = [block.register_forward_pre_hook(self._before) for block in self.blocks]
        self._hooks.append(self.blocks[-1].register_forward_hook(self._after))

    def close(self) -> None:
        """Take the hooks off; weights are where the provider leaves them between forwards."""
        self._after()
        for hook in self._hooks:
            hook.remove()

    def _before(self, block: nn.Module, _: object) -> None:
        if block is self.blocks[0]:
            self._after()
            self._ready = self.provider(self.blocks)
        assert self._ready is not None, "blocks run in their order, beginning with the first"
        next(self._ready)

    def _after(self, *_: object) -> None:
        """The last block has run, or a forward was left early."""
        if isinstance(self._ready, Generator):
            self._ready.close()
        self._ready = None


@contextmanager
def streaming(model: nn.Module, blocks: Blocks, device: torch.device | str) -> Iterator[None]:
    """`model` ready to run on `device`: all of `blocks` stream, everything else is there and goes back afterwards."""
    inside = {id(tensor) for block in blocks for tensor in block_tensors(block)}
    with torch.inference_mode(False):
        outside = [(tensor, tensor.data) for tensor in block_tensors(model) if id(tensor) not in inside]
    try:
        with torch.inference_mode(False):
            for tensor, home in outside:
                tensor.data = home.to(device)
        streamer = BlockStreamer(blocks, torch.device(device), len(blocks))
        hooked = HookedBlocks(blocks, streamer)
        try:
            yield
        finally:
            hooked.close()
            streamer.close()
    finally:
        with torch.inference_mode(False):
            for tensor, home in outside:
                tensor.data = home
