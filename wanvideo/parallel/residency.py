"""Where a sharded model's weights are: a part of every block on each rank, and everything else on all."""

from __future__ import annotations

import torch

from ..memory.residency import Residency
from ..models.transformer import WanTransformer
from .groups import Group
from .shard import ShardedBlocks


class ShardedResidency(Residency[WanTransformer]):
    """A transformer whose blocks are shards of the ranks of a group; it stays where it is until it is forgotten.

    Args: model: blocks that this rank does not own may be on the meta device, see `owned`.
    """

    def __init__(self, model: WanTransformer, device: torch.device | str, group: Group) -> None:
        self.group = group
        self.sharded: ShardedBlocks | None = None
        super().__init__(model, device)

    @property
    def num_streamed(self) -> int | None:
        """Blocks whose parts are in host memory; None while the model is not placed."""
        if self.sharded is None:
            return None
        return len(self.model.blocks) if self.sharded.in_host else 0

    @property
    def device_bytes(self) -> int:
        return 0 if self.sharded is None else self.other_bytes + self.sharded.device_bytes

    @torch.inference_mode(False)
    def place(self, num_streamed: int = 0) -> None:
        """Shard the blocks, once; with any of them streamed, the parts of all are in host memory."""
        if self.sharded is not None:
            if num_streamed and not self.sharded.in_host:
                self.sharded.to_host()
            return
        for part in self._others():
            part.to(self.device)
        self.sharded = ShardedBlocks(self.model.blocks, self.group, self.device, self.owner, num_streamed > 0)
        self.model.block_provider = self.sharded

    def owner(self, block: int) -> int:
        """The rank of the group that reads a block."""
        return block % self.group.size

    def stream_more(self) -> bool:
        if self.num_streamed != 0:
            return False
        self.place(1)
        return True

    def shrink(self, num_bytes: int) -> None:
        self.stream_more()

    def offload(self) -> None:
        """Parts go to host memory; whole blocks are nowhere."""
        self.stream_more()
