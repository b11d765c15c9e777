"""The fused row kernels against their eager references; on a machine without a GPU in Triton's interpreter."""

import math

import pytest
import torch
from support.checks import DEVICE, draw

from wanvideo.ops import kernels, norm, pixel_norm
from wanvideo.ops.attention import dispatch as plain
from wanvideo.ops.attention.absorbed import attend_absorbed, can_absorb
from wanvideo.ops.attention.regions import FrameRegions
from wanvideo.ops.attention.rope import label_rope, rotate, video_rope
from wanvideo.ops.linear.formats import FORMATS, quantize_by_rows
from wanvideo.ops.linear.layer import Linear
from wanvideo.ops.quantized import FP8

pytest.importorskip("triton", reason="Triton is not installed; the eager references are used everywhere")
from wanvideo.ops.kernels import attention, rows  # noqa: E402

DTYPES = [torch.float32, torch.int8] + ([torch.float8_e4m3fn] if torch.cuda.is_available() else [])
ROWS, WIDTH, HEADS = 7, 1280, 10


def agree(ours, eager, dtype):
    if dtype == torch.float32:
        assert (ours - eager).abs().max() <= 2e-5
        return
    expected = norm.quantize_rows(eager, dtype)
    assert torch.allclose(ours.scale, expected.scale, rtol=1e-5)
    steps = (ours.data.float() - expected.data.float()).abs()
    assert steps.max() <= (1 if dtype == torch.int8 else 32) and (steps > 0).float().mean() < 0.01


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(dtype):
    x, scale, shift = draw(ROWS, WIDTH), draw(WIDTH) + 1, draw(WIDTH)
    agree(rows.layer_norm(x, scale, shift, 1e-6, dtype), norm.layer_norm(x, scale, shift, 1e-6), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", ["vector", 0.5])
def test_add_layer_norm(dtype, gate):
    x, y, scale, shift = draw(ROWS, WIDTH), draw(ROWS, WIDTH), draw(WIDTH) + 1, draw(WIDTH)
    gate = draw(WIDTH) if gate == "vector" else gate
    eager_hidden, eager = norm.add_layer_norm(x.clone(), y, gate, scale, shift, 1e-6)
    added = rows.add_gated(x.clone(), y, gate)
    hidden, out = rows.add_layer_norm(x, y, gate, scale, shift, 1e-6, dtype)
    assert (hidden - eager_hidden).abs().max() <= 1e-6
    agree(out, eager, dtype)
    assert torch.equal(added, hidden)


def test_the_stream_stays_float32_where_its_changes_are_bf16():
    x, y, scale, shift = draw(ROWS, WIDTH), draw(ROWS, WIDTH).bfloat16(), draw(WIDTH) + 1, draw(WIDTH)
    eager_hidden, eager = norm.add_layer_norm(x.clone(), y, 1.0, scale, shift, 1e-6, torch.bfloat16)
    hidden, out = rows.add_layer_norm(x, y, 1.0, scale, shift, 1e-6, torch.bfloat16)
    assert hidden.dtype == torch.float32 and (hidden - eager_hidden).abs().max() <= 1e-6
    assert out.dtype == torch.bfloat16 and torch.allclose(out, eager, rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("rotated", [True, False])
def test_rms_norm_heads(rotated):
    x, weight = draw(ROWS, WIDTH), draw(WIDTH) + 1
    table = video_rope(1, 1, ROWS, WIDTH // HEADS, x.device) if rotated else None
    ours = rows.rms_norm_heads(x, weight, 1e-6, HEADS, table, None)
    assert (ours - norm.rms_norm_heads(x, weight, 1e-6, HEADS, table)).abs().max() <= 2e-5


@pytest.mark.parametrize("rotated", [True, False])
def test_keys_without_their_mean(monkeypatch, rotated):
    """Of a sample that fills no program's rows; the rounding to 8 bits is that of `test_rms_norm_heads`."""
    monkeypatch.setattr(norm, "SAMPLED_KEYS", 9)
    x, weight = draw(23, WIDTH) + 3, draw(WIDTH) + 1
    table = video_rope(1, 1, 23, WIDTH // HEADS, x.device) if rotated else None
    tokens = norm.sampled_tokens(23, x.device)
    assert 1 < len(tokens) % rows.KEYS_TOGETHER and len(tokens) < 23
    ours, cpu = rows.key_mean(x, weight, 1e-6, HEADS, table, tokens), [y.cpu() for y in (x, weight)]
    eager = norm.key_shift(*cpu, 1e-6, HEADS, None if table is None else table.cpu(), FP8).to(DEVICE)
    assert ours.shape == (HEADS, WIDTH // HEADS) and (ours - eager).abs().max() <= 2e-5
    shifted = rows.rms_norm_heads(x, weight, 1e-6, HEADS, table, None, ours)
    assert (shifted - (norm.rms_norm_heads(x, weight, 1e-6, HEADS, table) - ours)).abs().max() <= 2e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_and_quantize(dtype):
    x = draw(ROWS, WIDTH) * 3
    agree(rows.gelu(x, dtype), torch.nn.functional.gelu(x, approximate="tanh"), dtype)
    if dtype != torch.float32:
        agree(rows.quantize_rows(x, dtype), x, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_widening_multiplies_each_row_by_its_scale(dtype):
    stored = norm.quantize_rows(draw(ROWS, WIDTH), DTYPES[-1])
    wide = rows.widen_rows(stored.data, stored.scale, dtype)
    assert wide.dtype == dtype
    assert torch.allclose(wide, stored.dense(dtype), rtol=1e-6 if dtype == torch.float32 else 2**-7)


def test_a_row_of_zeros_stays_zero():
    zeros = torch.zeros(2, WIDTH, device=DEVICE)
    assert torch.equal(rows.quantize_rows(zeros, torch.int8).dense(torch.float32), zeros)
    assert torch.equal(norm.quantize_rows(zeros, torch.int8).dense(torch.float32), zeros)


@pytest.mark.parametrize("labeled", [False, True])
@pytest.mark.parametrize("keys", [6, 64])
def test_grouped_attention(labeled, keys):
    groups, length, heads, width = 2, 37, 3, 128
    query, key, value = (
        draw(groups, length, heads, width),
        draw(groups, keys, heads, width),
        draw(groups, keys, heads, width),
    )
    labels = draw(groups * length).abs() * 10 if labeled else None
    rotated = query if labels is None else rotate(query.flatten(0, 1), label_rope(labels, width)).view_as(query)
    eager = plain.attend(rotated.cpu(), key.cpu(), value.cpu()).to(DEVICE)
    assert (attention.grouped_attention(query, key, value, labels) - eager).abs().max() <= 2e-5


@pytest.mark.parametrize("has_second", [True, False])
def test_dual_context(has_second):
    query, first = draw(41, 2, 128), (draw(7, 2, 128), draw(7, 2, 128).flip(0))
    second = (draw(70, 2, 128), draw(70, 2, 128).flip(0)) if has_second else None
    cpu = [None if pair is None else tuple(x.cpu() for x in pair) for pair in (first, second)]
    eager = plain.dual_context_attention(query.cpu(), *cpu, pad_count=30).to(DEVICE)
    repeated = tuple(torch.cat((x, x[-1:].expand(29, -1, -1))) for x in cpu[0])
    assert (plain.dual_context_attention(query.cpu(), repeated, cpu[1]).to(DEVICE) - eager).abs().max() <= 5e-6
    assert (attention.dual_context_attention(query, first, second, math.log(30)) - eager).abs().max() <= 2e-5
    rounded = plain.dual_context_attention(query.cpu(), *cpu, pad_count=30, value_bound=torch.tensor(20.0), dtype=FP8)
    assert (rounded.dense(torch.float32).to(DEVICE) - eager).norm() <= 0.04 * eager.norm()


def test_dual_context_of_zeros_in_fp8():
    """The largest value is zero then, and still something has to be divided by it."""
    query, pair = torch.randn(8, 2, 64), (torch.randn(5, 2, 64), torch.zeros(5, 2, 64))
    rows = plain.dual_context_attention(query, pair, pair, value_bound=torch.tensor(0.0), dtype=FP8)
    assert torch.equal(rows.dense(torch.float32), torch.zeros(8, 128))


def test_region_shares():
    query, key = draw(53, 2, 128), draw(70, 2, 128)
    regions = (draw(3, 70) > 0).float()
    eager = plain.region_attention(query.cpu(), key.cpu(), FrameRegions.of_first_keys(regions.cpu())).to(DEVICE)
    assert (attention.region_shares(query, key, regions) - eager).abs().max() <= 2e-5


def test_shares_do_not_depend_on_the_order_of_keys():
    """Regions over all keys, whose order is that of the keys: attention and shares stay."""
    query, key, value = draw(1, 53, 2, 128), draw(1, 203, 2, 128), draw(1, 204, 2, 128)[:, :203]
    members = (draw(3, 70) > 0).float()
    everywhere = torch.nn.functional.pad(members, (0, 133))
    in_frame = torch.arange(203, device=DEVICE) < 70
    sdpa, frame_first = plain.SDPA, FrameRegions.of_first_keys(members)
    rows, (shares, *_) = plain.self_attention(query, key, value, frame_first, sdpa, torch.float32)
    again = FrameRegions.among(everywhere, in_frame)
    assert again.spans == frame_first.spans == ((0, members.shape[1]),) and torch.equal(again.members, members)
    for order in (
        torch.randperm(203),
        torch.arange(203).roll(90),
        torch.cat([torch.arange(203)[r::4] for r in range(4)]),
    ):
        regions = FrameRegions.among(everywhere[:, order], in_frame[order])
        ours = plain.self_attention(query, key[:, order], value[:, order], regions, sdpa, torch.float32)
        assert (ours[0] - rows).abs().max() <= 1e-5 and (ours[1].values - shares).abs().max() <= 1e-6
        kernel = attention.region_shares(query[0], regions.keys_of_frame(key[0, order]), regions.members)
        assert (kernel - shares).abs().max() <= 2e-5


@pytest.mark.parametrize("spans", [((0, 60),), ((0, 40), (30, 60)), ((40, 70), (0, 40)), ((-1, 69),)])
def test_spans_that_are_not_those_of_the_frame_are_refused(spans):
    with pytest.raises(ValueError, match="spans"):
        FrameRegions(torch.zeros(2, 70), spans)


@pytest.mark.parametrize(("first", "later"), [(0, 1500), (1500, 0), (-1500, -1400), (0, 1000)])
def test_regions_whose_scores_are_far_apart(first, later):
    """Keys of the first tile and of later ones score as differently as no power of two in float32 can tell."""
    query = torch.zeros(40, 1, 128, device=DEVICE)
    query[:, :, 0], key = 1, draw(130, 1, 128) * 0.01
    key[:64, 0, 0], key[64:, 0, 0] = first, later
    regions = torch.zeros(2, 130, device=DEVICE)
    regions[0, :64], regions[1, 64:] = 1, 1
    eager = plain.region_attention(query.cpu(), key.cpu(), FrameRegions.of_first_keys(regions.cpu())).to(DEVICE)
    assert (attention.region_shares(query, key, regions) - eager).abs().max() <= 2e-5


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="tiles in half precision come through a GPU's copy engine; there is no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8])
@pytest.mark.parametrize("length", [64, 203])
def test_tiles_of_the_copy_engine(length, dtype):
    query, key, value = (draw(n, 2, 128).bfloat16() for n in (length, 70, 71))
    query, key = query.to(dtype), key.to(dtype)
    first, second = (key[:7], value[:7]), (key, value[:70])
    cpu = [tuple(x.cpu().float() for x in pair) for pair in (first, second)]
    eager = plain.dual_context_attention(query.cpu().float(), *cpu, pad_count=30).to(DEVICE)
    rows = attention.dual_context_attention(query, first, second, math.log(30))
    assert (rows - eager).abs().max() <= 0.03
    bound = value.abs().amax().float() * 2
    rounded = plain.dual_context_attention(query, first, second, 30, bound, FP8)
    assert rounded.data.dtype == FP8 and (rounded.dense(torch.float32) - eager).norm() <= 0.04 * eager.norm()
    regions = (draw(3, 70) > 0).float()
    members = FrameRegions.of_first_keys(regions.cpu())
    eager = plain.region_attention(query.cpu().float(), key.cpu().float(), members).to(DEVICE)
    assert (attention.region_shares(query, key, regions) - eager).abs().max() <= 2e-3


def test_scale_products():
    products = (draw(ROWS, WIDTH) * 1000).int()
    row, column, bias = draw(ROWS, 1).abs(), draw(WIDTH, 1).abs(), draw(WIDTH)
    expected = products.float() * row * column.T + bias
    assert torch.allclose(rows.scale_products(products, row, column, bias, torch.float32), expected, rtol=1e-5)


def test_pixel_norm_silu():
    x = draw(1, 24, 2, 3, 5).contiguous(memory_format=torch.channels_last_3d)
    out, gamma = torch.empty_like(x), draw(24, 1, 1, 1)
    rows.pixel_norm_silu(out, x, gamma)
    assert (out - torch.nn.functional.silu(pixel_norm.pixel_norm(x, gamma))).abs().max() <= 2e-5
    assert pixel_norm._is_dense(x[:, :, 1:]) and not pixel_norm._is_dense(x.contiguous())


def projection(width, seed, dtype):
    layer = Linear(width, width).to(DEVICE, dtype).requires_grad_(False)
    layer.weight.copy_(draw(width, width + seed)[:, :width] * width**-0.5)
    layer.bias.copy_(draw(width))
    return layer


@pytest.mark.parametrize("rotated", [False, True])
def test_absorbed_attention(rotated):
    """Keys and values that absorb the projections, against projecting every token."""
    groups, length, width, heads, keys = 2, 150, 512, 4, 64
    dtype, tolerance = (torch.float32, 1e-4) if DEVICE == "cpu" else (torch.float16, 2e-2)
    hidden, key, value = (draw(groups, n, width).to(dtype) for n in (length, keys, keys + 1))
    key, value = (x[:, :keys].unflatten(-1, (heads, -1)) for x in (key, value))
    query, out = projection(width, 0, dtype), projection(width, 1, dtype)
    labels = draw(groups * length).abs() * 8 if rotated else None
    projected = query(hidden).flatten(0, 1).unflatten(-1, (heads, -1))
    projected = rotate(projected, label_rope(labels, width // heads)) if rotated else projected
    eager = out(plain.attend(projected.unflatten(0, (groups, -1)), key, value).flatten(2)).flatten(0, 1)
    assert (attend_absorbed(hidden.flatten(0, 1), key, value, query, out, labels) - eager).abs().max() <= tolerance


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter has no fp8")
@pytest.mark.parametrize(("rotated", "offset"), [(False, 0), (True, 0), (False, 8)])
def test_absorbed_attention_in_fp8(rotated, offset):
    """As near to exact as the same layers in fp8 without absorbing; what a head's keys have in common costs nothing."""
    groups, length, width, heads, keys = 3, 600, 5120, 40, 64 if rotated else 32
    hidden, key, value = (draw(groups, n, width).bfloat16() for n in (length, keys, keys + 1))
    key, value = (x[:, :keys].unflatten(-1, (heads, -1)) for x in (key, value))
    key = key + offset * draw(heads, width // heads, seed=1).sign().bfloat16()
    exact = [projection(width, i, torch.bfloat16) for i in (0, 1)]
    query, out = (FORMATS["fp8"].layer(tuple(x.weight.shape), quantize_by_rows(x.weight, FP8)) for x in exact)
    query.bias, out.bias = (x.bias for x in exact)
    labels = draw(groups * length).abs() * 8 if rotated else None
    rows_in = norm.quantize_rows(hidden.flatten(0, 1), FP8)

    def projected_all(query, out, x):
        projected = query(x).view(groups, length, heads, -1)
        return out(plain.grouped_attention(projected, key, value, labels).flatten(2).flatten(0, 1)).float()

    eager = projected_all(*exact, hidden.flatten(0, 1))
    error = (attend_absorbed(rows_in, key, value, query, out, labels).float() - eager).norm() / eager.norm()
    usual = (projected_all(query, out, rows_in) - eager).norm() / eager.norm()
    assert can_absorb(hidden.flatten(0, 1), key, query, out) and error <= 1.3 * usual + 0.005, (error, usual)


def test_what_absorbing_fits():
    fits = kernels.absorbed_kernels().fits
    assert fits(40, 32, 5120) and fits(40, 64, 5120) and not fits(40, 24, 5120) and not fits(40, 96, 5120)
