"""Attention to a few keys with the projections absorbed: keys times the query projection, values times the output's.

Matrices are 16-bit numbers, or fp8 e4m3 where the projection is. Then `absorb_keys` and `absorb_values` write fp8
without a look at the result: a sum of stored weights (at most 448) times a vector is at most 448 times that vector's
absolute sum, and e4m3, a floating-point format, loses nothing with a bound some thirty times above what is usual.
Legend: G groups, L tokens of a group, M keys of a group, N heads, E head width, D model width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..quantized import FP8, QuantizedRows
from . import dot_precision, has_large_tiles

FULL_WEIGHT = 256.0  # what a softmax weight of 1 is in fp8
TILE = {"BLOCK_L": 128, "BLOCK_N": 256, "STAGES": 3, "num_warps": 8}


class Absorbed(NamedTuple):
    """Keys [G, N * M, D] or values [G, D, N * M] with a projection absorbed.

    scale: what fp8 numbers are to be multiplied by, float32: [G, N * M] of keys, [G] of values (beside the scale of the
    projection's rows). bias [G, N * M] float32: of the query projection, absorbed into keys alike.
    """

    data: Tensor
    scale: Tensor | None
    bias: Tensor | None


@triton.jit
def _absorb_keys(
    key, weight, weight_scale, bias, out, out_scale, out_bias, G, N, factor,
    D: tl.constexpr, M: tl.constexpr, E: tl.constexpr, QUANTIZED: tl.constexpr, PRECISION: tl.constexpr,
    GROUPS: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """key [G * M, N, E] times weight [N * E, D], head by head -> out [G, N * M, D]."""
    head, inner = tl.program_id(1), tl.arange(0, E)
    group = tl.program_id(0) * GROUPS
    row = group * M + tl.arange(0, GROUPS * M)
    k = tl.load(key + (row[:, None] * N + head) * E + inner[None, :], mask=row[:, None] < G * M, other=0.0)
    k = k.to(tl.float32) * factor
    if QUANTIZED:  # a softmax does not see what a group's keys have in common, and rounding does
        of_groups = tl.reshape(k, (GROUPS, M, E))
        k = tl.reshape(of_groups - tl.sum(of_groups, 1)[:, None, :] / M, (GROUPS * M, E))
    target = ((row // M) * N + head) * M + row % M
    shift = tl.sum(k * tl.load(bias + head * E + inner).to(tl.float32)[None, :], 1)
    tl.store(out_bias + target, shift, mask=row < G * M)
    if QUANTIZED:
        k = k * tl.load(weight_scale + head * E + inner)[None, :]
        bound = tl.maximum(tl.sum(tl.abs(k), 1), 1e-30)
        k = k / bound[:, None]
        tl.store(out_scale + target, bound, mask=row < G * M)
    k = k.to(key.dtype.element_ty)
    for start in tl.range(0, D, BLOCK_D, num_stages=STAGES):
        product = tl.dot(k, weight.load([head * E, start]).to(k.dtype), input_precision=PRECISION)
        out.store([group, head * M, start], tl.reshape(product, (GROUPS, M, BLOCK_D)).to(out.dtype))


@triton.jit
def _absorb_values(
    value, weight, bound, out, G, N,
    D: tl.constexpr, M: tl.constexpr, E: tl.constexpr, QUANTIZED: tl.constexpr, PRECISION: tl.constexpr,
    GROUPS: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """weight [D, N * E] times value [G * M, N, E], head by head -> out [G, D, N * M]."""
    head, inner = tl.program_id(1), tl.arange(0, E)
    group = tl.program_id(0) * GROUPS
    row = group * M + tl.arange(0, GROUPS * M)
    v = tl.load(value + (row[:, None] * N + head) * E + inner[None, :], mask=row[:, None] < G * M, other=0.0)
    if QUANTIZED:
        v = (v.to(tl.float32) / tl.load(bound + row // M, mask=row < G * M, other=1.0)[:, None]).to(v.dtype)
    for start in tl.range(0, D, BLOCK_D, num_stages=STAGES):
        product = tl.dot(weight.load([start, head * E]).to(v.dtype), v.T, input_precision=PRECISION)
        groups = tl.permute(tl.reshape(product, (BLOCK_D, GROUPS, M)), (1, 0, 2))
        out.store([group, start, head * M], groups.to(out.dtype))


@triton.jit
def _products(
    x, y, group, row, column, DEPTH: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of x [G, L, DEPTH] times y [G, columns, DEPTH], both by descriptors: [BLOCK_L, BLOCK_N]."""
    total = tl.zeros((BLOCK_L, BLOCK_N), tl.float32)
    for step in tl.range(0, DEPTH // BLOCK_K, num_stages=STAGES):
        rows = x.load([group, row, step * BLOCK_K]).reshape(BLOCK_L, BLOCK_K)
        columns = y.load([group, column, step * BLOCK_K]).reshape(BLOCK_N, BLOCK_K)
        total = tl.dot(rows, columns.T, total)
    return total


@triton.jit
def _absorbed_weights(
    x, x_scale, key, key_scale, bias, out, tiles, parts, L, columns,
    D: tl.constexpr, M: tl.constexpr, QUANTIZED: tl.constexpr, FULL: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Softmax, head by head, of x [G, L, D] times key [G, N * M, D] plus bias [G, N * M], times FULL."""
    part, tile = tl.program_id(0) % parts, tl.program_id(0) // parts
    group, row = tile // tiles, tile % tiles * BLOCK_L
    scores = _products(x, key, group, row, part * BLOCK_N, D, BLOCK_L, BLOCK_N, BLOCK_K, STAGES)
    column = group * columns + part * BLOCK_N + tl.arange(0, BLOCK_N)
    if QUANTIZED:
        rows = row + tl.arange(0, BLOCK_L)
        scores *= tl.load(x_scale + group * L + rows, mask=rows < L, other=0.0)[:, None]
        scores *= tl.load(key_scale + column)[None, :]
    scores += tl.load(bias + column)[None, :]
    heads = tl.reshape(scores, (BLOCK_L, BLOCK_N // M, M))
    weights = tl.exp2(heads - tl.max(heads, 2)[:, :, None])
    weights = weights * (FULL / tl.sum(weights, 2)[:, :, None])
    out.store([group, row, part * BLOCK_N], tl.reshape(weights, (1, BLOCK_L, BLOCK_N)).to(out.dtype))


@triton.jit
def _absorbed_sum(
    weights, value, row_scale, bound, bias, out, tiles, parts,
    KEYS: tl.constexpr, QUANTIZED: tl.constexpr, FULL: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """weights [G, L, N * M] times value [G, D, N * M] plus bias [D]."""
    part, tile = tl.program_id(0) % parts, tl.program_id(0) // parts
    group, row = tile // tiles, tile % tiles * BLOCK_L
    total = _products(weights, value, group, row, part * BLOCK_N, KEYS, BLOCK_L, BLOCK_N, BLOCK_K, STAGES)
    column = part * BLOCK_N + tl.arange(0, BLOCK_N)
    if QUANTIZED:
        total *= (tl.load(row_scale + column) * (tl.load(bound + group) / FULL))[None, :]
    total += tl.load(bias + column).to(tl.float32)[None, :]
    out.store([group, row, part * BLOCK_N], tl.reshape(total, (1, BLOCK_L, BLOCK_N)).to(out.dtype))


def fits(num_heads: int, num_keys: int, width: int) -> bool:
    """Whether whole tiles cover these sizes."""
    whole = num_keys in (16, 32, 64) and num_heads * num_keys % TILE["BLOCK_N"] == 0
    return whole and width % TILE["BLOCK_N"] == 0


def absorb_keys(key: Tensor, weight: Tensor, weight_scale: Tensor | None, bias: Tensor, factor: float) -> Absorbed:
    """key [G, M, N, E] times factor and weight [N * E, D], whose rows are fp8 if they have a scale [N * E, 1]."""
    groups, num_keys, heads, head_width = key.shape
    width, quantized = weight.shape[1], weight_scale is not None
    out = key.new_empty(groups, heads * num_keys, width, dtype=FP8 if quantized else key.dtype)
    scale, shift = (key.new_empty(out.shape[:2], dtype=torch.float32) for _ in range(2))
    tile = _absorb_tile(key, 128)
    _absorb_keys[(triton.cdiv(groups, tile["GROUPS"]), heads)](
        key, _descriptor(weight, head_width, tile["BLOCK_D"]), weight_scale if quantized else bias, bias,
        _descriptor(out, tile["GROUPS"], num_keys, tile["BLOCK_D"]), scale, shift, groups, heads, factor,
        D=width, M=num_keys, E=head_width, QUANTIZED=quantized, PRECISION=dot_precision(key), **tile,
    )  # fmt: skip
    return Absorbed(out, scale if quantized else None, shift)


def absorb_values(value: Tensor, weight: Tensor) -> Absorbed:
    """value [G, M, N, E] times weight [D, N * E], which may be fp8; the scale of its rows belongs to `absorbed_sum`."""
    groups, num_keys, heads, head_width = value.shape
    width, quantized = weight.shape[0], weight.dtype == FP8
    out = value.new_empty(groups, width, heads * num_keys, dtype=FP8 if quantized else value.dtype)
    bound = None
    if quantized:
        bound = torch.linalg.vector_norm(value, 1, -1, dtype=torch.float32).amax((1, 2)).clamp_min(1e-30)
    tile = _absorb_tile(value, 256)
    _absorb_values[(triton.cdiv(groups, tile["GROUPS"]), heads)](
        value, _descriptor(weight, tile["BLOCK_D"], head_width), bound if quantized else value,
        _descriptor(out, tile["GROUPS"], tile["BLOCK_D"], num_keys), groups, heads,
        D=width, M=num_keys, E=head_width, QUANTIZED=quantized, PRECISION=dot_precision(value), **tile,
    )  # fmt: skip
    return Absorbed(out, bound, None)


def absorbed_weights(x: Tensor | QuantizedRows, key: Absorbed, num_keys: int, dtype: torch.dtype) -> Tensor:
    """x [G * L, D] and absorbed keys whose scores are in units of log 2 -> weights [G, L, N * M] for `absorbed_sum`."""
    quantized = isinstance(x, QuantizedRows)
    data, scale = x if isinstance(x, QuantizedRows) else (x, key.bias)
    groups, columns, width = key.data.shape
    data = data.view(groups, -1, width)
    length = data.shape[1]
    out = data.new_empty(groups, length, columns, dtype=dtype)
    tiles, parts, depth = triton.cdiv(length, TILE["BLOCK_L"]), columns // TILE["BLOCK_N"], _depth(data)
    _absorbed_weights[(groups * tiles * parts,)](
        _descriptor(data, 1, TILE["BLOCK_L"], depth), scale,
        _descriptor(key.data, 1, TILE["BLOCK_N"], depth), key.scale if quantized else key.bias, key.bias,
        _descriptor(out, 1, TILE["BLOCK_L"], TILE["BLOCK_N"]), tiles, parts, length, columns,
        D=width, M=num_keys, QUANTIZED=quantized, FULL=full_weight(dtype), BLOCK_K=depth, **TILE,
    )  # fmt: skip
    return out


def absorbed_sum(weights: Tensor, value: Absorbed, row_scale: Tensor | None, bias: Tensor) -> Tensor:
    """weights [G, L, N * M] times absorbed values plus bias [D] -> [G * L, D] in the dtype of bias.

    row_scale: [D, 1] of an fp8 projection.
    """
    groups, length, keys = weights.shape
    width = value.data.shape[1]
    quantized = row_scale is not None
    out = bias.new_empty(groups, length, width)
    tiles, parts, depth = triton.cdiv(length, TILE["BLOCK_L"]), width // TILE["BLOCK_N"], _depth(weights)
    _absorbed_sum[(groups * tiles * parts,)](
        _descriptor(weights, 1, TILE["BLOCK_L"], depth), _descriptor(value.data, 1, TILE["BLOCK_N"], depth),
        row_scale if quantized else bias, value.scale if quantized else bias, bias,
        _descriptor(out, 1, TILE["BLOCK_L"], TILE["BLOCK_N"]), tiles, parts,
        KEYS=keys, QUANTIZED=quantized, FULL=full_weight(weights.dtype), BLOCK_K=depth, **TILE,
    )  # fmt: skip
    return out.flatten(0, 1)


def _absorb_tile(x: Tensor, most: int) -> dict[str, int]:
    """Launch options for as many groups of x [G, M, N, E] together as have `most` keys, or 128 on small GPUs."""
    large = has_large_tiles(x.device)
    groups = (most if large else 128) // x.shape[1]
    return {"GROUPS": groups, "BLOCK_D": 64, "STAGES": 4 if large else 3, "num_warps": 4}


def full_weight(dtype: torch.dtype) -> float:
    """What a softmax weight of 1 is in `dtype`."""
    return FULL_WEIGHT if dtype == FP8 else 1.0


def _depth(x: Tensor) -> int:
    """Columns of a step, 128 bytes."""
    return 128 // x.element_size() if x.dtype != torch.float32 else 64


def _descriptor(x: Tensor, *block: int) -> TensorDescriptor:
    """Blocks of x for the copy engine."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), list(block))
