"""The VAE's convolutions on the matrix units, as a product of pixels with taps, without unfolding anything in memory.

One program makes a tile of rows x columns of one frame: for every tap and slice of channels the copy engine brings the
shifted tile, with zeros where it reaches beyond the picture. Output channels are made in up to two parts, so that 96
and 192 are no waste. Bias and residual are added before the result is rounded.
Legend: [T, H, W, C] frames, rows, columns, channels; N output channels; K taps * C, a row of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

GRAIN = 16  # channels that a slice holds at least
ROWS, COLUMNS = 8, 16  # of a tile


@triton.jit
def _conv(
    x, weight, other_weight, bias, residual, other_residual, out, other_out, tiles_down, tiles_across, parts, first_row,
    first_column, C: tl.constexpr, N: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    STEP: tl.constexpr, HALVE: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, OTHER_N: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """STEP: frames between outputs. HALVE: every second row and column; x is then [T, H/2, 2, W/2, 2 * C]."""
    tile, channel = tl.program_id(0) // parts, tl.program_id(0) % parts * (BLOCK_N + OTHER_N)
    column, row = tile % tiles_across * COLUMNS, tile // tiles_across % tiles_down * ROWS
    frame = tile // (tiles_across * tiles_down)
    SLICES: tl.constexpr = C // BLOCK_C
    total = tl.zeros((ROWS * COLUMNS, BLOCK_N), tl.float32)
    if OTHER_N > 0:
        other_total = tl.zeros((ROWS * COLUMNS, OTHER_N), tl.float32)
    for step in tl.range(0, KT * KH * KW * SLICES, num_stages=STAGES):
        tap, part = step // SLICES, step % SLICES * BLOCK_C
        t, down, right = frame * STEP + tap // (KH * KW), tap // KW % KH, tap % KW
        if HALVE:
            pixels = x.load([t, row + down // 2, down % 2, column + right // 2, right % 2 * C + part])
        else:
            pixels = x.load([t, row + down + first_row, column + right + first_column, part])
        pixels = pixels.reshape(ROWS * COLUMNS, BLOCK_C)
        total = tl.dot(pixels, weight.load([channel, step * BLOCK_C]).T, total)
        if OTHER_N > 0:
            other_total = tl.dot(pixels, other_weight.load([channel + BLOCK_N, step * BLOCK_C]).T, other_total)
    _finish(total, bias, residual, out, frame, row, column, channel, N, BIAS, RESIDUAL, ROWS, COLUMNS, BLOCK_N)
    if OTHER_N > 0:
        _finish(
            other_total, bias, other_residual, other_out, frame, row, column, channel + BLOCK_N, N, BIAS, RESIDUAL,
            ROWS, COLUMNS, OTHER_N,
        )  # fmt: skip


@triton.jit
def _finish(
    total, bias, residual, out, frame, row, column, channel,
    N: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    channels = channel + tl.arange(0, BLOCK_N)
    if BIAS:
        total += tl.load(bias + channels, mask=channels < N, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        total += residual.load([frame, row, column, channel]).reshape(ROWS * COLUMNS, BLOCK_N).to(tl.float32)
    out.store([frame, row, column, channel], total.to(out.dtype).reshape(1, ROWS, COLUMNS, BLOCK_N))


@dataclass(frozen=True)
class Taps:
    """Which input pixels an output pixel sees: `size` (frames, rows, columns) of them, the first one `first` (row,
    column) away from it; an output frame every `step` frames; halve: an output row and column every second one."""

    size: tuple[int, int, int]
    first: tuple[int, int] = (0, 0)
    step: int = 1
    halve: bool = False


def weight_rows(weight: Tensor) -> Tensor:
    """[N, C, ...] -> [N, taps * C], channels fastest and padded to the grain; the same memory if it lies like that."""
    last = weight.movedim(1, -1)
    return F.pad(last, (0, -weight.shape[1] % GRAIN)).flatten(1) if weight.shape[1] % GRAIN else last.flatten(1)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    taps: Taps,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x [T, H, W, C], weight [N, taps * C] -> [T', H', W', N], written to `out` (any strides) if it is given.

    residual: [T', H', W', N], added.
    """
    if x.shape[-1] % GRAIN:
        x = F.pad(x, (0, -x.shape[-1] % GRAIN))
    frames, height, width, channels = x.shape
    if taps.halve:
        height, width = height // 2, width // 2
        x = x.view(frames, height, 2, width, 2 * channels)
    frames, num_out = (frames - taps.size[0]) // taps.step + 1, weight.shape[0]
    if out is None:  # a pixel's channels take a multiple of 16 bytes
        out = x.new_empty(frames, height, width, -(-num_out // 8) * 8)[..., :num_out]
    block_c = next(size for size in (64, 32, 16) if channels % size == 0)
    block_n, other_n, warps, stages = _shape_of(num_out)
    parts = triton.cdiv(num_out, block_n + other_n)
    down, across = triton.cdiv(height, ROWS), triton.cdiv(width, COLUMNS)
    added = out if residual is None else residual

    def part(tensor: Tensor, size: int) -> TensorDescriptor:
        return _descriptor(tensor, (1, ROWS, COLUMNS, size))

    tile = (1, ROWS, 1, COLUMNS, block_c) if taps.halve else (1, ROWS, COLUMNS, block_c)
    other = other_n or block_n
    _conv[(frames * down * across * parts,)](
        _descriptor(x, tile), _descriptor(weight, (block_n, block_c)), _descriptor(weight, (other, block_c)),
        weight if bias is None else bias, part(added, block_n), part(added, other), part(out, block_n),
        part(out, other), down, across, parts, *taps.first, C=channels, N=num_out, KT=taps.size[0], KH=taps.size[1],
        KW=taps.size[2], STEP=taps.step, HALVE=taps.halve, BIAS=bias is not None, RESIDUAL=residual is not None,
        ROWS=ROWS, COLUMNS=COLUMNS, BLOCK_C=block_c, BLOCK_N=block_n, OTHER_N=other_n, STAGES=stages, num_warps=warps,
    )  # fmt: skip
    return out


def _shape_of(num_out: int) -> tuple[int, int, int, int]:
    """Output channels of a program's two parts, its warps, the tiles fetched ahead: the fastest on an H200."""
    if num_out % 192 == 0:
        return 128, 64, 4, 3
    if num_out % 96 == 0:
        return 64, 32, 4, 4
    return min(128, max(16, triton.next_power_of_2(num_out))), 0, 4, 4


def _descriptor(x: Tensor, block: tuple[int, ...]) -> TensorDescriptor:
    return TensorDescriptor(x, list(x.shape), list(x.stride()), list(block))
