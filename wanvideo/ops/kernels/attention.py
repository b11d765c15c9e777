"""Attention kernels for shapes that the general backends serve badly.

`few_keys`: every group of tokens (a latent frame) has its own handful of keys, and queries may first be turned to a
fractional label position. `two_sets`: the sum of two attentions to short sets of keys, in one pass over the queries.
`region_scores`: how much attention tokens pay to a few regions of one frame. The last two read their tiles through
descriptors where the GPU has a copy engine (DESCRIBED), and through pointers elsewhere.
Legend: G groups, L tokens of a group, M keys, N heads, D head width (128), R regions.
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

MOST_KEYS = 128
TWO_SETS = {"BLOCK_L": 64, "BLOCK_M": 64, "num_warps": 4, "num_stages": 3}
REGIONS = {"BLOCK_L": 128, "BLOCK_M": 64, "num_warps": 4, "num_stages": 2}
EXACT_TILES = {"BLOCK_L": 32, "BLOCK_M": 64, "num_warps": 4, "num_stages": 1}


@triton.jit
def _few_keys(
    query, key, value, positions, frequencies, out, L, M, scale, full,
    ROTATE: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
    N: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """SUM: write the weighted sum of values [G, L, N, D], else the weights themselves [G, L, N, M], times `full`."""
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
        weights = weights * (full / tl.sum(weights, 1))[:, None]
        if SUM:
            v = tl.load(value + base[:, None] + columns[None, :], mask=keys[:, None] < M, other=0.0)
            result = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
            tl.store(out + (token * N + head) * D + columns[None, :], result.to(out.dtype.element_ty), mask=inside)
        else:
            place = (token * N + head) * M + keys[None, :]
            tl.store(out + place, weights.to(out.dtype.element_ty), mask=inside & (keys[None, :] < M))


@triton.jit
def _tile(x, start, head, limit, N, D: tl.constexpr, BLOCK: tl.constexpr, DESCRIBED: tl.constexpr):
    """BLOCK tokens of one head of x [limit, N, D] from `start` on, zeros behind the last: [BLOCK, D]."""
    if DESCRIBED:
        tile = x.load([start, head * D])
    else:
        rows = (start + tl.arange(0, BLOCK))[:, None]
        place = (rows.to(tl.int64) * N + head) * D + tl.arange(0, D)[None, :]
        tile = tl.load(x + place, mask=rows < limit, other=0.0)
    return tile


@triton.jit
def _softmax_sum(
    q, key, value, last_bias, head, scale, N, M: tl.constexpr, PRECISION: tl.constexpr, DESCRIBED: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Attention of a tile of queries to M keys of one head; `last_bias` is added to the last key's score."""
    peak = tl.full((BLOCK_L,), -1.0e30, tl.float32)
    total = tl.zeros((BLOCK_L,), tl.float32)
    result = tl.zeros((BLOCK_L, D), tl.float32)
    for start in range(0, M, BLOCK_M):
        keys = start + tl.arange(0, BLOCK_M)
        k = _tile(key, start, head, M, N, D, BLOCK_M, DESCRIBED)
        bias = tl.where(keys == M - 1, last_bias, tl.where(keys < M, 0.0, -1.0e30))
        scores = tl.dot(q, k.T, input_precision=PRECISION) * scale + bias[None, :]
        higher = tl.maximum(peak, tl.max(scores, 1))
        fade = tl.exp2(peak - higher)
        weights = tl.exp2(scores - higher[:, None])
        total = total * fade + tl.sum(weights, 1)
        v = _tile(value, start, head, M, N, D, BLOCK_M, DESCRIBED)
        result = tl.dot(weights.to(v.dtype), v, result * fade[:, None], input_precision=PRECISION)
        peak = higher
    return result / total[:, None]


@triton.jit
def _two_sets(
    query, key, value, other_key, other_value, unit, out, L, N, scale, last_bias,
    M: tl.constexpr, OTHER_M: tl.constexpr, PRECISION: tl.constexpr, DESCRIBED: tl.constexpr, IN_UNITS: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    head, start = tl.program_id(1), tl.program_id(0) * BLOCK_L
    q = _tile(query, start, head, L, N, D, BLOCK_L, DESCRIBED)
    result = _softmax_sum(q, key, value, last_bias, head, scale, N, M, PRECISION, DESCRIBED, BLOCK_L, BLOCK_M, D)
    if OTHER_M > 0:
        result += _softmax_sum(
            q, other_key, other_value, 0.0, head, scale, N, OTHER_M, PRECISION, DESCRIBED, BLOCK_L, BLOCK_M, D
        )
    if IN_UNITS:
        result *= 1.0 / tl.load(unit)
    rows = start + tl.arange(0, BLOCK_L)
    place = (rows[:, None].to(tl.int64) * N + head) * D + tl.arange(0, D)[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=rows[:, None] < L)


@triton.jit
def _region_scores(
    query, key, regions, out, L, R, N, scale, M: tl.constexpr, EXACT: tl.constexpr, DESCRIBED: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """regions [M, BLOCK_R]: column R has every key that counts, so that its sum is the softmax's denominator, those
    behind it are zeros. M: whole tiles."""
    head, first = tl.program_id(1), tl.program_id(0) * BLOCK_L
    q = _tile(query, first, head, L, N, D, BLOCK_L, DESCRIBED)
    peak = tl.full((BLOCK_L,), -1.0e30, tl.float32)
    sums = tl.zeros((BLOCK_L, BLOCK_R), tl.float32)
    for start in range(0, M, BLOCK_M):
        k = _tile(key, start, head, M, N, D, BLOCK_M, DESCRIBED)
        inside = _tile(regions, start, 0, M, 1, BLOCK_R, BLOCK_M, DESCRIBED)
        scores = tl.dot(q, k.T, input_precision="ieee" if EXACT else "tf32")
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
    rows, region = first + tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_R)
    total = tl.sum(tl.where(region[None, :] == R, sums, 0.0), 1)
    target = out + (head * R + region[None, :]).to(tl.int64) * L + rows[:, None]
    tl.store(target, sums / total[:, None], mask=(region[None, :] < R) & (rows[:, None] < L))


def _source(x: Tensor, block: int, described: bool) -> object:
    """What `_tile` reads blocks of x [L, N, D] from."""
    if not described:
        return x
    from triton.tools.tensor_descriptor import TensorDescriptor  # not in every Triton that can do without

    flat = x.view(x.shape[0], -1)
    return TensorDescriptor(flat, list(flat.shape), list(flat.stride()), [block, x.shape[2]])


def few_keys(query: Tensor, key: Tensor, value: Tensor, positions: Tensor | None) -> Tensor:
    """query [G, L, N, D], key and value [G, M, N, D], all contiguous, positions [G * L] float32 or None."""
    out = torch.empty_like(query)
    _run_few_keys(query, key, value, positions, out, 1.0)
    return out


def few_weights(query: Tensor, key: Tensor, positions: Tensor | None, dtype: torch.dtype, full: float) -> Tensor:
    """The softmax weights of `few_keys` times `full`, for `folded_sum`: [G, L, N * M] in `dtype`."""
    out = query.new_empty(*query.shape[:3], key.shape[1], dtype=dtype)
    _run_few_keys(query, key, None, positions, out, full)
    return out.flatten(2)


def _run_few_keys(
    query: Tensor, key: Tensor, value: Tensor | None, positions: Tensor | None, out: Tensor, full: float
) -> None:
    groups, length, heads, width = query.shape
    num_keys = key.shape[1]
    rotated = positions is not None
    turns = frequencies(width, query.device).float() if rotated else query
    exact, per_program = query.dtype == torch.float32, heads if rotated else 1
    block, block_keys = 32 if exact else 64, max(16, triton.next_power_of_2(num_keys))
    ahead = has_large_tiles(query.device) and not exact and block_keys <= 64  # else the tiles of three heads do not fit
    _few_keys[(triton.cdiv(length, block), groups, heads // per_program)](
        query, key, key if value is None else value, positions if rotated else query, turns, out,
        length, num_keys, softmax_scale(width), full,
        ROTATE=rotated, SUM=value is not None, PRECISION=dot_precision(query), BLOCK_L=block, BLOCK_M=block_keys,
        N=heads, HEADS=per_program, D=width, num_warps=4, num_stages=3 if ahead else 1,
    )  # fmt: skip


def two_sets(
    query: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor] | None, last_bias: float,
    unit: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """query [L, N, D], keys and values [M, N, D] (all contiguous) -> rows [L, N * D] in the dtype of values.

    Queries and keys may be fp8. last_bias: added to the score of the first set's last key. unit, a float32 number: rows
    in fp8, divided by it.
    """
    length, heads, width = query.shape
    other = second or first
    out = query.new_empty(length, heads * width, dtype=first[1].dtype if unit is None else FP8)
    exact = query.dtype == torch.float32
    tiles, described = (EXACT_TILES, False) if exact else (TWO_SETS, has_copy_engine(query.device))
    keys = [_source(x, tiles["BLOCK_M"], described) for x in (*first, *other)]
    _two_sets[(triton.cdiv(length, tiles["BLOCK_L"]), heads)](
        _source(query, tiles["BLOCK_L"], described), *keys, query if unit is None else unit, out, length, heads,
        softmax_scale(width), last_bias / math.log(2), M=first[0].shape[0], OTHER_M=other[0].shape[0] if second else 0,
        PRECISION=dot_precision(query), DESCRIBED=described, IN_UNITS=unit is not None, D=width, **tiles,
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
    tiles, described = (EXACT_TILES, False) if exact else (REGIONS, has_copy_engine(query.device))
    columns = max(16, triton.next_power_of_2(num_regions + 1))
    # The last tile is filled with copies of a key: zeros would score above keys that all score far below zero.
    whole = key.new_empty(triton.cdiv(num_keys, tiles["BLOCK_M"]) * tiles["BLOCK_M"], heads, width)
    whole[:num_keys], whole[num_keys:] = key, key[-1]
    members = query.new_zeros(len(whole), 1, columns, dtype=torch.float32 if exact else torch.float16)
    members[:num_keys, 0, :num_regions], members[:num_keys, 0, num_regions] = regions.T, 1
    sources = [_source(x, tiles["BLOCK_M"], described) for x in (whole, members)]
    _region_scores[(triton.cdiv(length, tiles["BLOCK_L"]), heads)](
        _source(query, tiles["BLOCK_L"], described), *sources, out, length, num_regions, heads, softmax_scale(width),
        M=len(whole), EXACT=exact, DESCRIBED=described, BLOCK_R=columns, D=width, **tiles,
    )  # fmt: skip
    return out.mean(0)
