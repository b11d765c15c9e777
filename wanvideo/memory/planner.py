"""Decides how many blocks visit the device: as few as fit, from measured free memory and estimated needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError
from .budget import WindowNeed


@dataclass(frozen=True)
class MemoryPlan:
    """num_streamed blocks visit; device_bytes is the expected peak, host_bytes what stays page-locked."""

    num_streamed: int
    device_bytes: int
    host_bytes: int

    def describe(self) -> str:
        gib = 2**30
        return (
            f"{self.num_streamed} blocks stream, about {self.device_bytes / gib:.1f} GiB on the device "
            f"and {self.host_bytes / gib:.1f} GiB in host memory"
        )


def plan_blocks(
    free_bytes: int, num_blocks: int, block_bytes: int, other_bytes: int, need: WindowNeed, *,
    reserve_bytes: int = 0, prefetch: int = 1, wanted: int = -1,
) -> MemoryPlan:  # fmt: skip
    """Blocks to stream.

    Args:
        free_bytes: device memory that may be used. reserve_bytes: kept for something else (the VAE's decode).
        wanted: what the user asks for, 0 to num_blocks, or -1 for as few as fit.
    Raises: InputError when even with all blocks streaming it does not fit.
    """
    slots = (prefetch + 1) * block_bytes

    def peak(streamed: int) -> int:
        visiting = min(streamed * block_bytes, slots)
        return other_bytes + (num_blocks - streamed) * block_bytes + visiting + max(need.total, reserve_bytes)

    if wanted >= 0:
        streamed = min(wanted, num_blocks)
    else:
        missing = peak(0) - free_bytes
        streamed = 0 if missing <= 0 else min(num_blocks, math.ceil(missing / block_bytes) + prefetch + 1)
        if peak(streamed) > free_bytes:
            raise InputError(
                f"A window needs {peak(num_blocks) / 2**30:.1f} GiB of device memory with every block streaming, and "
                f"{free_bytes / 2**30:.1f} GiB are free. Use a smaller size, a shorter window or tiled_vae."
            )
    return MemoryPlan(streamed, peak(streamed), streamed * block_bytes)
