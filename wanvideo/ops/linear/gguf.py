"""GGUF's block formats: raw blocks as they lie in the file, widened on the device that multiplies them.

A row of K weights is K / block_size blocks of block_bytes bytes, each with its own scales. Legend: N output features,
K input features, B blocks. Source: the layouts of ggml; float32 results are those of `gguf.quants.dequantize`, bit by
bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..row_blocks import row_blocks
from .layer import Linear

SUPER_BLOCK = 256  # weights of a K-format's block
HALF = 2  # bytes of a float16


@dataclass(frozen=True)
class Layout:
    """One block format. widen: blocks [B, block_bytes] uint8 -> weights [B, block_size] float32."""

    block_size: int
    block_bytes: int
    widen: Callable[[Tensor], Tensor]

    def row_bytes(self, columns: int) -> int:
        return columns // self.block_size * self.block_bytes


def _split(blocks: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    return blocks.split((*sizes, blocks.shape[1] - sum(sizes)), 1)


def _half(data: Tensor) -> Tensor:
    """[B, 2n] bytes -> n float16 numbers, as float32 [B, n]."""
    return data.contiguous().view(torch.float16).float()


def _fields(data: Tensor, bits: int) -> Tensor:
    """[..., n] bytes -> [..., 8 / bits, n]: their fields of so many bits, the lowest first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)[:, None]
    return (data.unsqueeze(-2) >> shifts) & ((1 << bits) - 1)


def _fifth_bits(data: Tensor) -> Tensor:
    """[B, 4] bytes -> [B, 32]: bit i of the 32."""
    return _fields(data, 1).transpose(1, 2).reshape(-1, 32)


def _q4_0(blocks: Tensor) -> Tensor:
    scale, low = _split(blocks, HALF)
    return _half(scale) * (_fields(low, 4).flatten(1).to(torch.int8) - 8).float()


def _q4_1(blocks: Tensor) -> Tensor:
    scale, least, low = _split(blocks, HALF, HALF)
    return _half(scale) * _fields(low, 4).flatten(1).float() + _half(least)


def _q5_0(blocks: Tensor) -> Tensor:
    scale, high, low = _split(blocks, HALF, 4)
    codes = _fields(low, 4).flatten(1) | (_fifth_bits(high) << 4)
    return _half(scale) * (codes.to(torch.int8) - 16).float()


def _q5_1(blocks: Tensor) -> Tensor:
    scale, least, high, low = _split(blocks, HALF, HALF, 4)
    codes = _fields(low, 4).flatten(1) | (_fifth_bits(high) << 4)
    return _half(scale) * codes.float() + _half(least)


def _q8_0(blocks: Tensor) -> Tensor:
    scale, codes = _split(blocks, HALF)
    return _half(scale) * codes.contiguous().view(torch.int8).float()


def _q2_k(blocks: Tensor) -> Tensor:
    scales, low, scale, least = _split(blocks, SUPER_BLOCK // 16, SUPER_BLOCK // 4, HALF)
    steps = (_half(scale) * (scales & 15).float())[..., None]
    offsets = (_half(least) * (scales >> 4).float())[..., None]
    codes = _fields(low.reshape(-1, 2, 32), 2).reshape(-1, 16, 16).float()
    return (steps * codes - offsets).flatten(1)


def _q3_k(blocks: Tensor) -> Tensor:
    high, low, packed, scale = _split(blocks, SUPER_BLOCK // 8, SUPER_BLOCK // 4, 12)
    lower = _fields(packed[:, :8], 4).flatten(1)
    upper = _fields(packed[:, 8:], 2).flatten(1)
    scales = (lower | (upper << 4)).to(torch.int8) - 32
    steps = (_half(scale) * scales.float())[..., None]
    codes = _fields(low.reshape(-1, 2, 32), 2).reshape(-1, 16, 16).to(torch.int8)
    missing = (_fields(high, 1).reshape(-1, 16, 16) ^ 1) << 2
    return (steps * (codes - missing.to(torch.int8)).float()).flatten(1)


def _steps_offsets(scale: Tensor, least: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
    """The 8 steps and 8 offsets of Q4_K and Q5_K, 6 bits each in 12 bytes: [B, 8, 1] both."""
    steps, offsets, rest = packed.split(4, 1)
    steps = torch.cat((steps & 63, (rest & 15) | ((steps >> 6) << 4)), 1)
    offsets = torch.cat((offsets & 63, (rest >> 4) | ((offsets >> 6) << 4)), 1)
    return (_half(scale) * steps.float())[..., None], (_half(least) * offsets.float())[..., None]


def _q4_k(blocks: Tensor) -> Tensor:
    scale, least, packed, low = _split(blocks, HALF, HALF, 12)
    steps, offsets = _steps_offsets(scale, least, packed)
    codes = _fields(low.reshape(-1, 4, 32), 4).reshape(-1, 8, 32).float()
    return (steps * codes - offsets).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    scale, least, packed, high, low = _split(blocks, HALF, HALF, 12, 32)
    steps, offsets = _steps_offsets(scale, least, packed)
    codes = _fields(low.reshape(-1, 4, 32), 4).reshape(-1, 8, 32) | (_fields(high, 1) << 4)
    return (steps * codes.float() - offsets).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    low, high, scales, scale = _split(blocks, SUPER_BLOCK // 2, SUPER_BLOCK // 4, SUPER_BLOCK // 16)
    steps = _half(scale) * scales.contiguous().view(torch.int8).float()
    codes = _fields(low.reshape(-1, 2, 64), 4).reshape(-1, 8, 32)
    codes = codes | (_fields(high.reshape(-1, 2, 32), 2).reshape(-1, 8, 32) << 4)
    codes = (codes.to(torch.int8) - 32).reshape(-1, 16, 16)
    return (steps[..., None] * codes.float()).flatten(1)


LAYOUTS = {
    "Q4_0": Layout(32, 18, _q4_0),
    "Q4_1": Layout(32, 20, _q4_1),
    "Q5_0": Layout(32, 22, _q5_0),
    "Q5_1": Layout(32, 24, _q5_1),
    "Q8_0": Layout(32, 34, _q8_0),
    "Q2_K": Layout(SUPER_BLOCK, 84, _q2_k),
    "Q3_K": Layout(SUPER_BLOCK, 110, _q3_k),
    "Q4_K": Layout(SUPER_BLOCK, 144, _q4_k),
    "Q5_K": Layout(SUPER_BLOCK, 176, _q5_k),
    "Q6_K": Layout(SUPER_BLOCK, 210, _q6_k),
}


class GGUFLinear(Linear):
    """weight [N, bytes of a row] uint8: the blocks of every row, widened a few rows at a time for each call."""

    def __init__(self, in_features: int, out_features: int, bias: bool, layout: Layout) -> None:
        super().__init__(in_features, out_features, bias)
        self.layout = layout
        packed = torch.empty(out_features, layout.row_bytes(in_features), dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        dense = torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.weight.device)
        for start, stop in row_blocks(self.out_features, self.in_features, self.weight.device):
            blocks = self.weight[start:stop].reshape(-1, self.layout.block_bytes)
            dense[start:stop] = self.layout.widen(blocks).view(stop - start, self.in_features)
        return dense
