"""Storage formats of linear layers: how far each rounds, and that nothing but the rounding changes a result."""

import gguf
import numpy as np
import pytest
import torch
from support import recipes
from support.checks import relative_error
from support.quantized_files import GGUF_TYPES
from support.rounding import E4M3_ERROR, with_offset, with_outliers
from support.tiny import tiny_transformer

from wanvideo.checkpoints.quantize import pack_linears
from wanvideo.memory.placement import PlacementError, check_parameters
from wanvideo.memory.residency import Residency
from wanvideo.memory.streaming import BlockStreamer
from wanvideo.ops import row_blocks
from wanvideo.ops.linear import fp4
from wanvideo.ops.linear.formats import FORMATS, QUANTIZERS
from wanvideo.ops.linear.gguf import LAYOUTS
from wanvideo.ops.linear.layer import Linear
from wanvideo.ops.norm import quantize_rows

ROWS, COLUMNS = 48, 512
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Largest relative error (root mean square) of a layer's result for weights ~ N(0, 1), from the format's own rounding.
# fp8 e4m3: 3 bits of fraction, 2^-4 / sqrt(3) at most. e5m2: 2 bits. int8: steps of 1/127 of the row's peak, about
# 3.2 / 127 / sqrt(12). fp4: 1 bit of fraction. GGUF: steps of the peak or range of 32 weights, about 4 / 2^bits /
# sqrt(12). Formats that are only read have no rounding of their own here: their numbers are compared bit by bit.
BOUNDS = {
    "fp8": 0.036, "fp8_e5m2": 0.072, "int8": 0.009, "fp4": 0.11, "Q8_0": 0.006, "Q5_0": 0.045, "Q5_1": 0.045,
    "Q4_0": 0.09, "Q4_1": 0.09,
}  # fmt: skip


# Activations as trained models have them; what rounding the weights does is relative to these, whatever they are.
ACTIVATIONS = {
    "plain": lambda x: x,
    "offset": lambda x: with_offset(x, 16, 8),
    "outliers": lambda x: with_outliers(x, 6, 30),
    "huge outliers": lambda x: with_outliers(x, 3, 1000),
    "rows of all sizes": lambda x: x * torch.logspace(-3, 3, len(x), dtype=torch.float32, device=x.device)[:, None],
}


def dense_weight():
    return recipes.tensor("format.weight", (ROWS, COLUMNS), 1)


def parts_of(name, weight):
    if FORMATS[name].quantize:
        return FORMATS[name].quantize(weight)
    if name == "fp8_e5m2":
        scale = weight.abs().amax(1, keepdim=True) / 57344
        return {"weight": (weight / scale).to(torch.float8_e5m2), "weight_scale": scale}
    return {"weight": torch.from_numpy(gguf.quants.quantize(weight.numpy(), GGUF_TYPES[name]))}


def layer_of(name, weight, bias=None):
    layer = FORMATS[name].layer(tuple(weight.shape), parts_of(name, weight))
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias, requires_grad=False)
    return layer


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_of_a_layer_is_the_rounding_of_its_format(name, dtype):
    weight = dense_weight()
    x, bias = recipes.tensor("format.x", (9, COLUMNS), 1).to(dtype), recipes.tensor("format.bias", (ROWS,), 1).to(dtype)
    layer = layer_of(name, weight, bias)
    out, exact = layer(x), torch.nn.functional.linear(x.float(), weight)
    assert out.dtype == dtype and out.shape == (9, ROWS)
    found = relative_error(out.float() - bias.float(), exact)
    assert BOUNDS[name] / 4 < found < BOUNDS[name] + (0.005 if dtype == torch.bfloat16 else 0)
    widened = torch.nn.functional.linear(x, layer.dense_weight(dtype), bias)
    assert torch.equal(out, widened)
    check_parameters(layer, "cpu")


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("name", BOUNDS)
def test_error_of_a_layer_does_not_depend_on_its_activations(name, kind):
    """Rounding of weights is independent of them. Where few columns of the weight carry the result, or one row of
    activations does, the error is a mean of fewer squares: three standard deviations of it are allowed."""
    weight, x = recipes.tensor("format.tall", (512, COLUMNS), 1), recipes.tensor("format.x", (90, COLUMNS), 1)
    x = ACTIVATIONS[kind](x)
    out, exact = layer_of(name, weight)(x), torch.nn.functional.linear(x, weight)
    assert BOUNDS[name] / 4 < relative_error(out, exact) < BOUNDS[name] * (1 + 3 / (2 * 512) ** 0.5)


@pytest.mark.parametrize("name", BOUNDS)
def test_every_format_takes_rows_that_were_quantized_for_a_neighbor(name):
    """Layers that share an input may be stored differently."""
    layer = layer_of(name, dense_weight(), recipes.tensor("format.bias", (ROWS,), 1))
    rows = quantize_rows(recipes.tensor("format.x", (9, COLUMNS), 1), torch.int8)
    assert torch.equal(layer(rows), layer(rows.dense(torch.float32)))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_gguf_blocks_are_widened_bit_by_bit(name):
    """All bytes are valid blocks; scales that are no numbers are replaced, as they would hide everything else."""
    layout, type_ = LAYOUTS[name], gguf.GGMLQuantizationType[name]
    assert gguf.GGML_QUANT_SIZES[type_] == (layout.block_size, layout.block_bytes)
    draw = np.random.default_rng(1)
    blocks = draw.integers(0, 256, (6, 4 * layout.block_bytes), dtype=np.uint8)
    expected = gguf.quants.dequantize(blocks, type_)
    layer = FORMATS[name].layer((6, 4 * layout.block_size), {"weight": torch.from_numpy(blocks)})
    found = layer.dense_weight(torch.float32).numpy()
    assert np.array_equal(found, expected, equal_nan=True) and np.isfinite(expected).mean() > 0.8
    finite = np.isfinite(expected)
    assert np.array_equal(found[finite].view(np.uint32), expected[finite].view(np.uint32))


@pytest.mark.parametrize("name", FORMATS)
def test_row_blocks_change_nothing(name, monkeypatch):
    weight = recipes.tensor("w", (40, 512), 2)
    if name in BOUNDS:
        parts = parts_of(name, weight)
    else:
        bytes_ = LAYOUTS[name].row_bytes(512)
        parts = {
            "weight": torch.zeros(40, bytes_, dtype=torch.uint8) + torch.arange(40, dtype=torch.uint8)[:, None] % 9
        }
    whole = FORMATS[name].layer((40, 512), parts).dense_weight(torch.float32)
    monkeypatch.setattr(row_blocks, "CACHED", 512 * 7)
    assert torch.equal(FORMATS[name].layer((40, 512), parts).dense_weight(torch.float32), whole)
    if FORMATS[name].quantize:
        again = FORMATS[name].quantize(weight)
        assert all(torch.equal(again[key].view(torch.uint8), parts[key].view(torch.uint8)) for key in parts)


@pytest.mark.parametrize("name", FORMATS)
def test_one_graph(name):
    """No format breaks the graph of a compiled block."""
    torch._dynamo.reset()
    shape = 32, 256
    parts = {key: torch.zeros_like(value, device="cpu") for key, value in FORMATS[name].parts(shape).items()}
    layer = FORMATS[name].layer(shape, parts)
    x = recipes.tensor("x", (3, 256), 1)
    assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))


def test_fp4_is_read_as_its_layout_says():
    """Every weight on its own, in plain Python: its nibble, the scale of its tile, the scale of the tensor."""
    rows, columns = 144, 96
    weight = recipes.tensor("w", (rows, columns), 3)
    parts = fp4.quantize_fp4(weight)
    dense = FORMATS["fp4"].layer((rows, columns), parts).dense_weight(torch.float32)
    tiles, per_row = parts["weight_scale"].float().flatten(), parts["weight_scale"].shape[1] // 4
    for row, column in [(0, 0), (0, 1), (3, 17), (31, 95), (32, 16), (100, 64), (127, 31), (128, 80), (143, 95)]:
        byte = int(parts["weight"][row, column // 2])
        code = byte >> 4 if column % 2 == 0 else byte & 15
        value = (-1) ** (code >> 3) * (0, 0.5, 1, 1.5, 2, 3, 4, 6)[code & 7]
        block = column // 16
        tile = (row // 128) * per_row + block // 4
        scale = tiles[tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + block % 4]
        assert dense[row, column] == value * (scale * parts["weight_scale_2"][0])


def test_fp4_rounds_to_the_nearest_and_ties_to_even():
    x = torch.tensor([0.0, 0.25, 0.26, 0.75, 1.25, 1.75, 2.5, 2.6, 3.5, 5.0, 5.1, 9.0, -0.75, -2.4])
    assert fp4._codes(x).tolist() == [0, 0, 1, 2, 2, 4, 4, 5, 6, 6, 7, 7, 10, 12]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_zeros_stay_zeros(name):
    weight = torch.zeros(32, 64)
    weight[3] = 1.0
    dense = layer_of(name, weight).dense_weight(torch.float32)
    assert torch.equal(dense, weight)
    assert torch.equal(layer_of(name, torch.zeros(32, 64)).dense_weight(torch.float32), torch.zeros(32, 64))


@pytest.mark.parametrize("sizes", [(17, 33), (200, 80), (128, 64)])
def test_fp4_pads(sizes):
    weight = recipes.tensor("w", sizes, 4)
    layer = layer_of("fp4", weight)
    assert layer.weight.shape[0] % 16 == layer.weight.shape[1] % 8 == 0
    assert relative_error(layer.dense_weight(torch.float32), weight) < BOUNDS["fp4"]


@pytest.mark.parametrize("name, storage", [("int8", torch.int8), ("fp8", torch.float8_e4m3fn)])
@pytest.mark.parametrize("rows", [1, 16, 40])
def test_products_in_8_bits(name, storage, rows):
    """What GPUs do, on the CPU: both factors in 8 bits, one scale a row each."""
    layer = layer_of(name, dense_weight(), recipes.tensor("format.bias", (ROWS,), 1))
    x = quantize_rows(recipes.tensor("format.x", (rows, COLUMNS), 1), storage)
    expected = torch.nn.functional.linear(x.dense(torch.float32), layer.dense_weight(torch.float32), layer.bias)
    try:
        out = layer.multiply(x, torch.float32)
    except RuntimeError as problem:
        if "per-tensor scaling" not in str(problem):
            raise
        pytest.skip(f"torch {torch.__version__} multiplies fp8 with one scale a row on GPUs only")
    assert relative_error(out, expected) < (
        1e-6 if storage == torch.int8 else 0.004
    )  # fp8 products are given back in bf16


def product_bound(layer, weight, x, rows):
    """Largest relative error of rows [L, K] of x times the layer's weight [N, K], from the rounding of both.

    fp8 misses a part of each number, at most where all fractions are 1; int8 an evenly distributed part of its row's
    step. Errors are independent of each other: their squares add up.
    """
    if layer.weight.dtype != torch.int8:
        return 2**0.5 * (2**0.5 * E4M3_ERROR)
    of_rows = rows.scale.square().sum() * weight.square().sum()
    of_weights = layer.weight_scale.square().sum() * x.float().square().sum()
    exact = torch.nn.functional.linear(x.float(), weight).square().sum()
    return float(1.1 * ((of_rows + of_weights) / 12 / exact).sqrt())


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("name, storage", [("int8", torch.int8), ("fp8", torch.float8_e4m3fn)])
def test_error_of_products_in_8_bits(name, storage, kind):
    """Both factors rounded, as GPUs multiply them; the products themselves are exact (above)."""
    weight, x = recipes.tensor("w", (256, 512), 1), ACTIVATIONS[kind](recipes.tensor("x", (400, 512), 1))
    layer, rows = layer_of(name, weight), quantize_rows(x, storage)
    out = torch.nn.functional.linear(rows.dense(torch.float32), layer.dense_weight(torch.float32))
    bound = product_bound(layer, weight, x, rows)
    assert bound / 4 < relative_error(out, torch.nn.functional.linear(x, weight)) < bound < 0.06


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_error_of_products_in_4_bits(kind):
    """Activations have one fp8 scale for 16 neighbors: an outlier costs them, and nobody else."""
    weight, x = recipes.tensor("w", (256, 512), 1), ACTIVATIONS[kind](recipes.tensor("x", (400, 512), 1))
    rows = layer_of("fp4", x).dense_weight(torch.float32)
    exact = torch.nn.functional.linear(x, weight)
    assert relative_error(rows @ layer_of("fp4", weight).dense_weight(torch.float32).T, exact) < 2**0.5 * BOUNDS["fp4"]


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("name", ["fp8", "int8"])
def test_error_of_products_in_8_bits_on_the_gpu(name, kind):
    weight, x = (recipes.tensor(part, (size, 768), 1).cuda() for part, size in (("w", 512), ("x", 4096)))
    x = ACTIVATIONS[kind](x).bfloat16()
    layer = layer_of(name, weight, torch.zeros(512, dtype=torch.bfloat16, device="cuda")).cuda()
    bound = product_bound(layer, weight, x, quantize_rows(x, layer.input_dtype)) + 2**-8  # and results in bf16
    assert relative_error(layer(x), torch.nn.functional.linear(x.float(), weight)) < bound


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fp8", "int8"])
def test_products_in_8_bits_on_the_gpu(name):
    layer = layer_of(name, recipes.tensor("w", (512, 768), 1), recipes.tensor("b", (512,), 1)).cuda()
    layer.bias.data = layer.bias.data.bfloat16()
    x = recipes.tensor("x", (4096, 768), 1).cuda().bfloat16()
    rows = quantize_rows(x, layer.input_dtype)
    exact = torch.nn.functional.linear(rows.dense(torch.float32), layer.dense_weight(torch.float32), layer.bias.float())
    assert relative_error(layer(x), exact) < 0.006 and torch.equal(layer(x), layer(rows))


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMATS)
def test_widening_on_the_gpu_is_that_of_the_cpu(name):
    shape = 32, 256
    parts = {key: torch.ones_like(value, device="cpu") for key, value in FORMATS[name].parts(shape).items()}
    host = FORMATS[name].layer(shape, parts).dense_weight(torch.float32)
    device = FORMATS[name].layer(shape, {key: value.cuda() for key, value in parts.items()})
    assert torch.equal(device.dense_weight(torch.float32).cpu(), host)


@pytest.fixture(scope="module")
def inputs():
    return recipes.transformer_inputs(2, 4, 4, 1, 500, 9)


def packed_model(name, num_layers=3):
    model = tiny_transformer(num_layers=num_layers)
    pack_linears(model.blocks, name)
    return model


@pytest.mark.parametrize("name", QUANTIZERS)
def test_all_paths_give_the_same(name, inputs):
    """Resident, all blocks streamed, some streamed, offloaded: the same bits, and every tensor in its place."""
    resident = packed_model(name)
    expected = resident(**inputs)
    dense = tiny_transformer(num_layers=3)(**inputs)
    assert relative_error(expected, dense) < BOUNDS[name]
    model = packed_model(name)
    residency = Residency(model, "cpu")
    for num_streamed in (3, 1, 0, 2):
        residency.place(num_streamed)
        assert torch.equal(model(**inputs), expected)
        check_parameters(model, "cpu")
    residency.offload()
    assert torch.equal(model(**inputs), expected)
    check_parameters(model, "cpu")


def test_40_streamed_blocks(inputs):
    model = packed_model("fp8", 40)
    expected = model(**inputs)
    model.block_provider = BlockStreamer(model.blocks, torch.device("cpu"), 40)
    assert torch.equal(model(**inputs), expected)
    check_parameters(model, "cpu")


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("name", QUANTIZERS)
def test_device_round_trip(name, inputs):
    model = packed_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    inputs = {key: value if value is None else value.cuda() for key, value in inputs.items()}
    residency = Residency(model, "cuda")
    residency.place(0)
    check_parameters(model, "cuda")
    expected = model(**inputs)
    residency.place(3)
    assert torch.equal(model(**inputs), expected)
    residency.offload()
    check_parameters(model, "cpu")
    after = model.state_dict()
    assert all(torch.equal(value.view(torch.uint8), after[key].view(torch.uint8)) for key, value in before.items())


@pytest.mark.parametrize("name", [*QUANTIZERS, "Q8_0", "Q4_0"])
@pytest.mark.parametrize("plant", ["transpose", "view", "misaligned", "meta"])
def test_planted_views_are_found(name, plant):
    layer = layer_of(name, recipes.tensor("w", (64, 64), 1))
    check_parameters(layer, "cpu")
    good = layer.weight.data
    if plant == "transpose":
        layer.weight.data = good.t().contiguous().t()
    elif plant == "view":
        layer.weight.data = torch.cat((good, good), 1)[:, : good.shape[1]]
    elif plant == "misaligned":
        wide = torch.zeros(good.numel() + 1, dtype=torch.uint8)
        layer.weight.data = wide[1:].view(good.dtype).view(good.shape).copy_(good)
    else:
        layer.weight = torch.nn.Parameter(torch.empty_like(good, device="meta"), requires_grad=False)
    with pytest.raises(PlacementError, match="weight.*(contiguous|aligned|meta)"):
        check_parameters(layer, "cpu")


def test_every_format_is_a_linear_layer():
    for name, item in FORMATS.items():
        layer = item.empty((32, 256), bias=True)
        assert isinstance(layer, Linear) and (layer.in_features, layer.out_features) == (256, 32), name
        stored = sum(part.numel() * part.element_size() for part in item.parts((1024, 2048)).values())
        assert stored * 8 / (1024 * 2048) == pytest.approx(item.bits, abs=0.05), name
