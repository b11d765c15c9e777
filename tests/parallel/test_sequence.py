"""Tokens over ranks: every layout gives the forward of one rank, whatever the sizes, speakers and weights."""

import dataclasses
import functools

import pytest
import torch
from support import recipes
from support.ranks import CPU, run_ranks
from support.tiny import tiny_transformer

from wanvideo.errors import InputError
from wanvideo.ops.attention import backends
from wanvideo.ops.attention.backends import BACKENDS
from wanvideo.ops.attention.dispatch import SDPA
from wanvideo.ops.attention.lse import eager_attention
from wanvideo.ops.attention.operands import HeadNorm, OwnOperands
from wanvideo.ops.attention.rope import video_rope
from wanvideo.ops.quantized import FP8
from wanvideo.parallel.layout import Layout
from wanvideo.parallel.ring import ring
from wanvideo.parallel.sequence import StripSplit, strips, ulysses
from wanvideo.parallel.transform import split_tokens

HEADS = 8
LAYOUTS = [
    Layout(ulysses=2), Layout(ring=2), Layout(ring=3), Layout(ulysses=4), Layout(ulysses=2, ring=2), Layout(ring=4),
    Layout(ulysses=8), Layout(ulysses=4, ring=2), Layout(ulysses=2, ring=4), Layout(ring=8),
]  # fmt: skip


def named(layout):
    return f"{layout.ulysses}x{layout.ring}"


@functools.cache
def model():
    return tiny_transformer(dim=128 * HEADS)


@functools.cache
def inputs(speakers, height=6, width=10):
    return recipes.transformer_inputs(3, height, width, speakers, 700, 5)


@functools.cache
def alone(speakers, height=6, width=10):
    return model()(**inputs(speakers, height, width))


def forwards(mesh, cases):
    transformer = model()
    split_tokens(transformer, mesh, "sdpa")
    return [transformer(**inputs(*case)) for case in cases]


def of_own_time(mesh):
    """`auto` where another attention is the faster one on each rank; what one rank alone would take, and all take."""
    BACKENDS["other"] = dataclasses.replace(SDPA, name="other")
    backends.seconds_of = lambda backend, *_: float((backend.name == "other") != bool(mesh.rank))
    transformer = model()
    return transformer.find_attention("auto").name, split_tokens(transformer, mesh, "auto")


@pytest.mark.parametrize("layout", [Layout(ulysses=2), Layout(cfg=2)])
def test_all_ranks_take_the_first_one_s_attention(layout):
    """Which exchanges there are depends on it: ranks with two kinds of it would wait for each other forever."""
    (first, all_of_first), (second, all_of_second) = run_ranks(layout, of_own_time)
    assert first != second and all_of_first == all_of_second == first


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
def test_every_layout_gives_what_one_rank_gives(layout):
    """15 tokens a frame are split unevenly by all of them but 3."""
    cases = [(1, 6, 10), (2, 6, 10), (3, 8, 8)]
    expected = [alone(*case) for case in cases]
    for outs in run_ranks(layout, forwards, cases):
        for out, wanted in zip(outs, expected, strict=True):
            assert (out - wanted).abs().max() <= 1e-5


def attention(mesh, counts):
    """Out and log-sum-exp of the own tokens, by a backend that is asked for both."""
    query, key, value = (recipes.tensor(name, (1, sum(counts), 4, 32), 5) for name in "qkv")
    split = StripSplit(mesh.sequence)
    split.counts = counts
    backend = ulysses(ring(SDPA, mesh, split), mesh, split)
    first = sum(counts[: mesh.sequence.index])
    own = slice(first, first + counts[mesh.sequence.index])
    # Queries and keys are made of values here, which nothing norms.
    query, key, value = (backend.operands.value(x[0, own].flatten(1), x.shape[2]) for x in (query, key, value))
    return backend.attend_with_lse(query, key, value)


@pytest.mark.parametrize("layout", [Layout(ulysses=2), Layout(ring=2), Layout(ulysses=2, ring=2)], ids=named)
def test_an_attention_over_ranks_is_a_backend_again(layout):
    counts = (7, 5, 6, 4)[: layout.world]
    parts = run_ranks(layout, attention, counts)
    expected, lse = eager_attention(*(recipes.tensor(name, (1, sum(counts), 4, 32), 5) for name in "qkv"))
    assert (torch.cat([out for out, _ in parts], 1) - expected).abs().max() <= 1e-5
    assert (torch.cat([part for _, part in parts], 2) - lse).abs().max() <= 1e-5


def keys(mesh, counts):
    """Keys in fp8 that this rank attends to, of own tokens of `projected_keys`."""
    split = StripSplit(mesh.sequence)
    split.counts = counts
    backend = ulysses(ring(SDPA, mesh, split), mesh, split)
    projected, norm = projected_keys(sum(counts))
    first = sum(counts[: mesh.sequence.index])
    own = slice(first, first + counts[mesh.sequence.index])
    made = backend.operands.key(projected[own], norm._replace(rope=norm.rope[own]), FP8)
    backend.operands.value(projected[own], norm.num_heads)
    backend.operands.query(projected[own], norm._replace(rope=norm.rope[own]), FP8)
    if mesh.ulysses.size > 1:
        backend.attend(*(made.float(),) * 3)  # waits for what is under way
    return made.float()


def projected_keys(num_tokens):
    projected, rope = recipes.tensor("k", (num_tokens, 128), 5), video_rope(1, 1, num_tokens, 32, CPU)
    return projected + 3, HeadNorm(torch.ones(128), 1e-6, 4, rope)


@pytest.mark.parametrize("layout", [Layout(ulysses=2), Layout(ring=2)], ids=named)
def test_keys_that_meet_in_one_softmax_lose_the_same_shift(layout):
    """Each rank makes the keys of its own tokens; with a shift of its own they would be of different softmaxes."""
    counts = (40, 56)
    parts = run_ranks(layout, keys, counts)
    projected, norm = projected_keys(96)
    shifts = [norm._replace(rope=norm.rope[own]).shift(projected[own], FP8) for own in (slice(0, 40), slice(40, 96))]
    assert not torch.equal(*shifts)
    expected = norm.heads(projected, FP8, shifts[0]).float()
    assert torch.equal(torch.cat(parts, 2 if layout.ulysses > 1 else 1)[0], expected)


def test_a_backend_of_one_rank_stays_as_it_is():
    assert BACKENDS["sdpa"] is SDPA and type(SDPA.operands) is OwnOperands


def test_strips():
    assert strips(1560, 8) == (195,) * 8 and strips(15, 4) == (4, 4, 4, 3)
    with pytest.raises(InputError, match="3 tokens a frame .* 4 GPUs"):
        strips(3, 4)


def test_half_precision_goes_over_the_wire_too():
    layout = Layout(ulysses=2, ring=2)
    results = run_ranks(layout, forward_in, torch.bfloat16)
    expected = in_dtype(torch.bfloat16)(**inputs(1))
    for out in results:
        assert (out - expected).norm() / expected.norm() <= 0.02
        assert torch.equal(out, results[0])


@functools.cache
def in_dtype(dtype):
    return tiny_transformer(dim=128 * HEADS, dtype=dtype)


def forward_in(mesh, dtype):
    transformer = in_dtype(dtype)
    assert transformer.device == CPU
    split_tokens(transformer, mesh, "sdpa")
    return transformer(**inputs(1))
