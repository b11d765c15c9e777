"""Attention kernels for shapes that the general backends serve badly.

`grouped_attention`: every group of tokens (a latent frame) has its own handful of keys, and queries may first be
rotated to a fractional label position. `dual_context_attention`: the sum of two attentions to short sets of keys, in
one pass over the queries. `region_shares`: how much attention tokens pay to a few regions of one frame. The last two
read their tiles through descriptors where the GPU has a copy engine (USE_DESCRIPTORS), and through pointers elsewhere.
Legend: G groups, L tokens of a group, M keys, N heads, E head width (128), R regions.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.rope import frequencies
from ..quantized import FP8
from . import dot_precision, has_copy_engine, has_large_tiles, softmax_scale

MAX_KEYS = 128
DUAL_CONTEXT = {"BLOCK_L": 64, "BLOCK_M": 64, "num_warps": 4, "num_stages": 3}
REGIONS = {"BLOCK_L": 128, "BLOCK_M": 64, "num_warps": 4, "num_stages": 2}
EXACT_TILES = {"BLOCK_L": 32, "BLOCK_M": 64, "num_warps": 4, "num_stages": 1}


@triton.jit
def _grouped_attention(
    query, key, value, positions, frequencies, out, L, M, scale, full,
    ROTATE: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
    N: tl.constexpr, HEADS: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """SUM: write the weighted sum of values [G, L, N, E], else the weights themselves [G, L, N, M], times `full`."""
    group = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    keys, columns, pairs = tl.arange(0, BLOCK_M), tl.arange(0, E), tl.arange(0, E // 2)
    token, inside = (group * L + rows)[:, None], rows[:, None] < L
    if ROTATE:  # the rotation is the same for all heads
        position = tl.load(positions + group * L + rows, mask=rows < L, other=0.0)
        angle = position[:, None] * tl.load(frequencies + pairs)[None, :]
        cos, sin = tl.cos(angle), tl.sin(angle)
    for step in range(HEADS):
        head = tl.program_id(2) * HEADS + step
        q = tl.load(query + (token * N + head) * E + columns[None, :], mask=inside, other=0.0)
        base = ((group * M + keys) * N + head) * E
        if ROTATE:
            even, odd = tl.split(tl.reshape(q, (BLOCK_L, E // 2, 2)))
            even, odd = even.to(tl.float32), odd.to(tl.float32)
            q = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK_L, E)).to(q.dtype)
        k = tl.load(key + base[None, :] + columns[:, None], mask=keys[None, :] < M, other=0.0)
        scores = tl.dot(q, k, input_precision=PRECISION) * scale
        scores = tl.where(keys[None, :] < M, scores, float("-inf"))
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        weights = weights * (full / tl.sum(weights, 1))[:, None]
        if SUM:
            v = tl.load(value + base[:, None] + columns[None, :], mask=keys[:, None] < M, other=0.0)
            result = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
            tl.store(out + (token * N + head) * E + columns[None, :], result.to(out.dtype.element_ty), mask=inside)
        else:
            place = (token * N + head) * M + keys[None, :]
            tl.store(out + place, weights.to(out.dtype.element_ty), mask=inside & (keys[None, :] < M))


@triton.jit
def _tile(x, start, head, limit, N, E: tl.constexpr, BLOCK: tl.constexpr, USE_DESCRIPTORS: tl.constexpr):
    """BLOCK tokens of one head of x [limit, N, E] from `start` on, zeros behind the last: [BLOCK, E]."""
    if USE_DESCRIPTORS:
        tile = x.load([start, head * E])
    else:
        rows = (start + tl.arange(0, BLOCK))[:, None]
        place = (rows.to(tl.int64) * N + head) * E + tl.arange(0, E)[None, :]
        tile = tl.load(x + place, mask=rows < limit, other=0.0)
    return tile


@triton.jit
def _softmax_sum(
    q, key, value, last_bias, head, scale, N, M: tl.constexpr, PRECISION: tl.constexpr, USE_DESCRIPTORS: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Attention of a tile of queries to M keys of one head; `last_bias` is added to the last key's score."""
    row_max = tl.full((BLOCK_L,), -1.0e30, tl.float32)
    total = tl.zeros((BLOCK_L,), tl.float32)
    result = tl.zeros((BLOCK_L, E), tl.float32)
    for start in range(0, M, BLOCK_M):
        keys = start + tl.arange(0, BLOCK_M)
        k = _tile(key, start, head, M, N, E, BLOCK_M, USE_DESCRIPTORS)
        bias = tl.where(keys == M - 1, last_bias, tl.where(keys < M, 0.0, -1.0e30))
        scores = tl.dot(q, k.T, input_precision=PRECISION) * scale + bias[None, :]
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        rescale = tl.exp2(row_max - new_max)
        weights = tl.exp2(scores - new_max[:, None])
        total = total * rescale + tl.sum(weights, 1)
        v = _tile(value, start, head, M, N, E, BLOCK_M, USE_DESCRIPTORS)
        result = tl.dot(weights.to(v.dtype), v, result * rescale[:, None], input_precision=PRECISION)
        row_max = new_max
    return result / total[:, None]


@triton.jit
def _dual_context_attention(
    query, key, value, other_key, other_value, out_scale, out, L, N, scale, last_bias,
    M: tl.constexpr, OTHER_M: tl.constexpr, PRECISION: tl.constexpr, USE_DESCRIPTORS: tl.constexpr,
    IN_FP8: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    head, start = tl.program_id(1), tl.program_id(0) * BLOCK_L
    q = _tile(query, start, head, L, N, E, BLOCK_L, USE_DESCRIPTORS)
    result = _softmax_sum(q, key, value, last_bias, head, scale, N, M, PRECISION, USE_DESCRIPTORS, BLOCK_L, BLOCK_M, E)
    if OTHER_M > 0:
        result += _softmax_sum(
            q, other_key, other_value, 0.0, head, scale, N, OTHER_M, PRECISION, USE_DESCRIPTORS, BLOCK_L, BLOCK_M, E
        )
    if IN_FP8:
        result *= 1.0 / tl.load(out_scale)
    rows = start + tl.arange(0, BLOCK_L)
    place = (rows[:, None].to(tl.int64) * N + head) * E + tl.arange(0, E)[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=rows[:, None] < L)


@triton.jit
def _region_shares(
    query, key, regions, out, L, R, N, scale, M: tl.constexpr, EXACT: tl.constexpr, USE_DESCRIPTORS: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """regions [M, BLOCK_R]: column R has every key that counts, so that its sum is the softmax's denominator, those
    behind it are zeros. M: whole tiles."""
    head, first = tl.program_id(1), tl.program_id(0) * BLOCK_L
    q = _tile(query, first, head, L, N, E, BLOCK_L, USE_DESCRIPTORS)
    row_max = tl.full((BLOCK_L,), -1.0e30, tl.float32)
    sums = tl.zeros((BLOCK_L, BLOCK_R), tl.float32)
    for start in range(0, M, BLOCK_M):
        k = _tile(key, start, head, M, N, E, BLOCK_M, USE_DESCRIPTORS)
        inside = _tile(regions, start, 0, M, 1, BLOCK_R, BLOCK_M, USE_DESCRIPTORS)
        scores = tl.dot(q, k.T, input_precision="ieee" if EXACT else "tf32")
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale)
        rescale = tl.exp2(row_max - new_max)
        if EXACT:
            weights = tl.exp2(scores * scale - new_max[:, None])
        else:  # two halves an instruction; the weights are halves in the product below anyway
            weights = tl.inline_asm_elementwise(
                "ex2.approx.f16x2 $0, $1;", "=r,r", [(scores * scale - new_max[:, None]).to(tl.float16)],
                tl.float16, True, 2,
            )  # fmt: skip
        sums = tl.dot(weights, inside, sums * rescale[:, None], input_precision="ieee" if EXACT else "tf32")
        row_max = new_max
    rows, region = first + tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_R)
    total = tl.sum(tl.where(region[None, :] == R, sums, 0.0), 1)
    target = out + (head * R + region[None, :]).to(tl.int64) * L + rows[:, None]
    tl.store(target, sums / total[:, None], mask=(region[None, :] < R) & (rows[:, None] < L))


def _source(x: Tensor, block: int, use_descriptors: bool) -> object:
    """What `_tile` reads blocks of x [L, N, E] from."""
    if not use_descriptors:
        return x
    from triton.tools.tensor_descriptor import TensorDescriptor  # not in every Triton that can do without

    flat = x.view(x.shape[0], -1)
    return TensorDescriptor(flat, list(flat.shape), list(flat.stride()), [block, x.shape[2]])


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, positions: Tensor | None) -> Tensor:
    """query [G, L, N, E], key and value [G, M, N, E], all contiguous, positions [G * L] float32 or None."""
    out = torch.empty_like(query)
    _run_grouped(query, key, value, positions, out, 1.0)
    return out


def grouped_weights(query: Tensor, key: Tensor, positions: Tensor | None, dtype: torch.dtype, full: float) -> Tensor:
    """The softmax weights of `grouped_attention` times `full`, for `absorbed_sum`: [G, L, N * M] in `dtype`."""
    out = query.new_empty(*query.shape[:3], key.shape[1], dtype=dtype)
    _run_grouped(query, key, None, positions, out, full)
    return out.flatten(2)


def _run_grouped(
    query: Tensor, key: Tensor, value: Tensor | None, positions: Tensor | None, out: Tensor, full: float
) -> None:
    groups, length, heads, width = query.shape
    num_keys = key.shape[1]
    rotated = positions is not None
    pair_frequencies = frequencies(width, query.device).float() if rotated else query
    exact, per_program = query.dtype == torch.float32, heads if rotated else 1
    block, block_keys = 32 if exact else 64, max(16, triton.next_power_of_2(num_keys))
    ahead = has_large_tiles(query.device) and not exact and block_keys <= 64  # else the tiles of three heads do not fit
    _grouped_attention[(triton.cdiv(length, block), groups, heads // per_program)](
        query, key, key if value is None else value, positions if rotated else query, pair_frequencies, out,
        length, num_keys, softmax_scale(width), full,
        ROTATE=rotated, SUM=value is not None, PRECISION=dot_precision(query), BLOCK_L=block, BLOCK_M=block_keys,
        N=heads, HEADS=per_program, E=width, num_warps=4, num_stages=3 if ahead else 1,
    )  # fmt: skip


def dual_context_attention(
    query: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor] | None, last_bias: float,
    out_scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """query [L, N, E], keys and values [M, N, E] (all contiguous) -> rows [L, N * E] in the dtype of values.

    Queries and keys may be fp8. last_bias: added to the score of the first set's last key. out_scale, a float32 number:
    rows in fp8, divided by it.
    """
    length, heads, width = query.shape
    other = second or first
    out = query.new_empty(length, heads * width, dtype=first[1].dtype if out_scale is None else FP8)
    exact = query.dtype == torch.float32
    tiles, use_descriptors = (EXACT_TILES, False) if exact else (DUAL_CONTEXT, has_copy_engine(query.device))
    keys = [_source(x, tiles["BLOCK_M"], use_descriptors) for x in (*first, *other)]
    _dual_context_attention[(triton.cdiv(length, tiles["BLOCK_L"]), heads)](
        _source(query, tiles["BLOCK_L"], use_descriptors), *keys, query if out_scale is None else out_scale, out,
        length, heads, softmax_scale(width), last_bias / math.log(2),
        M=first[0].shape[0], OTHER_M=other[0].shape[0] if second else 0, PRECISION=dot_precision(query),
        USE_DESCRIPTORS=use_descriptors, IN_FP8=out_scale is not None, E=width, **tiles,
    )  # fmt: skip
    return out


def region_shares(query: Tensor, key: Tensor, regions: Tensor) -> Tensor:
    """query [L, N, E], key [M, N, E] (contiguous), regions [R, M] of zeros and ones -> [R, L] float32.

    The softmax weights that fall into each region, averaged over the heads.
    """
    length, heads, width = query.shape
    num_regions, num_keys = regions.shape
    out = query.new_empty(heads, num_regions, length, dtype=torch.float32)
    exact = query.dtype == torch.float32
    tiles, use_descriptors = (EXACT_TILES, False) if exact else (REGIONS, has_copy_engine(query.device))
    columns = max(16, triton.next_power_of_2(num_regions + 1))
    # The last tile is filled with copies of a key: zeros would score above keys that all score far below zero.
    whole = key.new_empty(triton.cdiv(num_keys, tiles["BLOCK_M"]) * tiles["BLOCK_M"], heads, width)
    whole[:num_keys], whole[num_keys:] = key, key[-1]
    members = query.new_zeros(len(whole), 1, columns, dtype=torch.float32 if exact else torch.float16)
    members[:num_keys, 0, :num_regions], members[:num_keys, 0, num_regions] = regions.T, 1
    sources = [_source(x, tiles["BLOCK_M"], use_descriptors) for x in (whole, members)]
    _region_shares[(triton.cdiv(length, tiles["BLOCK_L"]), heads)](
        _source(query, tiles["BLOCK_L"], use_descriptors), *sources, out, length, num_regions, heads,
        softmax_scale(width),
        M=len(whole), EXACT=exact, USE_DESCRIPTORS=use_descriptors, BLOCK_R=columns, E=width, **tiles,
    )  # fmt: skip
    return out.mean(0)
