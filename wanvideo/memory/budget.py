"""Measured free memory, and estimates of what a window needs. All numbers are bytes.

Legend: L video tokens, D width, F feed-forward width.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .container import memory_limits

if TYPE_CHECKING:
    import torch

MEMINFO, HELD = Path("/proc/meminfo"), Path("/proc/self/statm")
GIB = 2**30
IMAGE_TOKENS = 257  # of CLIP ViT-H/14: 16 x 16 patches of a picture, and the class
PROMPT_TOKENS = 128  # of a usual prompt; its padding is counted and not attended to
VAE_BYTES_PER_PIXEL = 12_000  # live activations a pixel of the picture: the measured peak at 832x480 and 1280x720, bf16
TILE_PIXELS = 272 * 272
CONTEXT_SLACK = GIB  # kernels' workspaces, and what lies between the allocator's blocks


def free_device_bytes(device: torch.device) -> int:
    """Memory of a GPU that this process could take: free, or held by its allocator and unused."""
    import torch

    index = torch.cuda.current_device() if device.index is None else device.index  # the fraction wants a number
    free, _ = torch.cuda.mem_get_info(index)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limit = torch.cuda.get_per_process_memory_fraction(index) * torch.cuda.get_device_properties(device).total_memory
    return int(min(free + unused, limit - torch.cuda.memory_allocated(device)))


def free_host_bytes() -> int:
    """Memory that a process could still take, of the machine and of its container."""
    if not MEMINFO.exists():
        return int(_psutil().virtual_memory().available)
    fields = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="utf-8").splitlines())
    return min([int(fields["MemAvailable"].split()[0]) * 1024, *(limit.free_bytes for limit in memory_limits())])


def obtainable_host_bytes() -> int:
    """Memory beside the device that this process could have in all, with what it holds already."""
    return free_host_bytes() + _own_bytes()


def _own_bytes() -> int:
    """What this process has for itself: pages of files that it has mapped count as free already."""
    if not MEMINFO.exists():
        return int(_psutil().Process().memory_full_info().uss)
    _, resident, shared, *_ = map(int, HELD.read_text(encoding="utf-8").split())
    return (resident - shared) * mmap.PAGESIZE


def total_host_bytes() -> int:
    """All memory of the machine."""
    if not MEMINFO.exists():
        return int(_psutil().virtual_memory().total)
    return os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE


def _psutil() -> Any:
    """Where the system has no /proc: Windows and macOS. It comes with accelerate."""
    import psutil

    return psutil


@dataclass(frozen=True)
class WindowNeed:
    """What one window of a transformer needs beside its weights.

    activation_bytes: largest sum of live activations in a block. context_bytes: keys and values that steps share.
    """

    activation_bytes: int
    context_bytes: int

    @property
    def total(self) -> int:
        return self.activation_bytes + self.context_bytes + CONTEXT_SLACK


def window_need(
    num_tokens: int, latent_frames: int, dim: int, ffn_dim: int, num_layers: int, *,
    audio_tokens: int = 32, num_speakers: int = 1, num_texts: int = 1, num_speeches: int = 1, element_size: int = 2,
) -> WindowNeed:  # fmt: skip
    """Estimate for a window of `num_tokens` video tokens.

    num_texts, num_speeches: prompts (with the negative) and sounds (with null sound) whose contexts are held.
    """
    attention = num_tokens * dim * element_size * 9  # hidden, normed, query, key, value, outputs and 8-bit copies
    feed_forward = num_tokens * (dim * element_size * 4 + ffn_dim * element_size * 2)
    text = num_layers * 2 * (IMAGE_TOKENS + PROMPT_TOKENS) * dim * element_size
    speech = num_layers * 2 * latent_frames * audio_tokens * dim * element_size
    return WindowNeed(max(attention, feed_forward), num_texts * text + (num_speeches + num_speakers - 1) * speech)


def vae_bytes(width: int, height: int, num_frames: int, tiled: bool, element_size: int = 2) -> int:
    """Estimate of what decoding or encoding a clip needs beside the VAE's weights, the finished clip included."""
    pixels = width * height
    working = min(pixels, TILE_PIXELS) if tiled else pixels
    clip = 3 * num_frames * pixels * (element_size + 4) * (2 if tiled else 1)
    return working * VAE_BYTES_PER_PIXEL * element_size // 2 + clip + CONTEXT_SLACK
