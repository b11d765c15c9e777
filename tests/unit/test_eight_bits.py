"""8-bit attention and linear layers on activations as trained models have them: offsets and outliers in some channels.

Bounds come from the rounding of the format, not from what was found. On a CPU the arithmetic of GPUs is emulated
(`support.rounding`); tests marked `gpu` run the kernels themselves.
"""

import math

import pytest
import torch
from support.checks import DEVICE, draw, relative_error
from support.rounding import E4M3_ERROR, fp8_attention, to_fp8, with_offset

from wanvideo.ops import norm
from wanvideo.ops.attention import backends, dispatch, functions, lse
from wanvideo.ops.attention.regions import FrameRegions
from wanvideo.ops.attention.rope import video_rope
from wanvideo.ops.quantized import FP8

HEADS, WIDTH = 2, 128
GRID = 5, 12, 20  # latent frames, rows and columns of tokens
OFFSETS = [(8, 4), (8, 8), (16, 4), (64, 2)]  # so many of 128 channels, by so many times the spread
EIGHT_BITS = [name for name, backend in backends.BACKENDS.items() if not backend.exact]


def drawn(length=300, keys=1500):
    return tuple(draw(1, count, HEADS, WIDTH, seed=seed) for seed, count in enumerate((length, keys, keys + 1)))


def attention_bound(query, key):
    """Scores miss what queries and what keys without their mean lose, and weights and values are rounded as well."""
    spread = (key - key.mean(1, keepdim=True)).square().mean() * query.square().mean()
    return 1.1 * E4M3_ERROR * math.sqrt(2 * spread + 2)


@pytest.mark.parametrize("offset", OFFSETS)
def test_an_offset_of_keys_costs_attention_nothing(monkeypatch, offset):
    """The same keys rounded as they are miss the bound: the test could fail."""
    monkeypatch.setattr(functions, "hopper", fp8_attention)  # the kernel's arithmetic, without a Hopper GPU
    query, key, value = drawn()
    value, bound = value[:, : key.shape[1]], attention_bound(query, key)
    plain = relative_error(functions.fp8(query, key, value)[0], lse.eager_attention(query, key, value)[0])
    key = with_offset(key, *offset)
    exact, exact_lse = lse.eager_attention(query, key, value)
    out, made_lse = functions.fp8(query, key, value, needs_lse=True)
    rounded_as_they_are = relative_error(fp8_attention(to_fp8(query), to_fp8(key), value)[0], exact)
    assert relative_error(out, exact) <= min(bound, 1.02 * plain) < rounded_as_they_are
    assert (made_lse - exact_lse).abs().max() <= backends.BACKENDS["fp8"].error


def rows_of(tokens, *offset, seed=0):
    rows = draw(tokens, HEADS * WIDTH, seed=seed)
    return with_offset(rows.unflatten(-1, (HEADS, WIDTH)), *offset).flatten(1) if offset else rows


def keys_of(rows, rope, dtype=FP8):
    weight = torch.full((HEADS * WIDTH,), 1.5, device=rows.device)
    return norm.rms_norm_keys(rows, weight, 1e-6, HEADS, rope, dtype)


@pytest.mark.parametrize("offset", OFFSETS)
def test_keys_that_are_normalized_and_rotated_lose_their_offset(offset):
    rope, count = video_rope(*GRID, WIDTH, DEVICE), math.prod(GRID)
    rows, query, value = rows_of(count, *offset), drawn(200)[0], draw(1, count, HEADS, WIDTH, seed=4)
    exact_keys, ours = keys_of(rows, rope, None), keys_of(rows, rope)
    exact = lse.eager_attention(query, exact_keys[None], value)[0]
    before = relative_error(fp8_attention(to_fp8(query), to_fp8(exact_keys)[None], value)[0], exact)
    found = relative_error(fp8_attention(to_fp8(query), ours[None], value)[0], exact)
    assert ours.dtype == FP8 and found <= attention_bound(query, exact_keys[None]) and found < before
    # What is left of the mean, which a sample stands for: within its own error, four times over.
    spread = (exact_keys - exact_keys.mean(0)).square().mean().sqrt()
    assert ours.float().mean(0).abs().max() <= 4 * spread / math.sqrt(norm.SAMPLED_KEYS) + 0.01


@pytest.mark.parametrize("count", [1, 7, 1023, 1024, 2047, 2048, 32760, 75600])
def test_sampled_tokens_are_spread_over_all(count):
    tokens = norm.sampled_tokens(count, torch.device("cpu"))
    assert tokens.diff().gt(0).all() and 0 <= tokens[0] and tokens[-1] < count
    assert min(count, norm.SAMPLED_KEYS) <= len(tokens) < 2 * norm.SAMPLED_KEYS
    if count == 32760:  # 21 frames of 30 x 52: each column, row and frame comes near its share
        for place, size in ((tokens % 52, 52), (tokens // 52 % 30, 30), (tokens // 1560, 21)):
            shares = place.bincount(minlength=size) / len(tokens) * size
            assert 0.6 < shares.min() and shares.max() < 1.4, size


def test_softmax_does_not_see_a_shift():
    """Of self-attention, the shares of regions, and both contexts of a prompt and picture with its padding counted."""
    query, key, value = drawn(90, 200)
    value, shifted = value[:, :200], key - draw(HEADS, WIDTH, seed=9)
    regions = FrameRegions((draw(3, 70) > 0).float(), ((20, 60), (100, 130)))
    for run in (
        lambda keys: dispatch.attend(query, keys, value),
        lambda keys: dispatch.region_attention(query[0], keys[0], regions),
        lambda keys: dispatch.dual_context_attention(
            query[0].cpu(), (keys[0, :9].cpu(), value[0, :9].cpu()), (keys[0, 9:].cpu(), value[0, 9:].cpu()), 500
        ),
    ):
        assert (run(shifted) - run(key)).abs().max() <= 2e-5


@pytest.mark.parametrize("common", [True, False])
def test_parts_of_the_keys_merge_whichever_shift_each_has(common):
    """With one for all parts as they are; with one each, once each log-sum-exp is that of the keys themselves."""
    query, key, value = drawn(60, 300)
    shifts = [draw(HEADS, WIDTH, seed=7 if common else seed) for seed in (7, 8)]
    parts = []
    for part, part_value, shift in zip(
        key.split((120, 180), 1), value[:, :300].split((120, 180), 1), shifts, strict=True
    ):
        out, made = lse.eager_attention(query, part - shift, part_value)
        parts.append((out, made if common else lse.of_shifted_keys(made, query, shift)))
    out, made = lse.merge(parts)
    exact, exact_lse = lse.eager_attention(query, key, value[:, :300])
    made = lse.of_shifted_keys(made, query, shifts[0]) if common else made
    assert (out - exact).abs().max() <= 2e-5 and (made - exact_lse).abs().max() <= 2e-5


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="the libraries need a GPU, and there is none here")
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_an_offset_of_keys_costs_no_backend_of_this_gpu_anything(name, offset):
    reason = backends.refusal(name, torch.device(DEVICE), torch.bfloat16, WIDTH)
    if reason is not None:
        pytest.skip(f"{name} cannot be used here: {reason}")
    backend, (query, key, value) = backends.BACKENDS[name], drawn(1000, 8000)
    errors = []
    for keys in (key, with_offset(key, *offset)):
        given = query.bfloat16(), keys.bfloat16(), value[:, :8000].bfloat16()
        exact, exact_lse = lse.eager_attention(*(x.float() for x in given))
        errors.append(relative_error(backend.attend(*given), exact))
        if backend.has_lse:
            made = backend.attend_with_lse(*given)[1]
            of_offset = 2**-8 * offset[1] * math.sqrt(offset[0] / WIDTH)  # what bf16 misses of its scores
            assert (made - exact_lse).abs().mean() <= backend.error + of_offset
    assert errors[1] <= min(backend.error, 1.1 * errors[0] + 0.002), errors


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter has no fp8")
@pytest.mark.parametrize("offset", [None, *OFFSETS])
def test_keys_of_the_kernel_are_those_of_the_eager_reference(offset):
    rope, rows = video_rope(*GRID, WIDTH, DEVICE), rows_of(math.prod(GRID), *(offset or ()))
    ours, eager = keys_of(rows.bfloat16(), rope), keys_of(rows.bfloat16().cpu(), rope.cpu()).to(DEVICE)
    differing = (ours.float() - eager.float()).abs()
    assert differing.gt(0).float().mean() < 0.01 and (differing <= 2**-3 * eager.float().abs() + 2**-9).all()
