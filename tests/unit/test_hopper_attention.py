"""Attention for Hopper GPUs: its operands' layouts, what its compiler says, and on such a GPU its results."""

import re
import time

import pytest
import torch

from wanvideo.ops.attention import backends, dispatch
from wanvideo.ops.kernels import cuda_driver
from wanvideo.ops.quantized import FP8

pytest.importorskip("triton", reason="Triton is not installed; other backends are used everywhere")
from wanvideo.ops.kernels import hopper_attention  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REFUSAL = backends.refusal("fp8", torch.device(DEVICE), torch.bfloat16, 128)
on_hopper = pytest.mark.skipif(REFUSAL is not None, reason=f"this attention cannot be used here: {REFUSAL}")
TOLERANCES = {"hopper": 0.004, "fp8": 0.05}
# Tensor cores align 32 fp8 products and the sum so far at the largest of these and drop what lies below its 13th binary
# place. A tile of 64 keys takes two such steps, so that a sum of weights may miss 2 * 33 of these places, if all of its
# addends lose a whole one. On average less than one is missing (by emulation 7e-6 of the sum, at most 9e-5).
DROPPED_PLACE = 2.0**-13
SUM_ERRORS = {"hopper": (1e-5, 1e-6), "fp8": (2 * 33 * DROPPED_PLACE, DROPPED_PLACE)}  # largest, mean


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


@pytest.mark.parametrize("length", [70, 96])
def test_values_are_turned_centred_and_scaled(length):
    """Place 16 h + 4 t + n of 32 has token 16 h + 8 (n // 2) + 2 t + n % 2, as a thread holds its scores."""
    value = draw(2, length, 3, 64) + 5
    turned, scale, mean = hopper_attention.turned_values(value, torch.float32)
    assert turned.shape == (2, 3, 64, 96) and torch.allclose(mean, value.mean((0, 1)), atol=1e-5)
    assert turned.abs().amax((0, 3)).sub(448).abs().max() <= 1e-3
    order = [32 * g + 16 * h + 8 * (n // 2) + 2 * t + n % 2
             for g in range(3) for h in range(2) for t in range(4) for n in range(4)]  # fmt: skip
    back = torch.zeros(2, 96, 3, 64, device=DEVICE)
    back[:, order] = turned.permute(0, 3, 1, 2)
    assert torch.allclose(back[:, :length] * scale + mean, value, atol=1e-4) and not back[:, length:].any()


@pytest.mark.parametrize("dtype", hopper_attention.TILES)
def test_the_compiler_neither_spills_registers_nor_serialises_products(monkeypatch, dtype):
    """Either would be right and slow; it says so in its notes."""
    new_name = f"attention_{time.time_ns()}"  # of machine code that it has kept from earlier it says nothing
    monkeypatch.setitem(hopper_attention.TILES[dtype], "attention", new_name)
    try:
        binary, said = hopper_attention.compiled(dtype)
    except OSError as missing:
        pytest.skip(f"no compiler for CUDA here: {missing}")
    assert binary[:4] == b"\x7fELF"
    assert "0 bytes spill stores" in said and not re.search(r"C75\d\d.*Performance Loss|warning", said), said


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
    """Queries, keys and values for a backend."""
    query, key, value = (draw(*shape) for shape in shapes)
    return typed(name, query, key), value.bfloat16()


def typed(name, *tensors):
    return tuple(x.to(backends.BACKENDS[name].query_dtype or torch.bfloat16) for x in tensors)


def error(name, query, key, value):
    (query, key), value = typed(name, query, key), value.bfloat16()
    twin = dispatch.attend(query.float(), key.float(), value.float())
    return float((backends.BACKENDS[name].function(query, key, value).float() - twin).norm() / twin.norm())


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


def test_marks_of_regions_in_fp8():
    """Mark 0 on every key, one for each region, one for the frame; swizzled rows of 64 bytes, a tile for all others."""
    regions = (draw(3, 150) > 0).float()
    marks = hopper_attention.marks_of(regions, FP8).view(4, 8, 4, 16).float()
    rows = torch.arange(8)[:, None]
    plain = marks[:, rows, torch.arange(4) ^ rows // 2 % 4].reshape(4, 8, 2, 2, 4, 2, 2)  # ..., half, t, n // 2, n % 2
    assert_marks(plain.permute(1, 0, 2, 3, 5, 4, 6).reshape(8, 256), regions)


def test_marks_of_regions_in_bf16():
    """The same in two parts with rows of 128 bytes, the second not full, and keys in their own order."""
    regions = (draw(3, 150) > 0).float()
    marks = hopper_attention.marks_of(regions, torch.bfloat16).view(3, 2, 8, 8, 8).float()
    rows = torch.arange(8)[:, None]
    plain = marks[:, :, rows, torch.arange(8) ^ rows]  # tile, part, mark, chunk, key
    assert_marks(plain.permute(2, 0, 1, 3, 4).reshape(8, 3, 128)[..., :112].flatten(1), regions)


def assert_marks(keys, regions):
    length = regions.shape[1]
    assert keys[0].all() and torch.equal(keys[1:4, :length], regions) and keys[4, :length].all()
    assert not keys[1:, length:].any() and not keys[5:].any()


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize("keys", [1560, 5000])
def test_shares_of_regions(name, keys):
    (query, key), value = drawn(name, (1, 400, 3, 128), (1, keys, 3, 128), (1, keys, 3, 128))
    regions = torch.zeros(3, 1560, device=DEVICE)
    regions[0, :500], regions[1, 800:1200], regions[2, 1200:] = 1, 1, 1
    backend = backends.BACKENDS[name]
    rows, shares = dispatch.self_attention(query, key, value, regions, backend, torch.bfloat16)
    for_fp8, _ = dispatch.self_attention(query, key, value, None, backend, FP8)
    twin = dispatch.region_attention(query[0].cpu().float(), key[0, :1560].cpu().float(), regions.cpu()).to(DEVICE)
    plain = backend.function(query, key, value)[0].flatten(1)
    assert torch.equal(rows, plain)
    assert (shares - twin).abs().max() <= 5e-3 and (shares - twin).mean().abs() <= 2e-4
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
    (query, key), regions = typed(name, query, key), torch.eye(2, device=DEVICE).repeat_interleave(frame // 2, 1)
    _, shares = dispatch.self_attention(query, key, value, regions, backends.BACKENDS[name], torch.bfloat16)
    twin = dispatch.region_attention(query[0].cpu().float(), key[0, :frame].cpu().float(), regions.cpu()).to(DEVICE)
    largest, mean = SUM_ERRORS[name]
    missing = (shares.sum(0) - 1).abs()
    assert missing.max() <= largest and missing.mean() <= mean
    if frame == 448:  # whole tiles of 64 and of 112 keys
        assert (shares - twin).abs().mean() <= 5e-3


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("name", TOLERANCES)
def test_more_regions_than_marks(name):
    (query, key), value = drawn(name, (1, 200, 2, 128), (1, 700, 2, 128), (1, 700, 2, 128))
    regions = torch.eye(7, device=DEVICE).repeat_interleave(60, 1)
    _, shares = dispatch.self_attention(query, key, value, regions, backends.BACKENDS[name], torch.bfloat16)
    twin = dispatch.region_attention(query[0].cpu().float(), key[0, :420].cpu().float(), regions.cpu()).to(DEVICE)
    assert (shares - twin).abs().max() <= 5e-3


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize(("name", "steep"), [("hopper", 1), ("hopper", 30), ("fp8", 1)])
def test_peaks_that_grow_from_tile_to_tile(name, steep):
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
    out = backends.BACKENDS[name].function(*typed(name, query, key), value.bfloat16())
    assert out[0, 3].isnan().all() and out[0, :3].isfinite().all() and out[0, 4:].isfinite().all()
