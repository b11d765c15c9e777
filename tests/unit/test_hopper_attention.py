"""Attention for Hopper GPUs: its operands' layouts, what its compiler says, and on such a GPU its results."""

import re
import time

import pytest
import torch
from support.checks import DEVICE, draw

from wanvideo.ops.attention import backends, dispatch, lse
from wanvideo.ops.attention.regions import FrameRegions
from wanvideo.ops.kernels import cuda_driver
from wanvideo.ops.quantized import FP8

pytest.importorskip("triton", reason="Triton is not installed; other backends are used everywhere")
from wanvideo.ops.kernels import hopper_attention, hopper_tiles, hopper_values  # noqa: E402

REFUSAL = backends.refusal("fp8", torch.device(DEVICE), torch.bfloat16, 128)
on_hopper = pytest.mark.skipif(REFUSAL is not None, reason=f"this attention cannot be used here: {REFUSAL}")
TOLERANCES = {"hopper": 0.004, "fp8": 0.05}
# Tensor cores align 32 fp8 products and the sum so far at the largest of these and drop what lies below its 13th binary
# place. A tile of 64 keys takes two such steps, so that a sum of weights may miss 2 * 33 of these places, if all of its
# addends lose a whole one. On average less than one is missing (by emulation 7e-6 of the sum, at most 9e-5).
DROPPED_PLACE = 2.0**-13
SUM_ERRORS = {"hopper": (1e-5, 1e-6), "fp8": (2 * 33 * DROPPED_PLACE, DROPPED_PLACE)}  # largest, mean


@pytest.mark.parametrize("length", [70, 96])
def test_values_are_transposed_centered_and_scaled(length):
    """Place 16 h + 4 t + n of 32 has token 16 h + 8 (n // 2) + 2 t + n % 2, as a thread holds its scores."""
    value = draw(2, length, 3, 64) + 5
    ours, scaling = hopper_values.fp8_values(value, False, dtype=torch.float32)
    scale, mean = scaling.scale.view(3, 64), scaling.offset.view(3, 64)
    assert ours.shape == (2, 3, 64, 96) and torch.allclose(mean, value.mean((0, 1)), atol=1e-5)
    assert ours.abs().amax((0, 3)).sub(448).abs().max() <= 1e-3
    order = [32 * g + 16 * h + 8 * (n // 2) + 2 * t + n % 2
             for g in range(3) for h in range(2) for t in range(4) for n in range(4)]  # fmt: skip
    back = torch.zeros(2, 96, 3, 64, device=DEVICE)
    back[:, order] = ours.permute(0, 3, 1, 2)
    assert torch.allclose(back[:, :length] * scale + mean, value, atol=1e-4) and not back[:, length:].any()


@pytest.mark.parametrize("bound", [None, 20.0])
def test_values_of_ranks_are_rounded_as_all_of_them_together(bound):
    """Each puts its own into the memory of those that attend to them, by the ranges of all."""
    counts, heads = (37, 45), 4
    value = draw(sum(counts), heads, 64) + 5
    bound = None if bound is None else torch.tensor(bound, device=DEVICE)
    expected, scaling = hopper_values.fp8_values(value[None], True, bound, torch.float32)
    parts, places = value.split(counts), torch.tensor([0, 2 * 64 * 96], device=DEVICE)
    ranges = value.new_empty(2, 2, 3, heads * 64)  # of each rank, everybody's
    for rank, part in enumerate(parts):
        at = torch.tensor([rank, 2 + rank], device=DEVICE) * 3 * heads * 64
        hopper_values.put_value_ranges(part.flatten(1), ranges, at)
    assert torch.equal(ranges[0], ranges[1])
    together = hopper_values.value_scaling(ranges[0], sum(counts), True, bound)
    for ours, theirs in zip(together, scaling, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    out = value.new_zeros(2, 2, 64, 96)
    for start, part in zip((0, 37), parts, strict=True):
        hopper_values.put_fp8_values(part, scaling, start, 82, out, places)
    assert torch.equal(out.flatten(0, 1), expected[0])
    plain = scaling.for_plain_rows()
    unrounded = hopper_values.fp8_values(value[None], False, None, torch.float32).scaling
    assert torch.allclose(plain.scale, unrounded.scale) and torch.allclose(plain.offset, unrounded.offset)


@pytest.mark.parametrize("dtype", hopper_attention.TILES)
def test_the_compiler_neither_spills_registers_nor_serializes_products(monkeypatch, dtype):
    """Either would be right and slow; it says so in its notes."""
    new_name = f"attention_{time.time_ns()}"  # of machine code that it has kept from earlier it says nothing
    monkeypatch.setitem(hopper_attention.TILES[dtype], "attention", new_name)
    try:
        binary, said = hopper_attention.compiled(dtype)
    except OSError as missing:
        pytest.skip(f"no compiler for CUDA here: {missing}")
    assert binary[:4] == b"\x7fELF"
    threads = 128 * (hopper_attention.TILES[dtype]["GROUPS"] + 1)
    assert int(re.search(r"Used (\d+) registers", said)[1]) * threads <= 65536
    assert re.search(r"\b0 bytes spill stores", said) and not re.search(r"C75\d\d.*Performance Loss|warning", said), (
        said
    )


def test_wrong_source_is_answered_with_the_compilers_words():
    try:
        cuda_driver.compile_source("__global__ void f() { nonsense; }", "sm_90a", {})
    except OSError as missing:
        pytest.skip(f"no compiler for CUDA here: {missing}")
    except RuntimeError as error:
        assert "nonsense" in str(error)
    else:
        pytest.fail("wrong source was compiled")


def drawn(name, *shapes):
    """Queries, keys and values for a backend, which differ where their shapes do not."""
    query, key, value = (draw(*shape, seed=seed) for seed, shape in enumerate(shapes))
    return typed(name, query, key), value.bfloat16()


def typed(name, *tensors):
    return tuple(x.to(backends.BACKENDS[name].query_dtype or torch.bfloat16) for x in tensors)


def error(name, query, key, value):
    (query, key), value = typed(name, query, key), value.bfloat16()
    eager = dispatch.attend(query.float(), key.float(), value.float())
    return float((backends.BACKENDS[name].attend(query, key, value).float() - eager).norm() / eager.norm())


def eager_shares(query, key, regions):
    """What exact attention of the same rounded queries and keys says."""
    regions = FrameRegions(regions.members.cpu(), regions.spans)
    return dispatch.region_attention(query[0].cpu().float(), key[0].cpu().float(), regions).to(DEVICE)


def first_keys(members):
    return FrameRegions.of_first_keys(members)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize(
    ("batch", "length", "keys", "heads"),
    [(1, 64, 64, 1), (1, 1000, 777, 3), (2, 333, 2048, 2), (1, 130, 20, 1), (2, 192, 65, 2), (1, 200, 7000, 1)],
)
def test_against_exact_attention(name, batch, length, keys, heads):
    query, key, value = draw(batch, length, heads, 128), draw(batch, keys, heads, 128), draw(batch, keys, heads, 128)
    assert error(name, query, key, value) <= TOLERANCES[name]


def indicators(dtype, members, spans=None, num_keys=900):
    """The kernel's indicator tiles in the order of keys: [8, tiles, keys of a tile], without the swizzle."""
    spans = ((0, members.shape[1]),) if spans is None else spans
    keys_in_tile = hopper_attention.TILES[dtype]["KEYS"]
    order = hopper_tiles.tile_order(spans, num_keys, keys_in_tile, members.device)
    tiles, rows = hopper_attention.indicator_tiles(members, order, dtype), torch.arange(8)[:, None]
    if dtype == FP8:  # rows of 64 bytes; places as `exp_weights` leaves weights: ..., half, t, n // 2, n % 2
        tiles = tiles.view(-1, 8, 4, 16).float()[:, rows, torch.arange(4) ^ rows // 2 % 4]
        tiles = tiles.reshape(-1, 8, 2, 2, 4, 2, 2).permute(1, 0, 2, 3, 5, 4, 6)
    else:  # two parts with rows of 128 bytes, the second not full, and keys in their own order
        tiles = tiles.view(-1, 2, 8, 8, 8).float()[:, :, rows, torch.arange(8) ^ rows].permute(2, 0, 1, 3, 4)
    return tiles.reshape(8, order.marked_tiles + 1, -1)[..., :keys_in_tile], order


def assert_indicators(tiles, members, in_frame):
    """Column 0 has every key, one each region's, the next the frame's, and the last tile no key of the frame."""
    regions, flat = len(members), tiles.flatten(1)
    assert flat[0].all() and torch.equal(flat[1 : regions + 1], members) and torch.equal(flat[regions + 1], in_frame)
    assert not flat[regions + 2 :].any() and not tiles[1:, -1].any()


@pytest.mark.parametrize("dtype", hopper_attention.TILES)
def test_indicators_of_a_frame_that_comes_first(dtype):
    members = (draw(3, 150) > 0).float()
    tiles, order = indicators(dtype, members)
    whole = tiles.shape[1] * tiles.shape[2]
    padded = torch.nn.functional.pad(members, (0, whole - 150))
    assert_indicators(tiles, padded, (torch.arange(whole, device=DEVICE) < 150).float())
    assert order.steps is order.columns is None and order.partial_step == -(-900 // tiles.shape[2]) - 1


@pytest.mark.parametrize(
    "spans", [((450, 480), (700, 830)), ((5, 20), (40, 60), (300, 500), (898, 900)), ((0, 3), (890, 900))]
)
@pytest.mark.parametrize("dtype", hopper_attention.TILES)
def test_indicators_of_a_frame_that_lies_anywhere(dtype, spans):
    """As a split over GPUs leaves it: tiles that hold its keys first, of them whole ones first."""
    members = (draw(3, sum(stop - start for start, stop in spans)) > 0).float()
    tiles, order = indicators(dtype, members, spans)
    keys, everywhere = tiles.shape[2], torch.zeros(4, 900, device=DEVICE)
    inside = torch.cat([torch.arange(*span) for span in spans])
    everywhere[:3, inside], everywhere[3, inside] = members, 1
    steps = list(range(-(-900 // keys))) if order.steps is None else order.steps.tolist()
    assert sorted(steps) == list(range(-(-900 // keys))) and steps[order.partial_step] == 900 // keys
    padded = torch.nn.functional.pad(everywhere, (0, -900 % keys)).view(4, -1, keys)
    counts = padded[3].sum(1)[steps]
    assert counts[: order.marked_tiles].all() and not counts[order.marked_tiles :].any()
    assert sorted(counts == keys, reverse=True) == (counts == keys).tolist()
    expected = torch.cat((padded[:, steps[: order.marked_tiles]], padded.new_zeros(4, 1, keys)), 1).flatten(1)
    assert_indicators(tiles, expected[:3], expected[3])


def test_a_frame_beyond_the_last_key_is_refused():
    with pytest.raises(ValueError, match="reach to 910"):
        hopper_tiles.tile_order(((100, 910),), 900, 64, torch.device(DEVICE))


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize("keys", [1560, 5000])
def test_shares_of_regions(name, keys):
    (query, key), value = drawn(name, (1, 400, 3, 128), (1, keys, 3, 128), (1, keys, 3, 128))
    members = torch.zeros(3, 1560, device=DEVICE)
    members[0, :500], members[1, 800:1200], members[2, 1200:] = 1, 1, 1
    backend, regions = backends.BACKENDS[name], first_keys(members)
    rows, (shares, *_) = dispatch.self_attention(query, key, value, regions, backend, torch.bfloat16)
    for_fp8, _ = dispatch.self_attention(query, key, value, None, backend, FP8)
    missed = shares - eager_shares(query, key, regions)
    plain = backend.attend(query, key, value)[0].flatten(1)
    assert torch.equal(rows, plain)
    assert missed.abs().max() <= 5e-3 and missed.mean().abs() <= 2e-4
    if name == "hopper":
        assert torch.equal(for_fp8, plain)
    else:
        assert (for_fp8.dense(torch.float32) - plain.float()).norm() <= 0.04 * plain.float().norm()


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize("frame", [448, 420])
def test_shares_where_keys_behind_the_frame_weigh_all(name, frame):
    """2^200 times as much: keys of the frame that share a tile with them are lost, the others remain."""
    query, key, value = draw(1, 200, 2, 128), draw(1, 900, 2, 128), draw(1, 900, 2, 128).bfloat16()
    direction = draw(1, 1, 1, 128)
    query, key[:, frame:] = query * 0.3 + 4 * direction, key[:, frame:] + 5 * direction
    query, key = typed(name, query, key)
    regions = first_keys(torch.eye(2, device=DEVICE).repeat_interleave(frame // 2, 1))
    _, (shares, *_) = dispatch.self_attention(query, key, value, regions, backends.BACKENDS[name], torch.bfloat16)
    largest, mean = SUM_ERRORS[name]
    missing = (shares.sum(0) - 1).abs()
    assert missing.max() <= largest and missing.mean() <= mean
    if frame == 448:  # whole tiles of 64 and of 112 keys
        assert (shares - eager_shares(query, key, regions)).abs().mean() <= 5e-3


def in_slices(x, frame, ranks):
    """Tokens of x [1, M, N, E] as ranks bring them, each its slice of the frame and its slice of the rest."""
    parts = zip(x[:, :frame].chunk(ranks, 1), x[:, frame:].chunk(ranks, 1), strict=True)
    return torch.cat([part for pair in parts for part in pair], 1)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize(("frame", "ranks"), [(448, 2), (420, 3), (1560, 4)])
def test_shares_do_not_depend_on_where_the_frame_lies(name, frame, ranks):
    (query, key), value = drawn(name, (1, 400, 3, 128), (1, 4 * frame + 11, 3, 128), (1, 4 * frame + 11, 3, 128))
    members, backend = (draw(3, frame) > 0).float(), backends.BACKENDS[name]
    everywhere = torch.zeros(1, key.shape[1], 4, 1, device=DEVICE)
    everywhere[0, :frame, :3, 0], everywhere[0, :frame, 3, 0] = members.T, 1
    marked = in_slices(everywhere, frame, ranks)[0, :, :, 0].T
    regions = FrameRegions.among(marked[:3], marked[3] > 0)
    key_there, value_there = (in_slices(x, frame, ranks) for x in (key, value))
    rows, (shares, *_) = dispatch.self_attention(query, key, value, first_keys(members), backend, torch.bfloat16)
    rows_there, (there, *_) = dispatch.self_attention(query, key_there, value_there, regions, backend, torch.bfloat16)
    missed = there - eager_shares(query, key, first_keys(members))
    assert missed.abs().max() <= 5e-3 and missed.mean().abs() <= 2e-4 and (there - shares).abs().max() <= 5e-3
    assert (rows_there - rows).float().norm() <= TOLERANCES[name] * rows.float().norm()


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize("start", [448, 896])
def test_shares_where_keys_before_the_frame_weigh_all(name, start):
    """Whole tiles of the frame come before keys that outweigh it 2^200 times, wherever these lie."""
    query, key, value = draw(1, 200, 2, 128), draw(1, 1792, 2, 128), draw(1, 1792, 2, 128).bfloat16()
    direction, inside = draw(1, 1, 1, 128), torch.zeros(1792, dtype=torch.bool, device=DEVICE)
    inside[start : start + 448] = True
    query = query * 0.3 + 4 * direction
    key[:, ~inside] += 5 * direction
    query, key = typed(name, query, key)
    regions = FrameRegions(torch.eye(2, device=DEVICE).repeat_interleave(224, 1), ((start, start + 448),))
    rows, (shares, *_) = dispatch.self_attention(query, key, value, regions, backends.BACKENDS[name], torch.bfloat16)
    assert (shares - eager_shares(query, key, regions)).abs().mean() <= 5e-3
    expected = dispatch.attend(query.float(), key.float(), value.float())[0].flatten(1)
    assert (rows - expected).norm() <= TOLERANCES[name] * expected.norm()


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize(("batch", "length", "keys"), [(1, 64, 64), (2, 333, 777), (1, 130, 20), (1, 200, 7000)])
def test_log_sum_exp(name, batch, length, keys):
    """Of the same rounded queries and keys; the softmax's denominator is the sum of the weights as they are rounded."""
    (query, key), value = drawn(name, (batch, length, 3, 128), (batch, keys, 3, 128), (batch, keys, 3, 128))
    backend = backends.BACKENDS[name]
    out, made = backend.attend_with_lse(query, key, value)
    expected = lse.eager_attention(query.float(), key.float(), value.float())[1]
    assert torch.equal(out, backend.attend(query, key, value)) and made.shape == expected.shape
    assert (made - expected).abs().max() <= {"hopper": 2e-3, "fp8": 0.06}[name]
    assert (made - expected).mean().abs() <= {"hopper": 2e-4, "fp8": 5e-3}[name]


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("name", TOLERANCES)
def test_parts_of_the_keys_merge_to_all_of_them(name):
    (query, key), value = drawn(name, (1, 300, 2, 128), (1, 5000, 2, 128), (1, 5000, 2, 128))
    backend, expected = backends.BACKENDS[name], dispatch.attend(query.float(), key.float(), value.float())
    for sizes in ((2500, 2500), (100, 3900, 1000)):
        parts = zip(key.split(sizes, 1), value.split(sizes, 1), strict=True)
        out, _ = lse.merge(backend.attend_with_lse(query, *part) for part in parts)
        assert (out.float() - expected).norm() <= TOLERANCES[name] * expected.norm()


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("name", TOLERANCES)
def test_more_regions_than_indicators(name):
    (query, key), value = drawn(name, (1, 200, 2, 128), (1, 700, 2, 128), (1, 700, 2, 128))
    regions = first_keys(torch.eye(7, device=DEVICE).repeat_interleave(60, 1))
    _, (shares, *_) = dispatch.self_attention(query, key, value, regions, backends.BACKENDS[name], torch.bfloat16)
    assert (shares - eager_shares(query, key, regions)).abs().max() <= 5e-3


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize(("name", "steep"), [("hopper", 1), ("hopper", 30), ("fp8", 1)])
def test_row_maxima_that_grow_from_tile_to_tile(name, steep):
    """With a steep growth weights leave the range of bf16 too."""
    query, value = draw(1, 300, 2, 128), draw(1, 4096, 2, 128)
    direction = draw(1, 1, 1, 128)
    growing = draw(1, 4096, 2, 128) + steep * direction * torch.linspace(-4, 4, 4096, device=DEVICE).view(1, -1, 1, 1)
    assert error(name, query + direction, growing, value) <= TOLERANCES[name]
    assert error(name, query + direction, growing.flip(1), value) <= TOLERANCES[name]


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize("halves", [False, True])
def test_long_even_sums_keep_their_products(name, halves):
    """All keys, or half of them, weigh the same; sums of fp8 products alone would be off by half."""
    keys = 32760
    query, key, value = draw(1, 256, 1, 128) * 0.1, draw(1, keys, 1, 128), draw(1, keys, 1, 128) + 2
    if halves:
        direction = draw(128) / 128**0.5 * 8
        query, key[:, : keys // 2] = query + 4 * direction, key[:, : keys // 2] + direction
        value[:, keys // 2 :] -= 4
    assert error(name, query, key, value) <= 0.03


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("name", TOLERANCES)
def test_what_is_not_a_number_stays_none(name):
    query, key, value = (draw(1, n, 1, 128) for n in (70, 200, 200))
    query[0, 3] = float("nan")
    out = backends.BACKENDS[name].attend(*typed(name, query, key), value.bfloat16())
    assert out[0, 3].isnan().all() and out[0, :3].isfinite().all() and out[0, 4:].isfinite().all()
