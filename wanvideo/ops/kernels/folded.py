"""Attention to a few keys with the projections folded in: keys times the query projection, values times the output's.

With fewer keys than the model is wide that is less work than projecting every token, and exact.
Legend: G groups, L tokens of a group, D model width, N heads, J keys of a group.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK_L, BLOCK_N, BLOCK_K = 128, 256, 64
LAUNCH = {"BLOCK_L": BLOCK_L, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K, "STAGES": 3, "num_warps": 8}


@triton.jit
def _folded_weights(
    x, key, bias, out, tiles, parts, columns, D: tl.constexpr, J: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Softmax, head by head, of x [G, L, D] times key [N, G * J, D] plus bias [N, G * J]."""
    HEADS: tl.constexpr = BLOCK_N // J
    part, tile = tl.program_id(0) % parts, tl.program_id(0) // parts
    group, row = tile // tiles, tile % tiles * BLOCK_L
    scores = tl.zeros((BLOCK_L, BLOCK_N), tl.float32)
    for step in tl.range(0, D // BLOCK_K, num_stages=STAGES):
        tokens = x.load([group, row, step * BLOCK_K]).reshape(BLOCK_L, BLOCK_K)
        keys = key.load([part * HEADS, group * J, step * BLOCK_K]).reshape(BLOCK_N, BLOCK_K)
        scores = tl.dot(tokens, keys.T, scores)
    lane = tl.arange(0, BLOCK_N)
    scores += tl.load(bias + (part * HEADS + lane // J) * columns + group * J + lane % J)[None, :]
    heads = tl.reshape(scores, (BLOCK_L, HEADS, J))
    weights = tl.exp2(heads - tl.max(heads, 2)[:, :, None])
    weights = weights / tl.sum(weights, 2)[:, :, None]
    out.store([group, row, part * BLOCK_N], tl.reshape(weights, (1, BLOCK_L, BLOCK_N)).to(out.dtype))


@triton.jit
def _folded_sum(
    weights, value, bias, out, tiles, parts, KEYS: tl.constexpr, J: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """weights [G, L, N * J] times value [N, G * J, D] plus bias [D]."""
    HEADS: tl.constexpr = BLOCK_K // J
    part, tile = tl.program_id(0) % parts, tl.program_id(0) // parts
    group, row = tile // tiles, tile % tiles * BLOCK_L
    total = tl.zeros((BLOCK_L, BLOCK_N), tl.float32)
    for step in tl.range(0, KEYS // BLOCK_K, num_stages=STAGES):
        w = weights.load([group, row, step * BLOCK_K]).reshape(BLOCK_L, BLOCK_K)
        v = value.load([step * HEADS, group * J, part * BLOCK_N]).reshape(BLOCK_K, BLOCK_N)
        total = tl.dot(w, v, total)
    total += tl.load(bias + part * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.float32)[None, :]
    out.store([group, row, part * BLOCK_N], tl.reshape(total, (1, BLOCK_L, BLOCK_N)).to(out.dtype))


def fits(num_heads: int, num_keys: int, width: int) -> bool:
    """Whether whole tiles cover these sizes."""
    whole = num_keys in (16, 32, 64) and num_heads * num_keys % BLOCK_N == 0
    return whole and width % BLOCK_N == 0


def folded_weights(x: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """x [G, L, D], key [N, G * J, D], bias [N, G * J] float32, scores in units of log 2 -> weights [G, L, N * J]."""
    groups, length, width = x.shape
    heads, columns = bias.shape
    num_keys = columns // groups
    out = x.new_empty(groups, length, heads * num_keys)
    tiles, parts = triton.cdiv(length, BLOCK_L), heads * num_keys // BLOCK_N
    _folded_weights[(groups * tiles * parts,)](
        _descriptor(x, (1, BLOCK_L, BLOCK_K)), _descriptor(key, (BLOCK_N // num_keys, num_keys, BLOCK_K)), bias,
        _descriptor(out, (1, BLOCK_L, BLOCK_N)), tiles, parts, columns, D=width, J=num_keys, **LAUNCH,
    )  # fmt: skip
    return out


def folded_sum(weights: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """weights [G, L, N * J], value [N, G * J, D], bias [D] -> [G, L, D]."""
    groups, length, keys = weights.shape
    heads, columns, width = value.shape
    num_keys = columns // groups
    out = weights.new_empty(groups, length, width)
    tiles, parts = triton.cdiv(length, BLOCK_L), width // BLOCK_N
    _folded_sum[(groups * tiles * parts,)](
        _descriptor(weights, (1, BLOCK_L, BLOCK_K)), _descriptor(value, (BLOCK_K // num_keys, num_keys, BLOCK_N)), bias,
        _descriptor(out, (1, BLOCK_L, BLOCK_N)), tiles, parts, KEYS=keys, J=num_keys, **LAUNCH,
    )  # fmt: skip
    return out


def _descriptor(x: Tensor, block: tuple[int, ...]) -> TensorDescriptor:
    return TensorDescriptor(x, list(x.shape), list(x.stride()), list(block))
