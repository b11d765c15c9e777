"""Attention kernels for shapes that the general backends serve badly.

`few_keys`: every group of tokens (a latent frame) has its own handful of keys, and queries may first be turned to a
fractional label position. `two_sets`: the sum of two attentions to short sets of keys, in one pass over the queries.
`region_scores`: how much attention tokens pay to a few regions of one frame.
Legend: G groups, L tokens of a group, M keys, N heads, D head width (128), R regions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_KEYS = 128
LOG2_E = 1.4426950408889634


@triton.jit
def _few_keys(
    query, key, value, positions, frequencies, out, L, M, scale,
    ROTATE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
    N: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    keys, columns, pairs = tl.arange(0, BLOCK_M), tl.arange(0, D), tl.arange(0, D // 2)
    token, inside = (group * L + rows)[:, None], rows[:, None] < L
    if ROTATE:  # the turn is the same for all heads
        position = tl.load(positions + group * L + rows, mask=rows < L, other=0.0)
        angle = position[:, None] * tl.load(frequencies + pairs)[None, :]
        cos, sin = tl.cos(angle), tl.sin(angle)
    for step in range(HEADS):
        head = tl.program_id(2) * HEADS + step
        q = tl.load(query + (token * N + head) * D + columns[None, :], mask=inside, other=0.0)
        base = ((group * M + keys) * N + head) * D
        if ROTATE:
            even, odd = tl.split(tl.reshape(q, (BLOCK_L, D // 2, 2)))
            even, odd = even.to(tl.float32), odd.to(tl.float32)
            q = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK_L, D)).to(q.dtype)
        k = tl.load(key + base[None, :] + columns[:, None], mask=keys[None, :] < M, other=0.0)
        scores = tl.dot(q, k, input_precision=PRECISION) * scale
        scores = tl.where(keys[None, :] < M, scores, float("-inf"))
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        weights = weights / tl.sum(weights, 1)[:, None]
        v = tl.load(value + base[:, None] + columns[None, :], mask=keys[:, None] < M, other=0.0)
        result = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        tl.store(out + (token * N + head) * D + columns[None, :], result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _softmax_sum(
    q, key, value, last_bias, head, scale, N, M: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Attention of a tile of queries to M keys of one head; `last_bias` is added to the last key's score."""
    columns = tl.arange(0, D)
    peak = tl.full((BLOCK_L,), -1.0e30, tl.float32)
    total = tl.zeros((BLOCK_L,), tl.float32)
    result = tl.zeros((BLOCK_L, D), tl.float32)
    for start in range(0, M, BLOCK_M):
        keys = start + tl.arange(0, BLOCK_M)
        base = (keys * N + head) * D
        k = tl.load(key + base[None, :] + columns[:, None], mask=keys[None, :] < M, other=0.0)
        v = tl.load(value + base[:, None] + columns[None, :], mask=keys[:, None] < M, other=0.0)
        bias = tl.where(keys == M - 1, last_bias, tl.where(keys < M, 0.0, -1.0e30))
        scores = tl.dot(q, k, input_precision=PRECISION) * scale + bias[None, :]
        higher = tl.maximum(peak, tl.max(scores, 1))
        fade = tl.exp2(peak - higher)
        weights = tl.exp2(scores - higher[:, None])
        total = total * fade + tl.sum(weights, 1)
        result = tl.dot(weights.to(v.dtype), v, result * fade[:, None], input_precision=PRECISION)
        peak = higher
    return result / total[:, None]


@triton.jit
def _two_sets(
    query, key, value, other_key, other_value, out, L, N, scale, last_bias,
    M: tl.constexpr, OTHER_M: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    place = (rows[:, None].to(tl.int64) * N + head) * D + tl.arange(0, D)[None, :]
    q = tl.load(query + place, mask=rows[:, None] < L, other=0.0)
    result = _softmax_sum(q, key, value, last_bias, head, scale, N, M, PRECISION, BLOCK_L, BLOCK_M, D)
    if OTHER_M > 0:
        result += _softmax_sum(q, other_key, other_value, 0.0, head, scale, N, OTHER_M, PRECISION, BLOCK_L, BLOCK_M, D)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=rows[:, None] < L)


@triton.jit
def _region_scores(
    query, key, regions, out, L, R, N, scale, M: tl.constexpr, EXACT: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """regions [R + 1, M]: the last row is all ones, so that its sum is the softmax's denominator; keys beyond M are
    in no row and need no other mask."""
    head = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    columns, region = tl.arange(0, D), tl.arange(0, BLOCK_R)
    row_start = (rows[:, None].to(tl.int64) * N + head) * D
    q = tl.load(query + row_start + columns[None, :], mask=rows[:, None] < L, other=0.0)
    peak = tl.full((BLOCK_L,), -1.0e30, tl.float32)
    sums = tl.zeros((BLOCK_L, BLOCK_R), tl.float32)
    for start in range(0, M, BLOCK_M):
        keys = start + tl.arange(0, BLOCK_M)
        key_start = (keys[None, :] * N + head) * D
        k = tl.load(key + key_start + columns[:, None], mask=keys[None, :] < M, other=0.0)
        member = (region[None, :] <= R) & (keys[:, None] < M)
        inside = tl.load(regions + region[None, :] * M + keys[:, None], mask=member, other=0.0)
        scores = tl.dot(q, k, input_precision="ieee" if EXACT else "tf32")
        higher = tl.maximum(peak, tl.max(scores, 1) * scale)
        fade = tl.exp2(peak - higher)
        if EXACT:
            weights = tl.exp2(scores * scale - higher[:, None])
        else:  # two halves an instruction; the weights are halves in the product below anyway
            weights = tl.inline_asm_elementwise(
                "ex2.approx.f16x2 $0, $1;", "=r,r", [(scores * scale - higher[:, None]).to(tl.float16)],
                tl.float16, True, 2,
            )  # fmt: skip
        sums = tl.dot(weights, inside, sums * fade[:, None], input_precision="ieee" if EXACT else "tf32")
        peak = higher
    total = tl.sum(tl.where(region[None, :] == R, sums, 0.0), 1)
    target = out + (head * R + region[None, :]).to(tl.int64) * L + rows[:, None]
    tl.store(target, sums / total[:, None], mask=(region[None, :] < R) & (rows[:, None] < L))


def _precision(x: Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 else "tf32"


def few_keys(query: Tensor, key: Tensor, value: Tensor, positions: Tensor | None) -> Tensor:
    """query [G, L, N, D], key and value [G, M, N, D], all contiguous, positions [G * L] float32 or None."""
    groups, length, heads, width = query.shape
    num_keys = key.shape[1]
    out = torch.empty_like(query)
    frequencies = query
    if positions is not None:
        exponents = torch.arange(0, width, 2, dtype=torch.float64, device=query.device) / width
        frequencies = (10000.0**-exponents).float()
    rotated = positions is not None
    block = 64 if query.dtype != torch.float32 else 32
    per_program = heads if rotated else 1
    _few_keys[(triton.cdiv(length, block), groups, heads // per_program)](
        query, key, value, positions if rotated else query, frequencies, out, length, num_keys, LOG2_E * width**-0.5,
        ROTATE=rotated, PRECISION=_precision(query), BLOCK_L=block, BLOCK_M=max(16, triton.next_power_of_2(num_keys)),
        N=heads, HEADS=per_program, D=width, num_warps=4,
    )  # fmt: skip
    return out


def two_sets(
    query: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor] | None, last_bias: float
) -> Tensor:
    """query [L, N, D], keys and values [M, N, D] (all contiguous) -> [L, N, D].

    last_bias: added to the score of the first set's last key.
    """
    length, heads, width = query.shape
    other = second or first
    out = torch.empty_like(query)
    exact = query.dtype == torch.float32
    block = 32 if exact else 128
    _two_sets[(triton.cdiv(length, block), heads)](
        query, *first, *other, out, length, heads, LOG2_E * width**-0.5, LOG2_E * last_bias, M=first[0].shape[0],
        OTHER_M=other[0].shape[0] if second else 0, PRECISION=_precision(query), BLOCK_L=block, BLOCK_M=64,
        D=width, num_warps=4 if exact else 8,
    )  # fmt: skip
    return out


def region_scores(query: Tensor, key: Tensor, regions: Tensor) -> Tensor:
    """query [L, N, D], key [M, N, D] (contiguous), regions [R, M] of zeros and ones -> [R, L] float32.

    The softmax weights that fall into each region, averaged over the heads.
    """
    length, heads, width = query.shape
    num_regions, num_keys = regions.shape
    out = query.new_empty(heads, num_regions, length, dtype=torch.float32)
    exact = query.dtype == torch.float32
    block = 32 if exact else 128
    members = torch.cat((regions, torch.ones_like(regions[:1]))).to(torch.float32 if exact else torch.float16)
    _region_scores[(triton.cdiv(length, block), heads)](
        query, key, members, out, length, num_regions, heads, LOG2_E * width**-0.5, M=num_keys, EXACT=exact,
        BLOCK_L=block, BLOCK_M=64, BLOCK_R=max(16, triton.next_power_of_2(num_regions + 1)), D=width, num_warps=4,
    )  # fmt: skip
    return out.mean(0)
