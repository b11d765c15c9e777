"""Quantized checkpoints as others write them, quantizing while loading, and converting files."""

import json

import pytest
import torch
from support import host_memory, recipes
from support import quantized_files as files
from support.checks import relative_error

from wanvideo.checkpoints import convert, load
from wanvideo.checkpoints.reader import open_tensors
from wanvideo.cli.main import main
from wanvideo.errors import CheckpointError, InputError, OutputError, UnsupportedError
from wanvideo.memory.placement import check_parameters
from wanvideo.memory.residency import Residency
from wanvideo.ops.linear.fp4 import FP4Linear
from wanvideo.ops.linear.layer import Linear, RowScaledLinear

BASE, ADAPTER = recipes.transformer_state_dict(5), recipes.adapter_state_dict(5)
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# How a file is quantized, what its layers become, and the largest relative error of a forward from that rounding alone
# (the residual stream and everything outside the blocks are exact, so it is below that of a layer).
STORED = {
    "fp8 plain": (lambda s: (files.fp8_plain(s), None), E4M3, 0.03),
    "fp8 e5m2 plain": (lambda s: (files.fp8_plain(s, E5M2), None), E5M2, 0.06),
    "fp8 scale_weight": (lambda s: (files.fp8_scaled(s), None), E4M3, 0.03),
    "fp8 weight_scale": (lambda s: (files.fp8_scaled(s, "weight_scale"), None), E4M3, 0.03),
    "fp8 e5m2 scaled": (lambda s: (files.fp8_scaled(s, dtype=E5M2), None), E5M2, 0.06),
    "fp8 by rows": (lambda s: (files.fp8_scaled(s, "weight_scale", by_rows=True), None), E4M3, 0.03),
    "comfy_quant": (lambda s: files.comfy_fp8(s), E4M3, 0.03),
    "comfy header": (lambda s: files.comfy_fp8(s, marked=False), E4M3, 0.03),
    "int8 by rows": (lambda s: (files.int8_rows(s), None), torch.int8, 0.01),
    "int8 unmarked": (lambda s: (files.int8_rows(s, marked=False), None), torch.int8, 0.01),
    "quanto fp8": (lambda s: files.quanto(s, E4M3), E4M3, 0.03),
    "quanto int8": (lambda s: files.quanto(s, torch.int8), torch.int8, 0.01),
    "nvfp4": (lambda s: (files.nvfp4(s), None), torch.uint8, 0.09),
}
INPUTS = recipes.transformer_inputs(2, 4, 4, 1, 500, 9)


@pytest.fixture(scope="module")
def exact():
    return load.load_transformer(BASE, ADAPTER, dtype=torch.float32)(**INPUTS)


def write(path, name, state, prefix=""):
    stored, extra = STORED[name][0](state)
    stored = {prefix + key: value for key, value in stored.items()}
    return files.write(path, stored, **{"quanto_map" if "quanto" in name else "metadata": extra})


@pytest.mark.parametrize("name", STORED)
def test_every_convention_keeps_its_format(name, exact, tmp_path):
    path = write(tmp_path / "merged.safetensors", name, BASE | ADAPTER)
    _, storage, bound = STORED[name]
    model = load.load_transformer(path, dtype=torch.float32)
    check_parameters(model, "cpu")
    kinds = {type(layer) for name, layer in model.blocks.named_modules() if isinstance(layer, Linear)}
    assert kinds - {Linear} == {FP4Linear if storage == torch.uint8 else RowScaledLinear}
    assert model.blocks[1].ffn[2].weight.dtype == storage and type(model.head.head) is Linear
    found = model(**INPUTS)
    assert bound / 10 < relative_error(found, exact) < bound
    residency = Residency(model, "cpu")
    for num_streamed in (2, 0):
        residency.place(num_streamed)
        assert torch.equal(model(**INPUTS), found)
    residency.offload()
    check_parameters(model, "cpu")
    assert torch.equal(model(**INPUTS), found)


@pytest.mark.parametrize("name", STORED)
def test_the_numbers_are_those_of_the_convention(name, tmp_path):
    """Widened layers hold what a plain reading of the scales gives."""
    stored, extra = STORED[name][0](BASE)
    model = load.load_transformer(files.write(tmp_path / "x.safetensors", stored))
    layer, key = model.blocks[0].cross_attn.k, "blocks.0.cross_attn.k"
    if "quanto" in name:
        expected = stored[f"{key}.weight._data"].float() * stored[f"{key}.weight._scale"].float()
    elif name == "nvfp4":
        expected = layer.dense_weight(torch.float32)
        assert relative_error(expected, BASE[f"{key}.weight"]) < 0.11
    else:
        scales = [stored[f"{key}.{end}"] for end in ("scale_weight", "weight_scale") if f"{key}.{end}" in stored]
        expected = stored[f"{key}.weight"].float() * (scales[0] if scales else 1.0)
    assert torch.equal(layer.dense_weight(torch.float32), expected)


@pytest.mark.parametrize("base", [None, "fp8 plain", "fp8 scale_weight", "quanto int8", "nvfp4"])
@pytest.mark.parametrize("adapter", [None, "fp8 scale_weight", "comfy header", "int8 by rows", "nvfp4"])
def test_base_and_adapter_in_different_formats(base, adapter, exact, tmp_path):
    paths = [tmp_path / "base.safetensors", tmp_path / "adapter.safetensors"]
    for path, name, state in zip(paths, (base, adapter), (BASE, ADAPTER), strict=True):
        prefix = "" if name in (None, "quanto int8") else "diffusion_model."
        write(path, name, state, prefix) if name else files.write(path, state)
    model = load.load_transformer(*paths, dtype=torch.float32)
    check_parameters(model, "cpu")
    bounds = [STORED[name][2] for name in (base, adapter) if name]
    found = relative_error(model(**INPUTS), exact)
    assert found < max(bounds, default=1e-6) and (found > 1e-3) == (base is not None or adapter is not None)


@pytest.mark.parametrize("to, bound", [("fp8", 0.03), ("int8", 0.01), ("fp4", 0.09)])
def test_quantizing_while_loading(to, bound, exact, caplog):
    with caplog.at_level("INFO", "wanvideo"):
        model = load.load_transformer(BASE, ADAPTER, dtype=torch.float32, quantize=to)
    assert f"fp32 + 28 x {to} on cpu" in caplog.text and len(caplog.records) == 1
    check_parameters(model, "cpu")
    assert 1e-3 < relative_error(model(**INPUTS), exact) < bound
    dense = load.load_transformer(BASE, ADAPTER, dtype=torch.float32).state_dict()
    quantized = {name.removesuffix(".weight_scale") for name in model.state_dict() if name.endswith(".weight_scale")}
    assert all(name.startswith("blocks.") for name in quantized)
    for name, value in model.state_dict().items():
        if name.rpartition(".")[0] not in quantized or name.endswith("bias"):
            assert torch.equal(value, dense[name]), name
    assert {"blocks.0.ffn.0", "blocks.1.audio_cross_attn.proj", "blocks.0.cross_attn.k_img"} <= quantized


def test_a_format_that_is_there_is_kept(tmp_path, caplog):
    path = write(tmp_path / "base.safetensors", "fp8 scale_weight", BASE)
    with caplog.at_level("INFO", "wanvideo"):
        model = load.load_transformer(path, ADAPTER, quantize="int8")
    assert "24 matrices are stored as fp8 and stay so, not int8" in caplog.text
    assert model.blocks[0].ffn[0].weight.dtype == E4M3
    assert model.blocks[0].audio_cross_attn.proj.weight.dtype == torch.int8


def test_an_unknown_format_is_refused_first():
    for loader in (load.load_transformer, load.load_text_encoder):
        with pytest.raises(InputError, match="'q4'. Use fp8, int8, fp4"):
            loader("no_such_file", quantize="q4")


@pytest.mark.parametrize("name", [*STORED, "at load"])
def test_text_encoder(name, tmp_path):
    state = recipes.t5_state_dict(5)
    options = {"quantize": "fp8"} if name == "at load" else {}
    path = (
        files.write(tmp_path / "t5.safetensors", state) if options else write(tmp_path / "t5.safetensors", name, state)
    )
    model = load.load_text_encoder(path, dtype=torch.float32, **options)
    check_parameters(model, "cpu")
    assert sum(isinstance(layer, Linear) for layer in model.modules()) == 14
    ids, mask = recipes.t5_inputs(3)
    expected = torch.cat(load.load_text_encoder(state, dtype=torch.float32).encode(ids, mask))
    assert relative_error(torch.cat(model.encode(ids, mask)), expected) < (0.12 if name == "nvfp4" else 0.07)


def test_quanto_maps(tmp_path):
    """The map is not needed, but one of another file is refused."""
    path = write(tmp_path / "infinitetalk_single_fp8.safetensors", "quanto fp8", BASE | ADAPTER)
    listed = path.with_suffix(".json")
    good = json.loads(listed.read_text())
    model = load.load_transformer(path)
    assert model.config.audio is not None
    for wrong in (
        {key: value for key, value in good.items() if "ffn" not in key},
        {key: value | {"weights": "qint8"} for key, value in good.items()},
        good | {"blocks.7.ffn.0": {"weights": "qfloat8", "activations": "none"}},
    ):
        listed.write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match="single_fp8.json is not the map of infinitetalk_single_fp8.safetens"):
            load.load_transformer([path])
    listed.write_text("{")
    with pytest.raises(CheckpointError, match=r"infinitetalk_single_fp8\.json, line 1"):
        load.load_transformer(path)
    listed.unlink()
    load.load_transformer(path)


def test_the_map_of_a_text_encoder(tmp_path):
    state, listed = files.quanto(recipes.t5_state_dict(5), E4M3)
    path = files.write(tmp_path / "t5_fp8.safetensors", state)
    load.load_text_encoder(path)
    (tmp_path / "t5_map_fp8.json").write_text(json.dumps(listed))
    load.load_text_encoder(path)
    listed.popitem()
    (tmp_path / "t5_map_fp8.json").write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match="t5_map_fp8.json is not the map of t5_fp8.safetensors"):
        load.load_text_encoder(path)


KEY = "blocks.0.ffn.0"
ROTATED = {"format": "int8_tensorwise", "convrot": True}


def changed(state, **changes):
    """Tensors of one layer replaced, or removed where the change is None."""
    result = dict(state)
    for end, value in changes.items():
        name = f"{KEY}.{end.replace('__', '.')}"
        result.pop(name, None)
        if value is not None:
            result[name] = value
    return result


BROKEN = [
    ("no scale for int8", lambda: changed(files.int8_rows(BASE), weight_scale=None), "ffn.0 is int8 without a scale"),
    (
        "scales of other rows",
        lambda: changed(files.fp8_scaled(BASE), scale_weight=torch.ones(7)),
        r"scales of shape \[7\] for a weight of shape \[384, 256\]",
    ),
    (
        "a scale that is no number",
        lambda: changed(files.fp8_scaled(BASE), scale_weight=torch.tensor(float("nan"))),
        "not finite",
    ),
    ("no quanto scale", lambda: changed(files.quanto(BASE, E4M3)[0], weight___scale=None), "_data without"),
    (
        "quanto int4",
        lambda: changed(files.quanto(BASE, E4M3)[0], weight___data=torch.zeros(9, 9).byte()),
        "quanto tensor",
    ),
    ("fp4 without tensor scale", lambda: changed(files.nvfp4(BASE), weight_scale_2=None), "without weight_scale_2"),
    ("fp4 without block scales", lambda: changed(files.nvfp4(BASE), weight_scale=None), "without weight_scale"),
    ("fp4 cut", lambda: changed(files.nvfp4(BASE), weight_scale=torch.zeros(4, 4).to(E4M3)), "fp4 weights of shape"),
    (
        "marker of another format",
        lambda: changed(files.comfy_fp8(BASE)[0], comfy_quant=files.marker({"format": "nvfp4"})),
        "without weight_scale_2",
    ),
    (
        "marker that is no JSON",
        lambda: changed(files.comfy_fp8(BASE)[0], comfy_quant=torch.zeros(3, dtype=torch.uint8)),
        "unreadable comfy_quant",
    ),
    (
        "mxfp8",
        lambda: changed(files.comfy_fp8(BASE)[0], comfy_quant=files.marker({"format": "mxfp8"})),
        "ffn.0 is stored as mxfp8; float8_e4m3fn",
    ),
    (
        "rotated weights",
        lambda: changed(
            files.int8_rows(BASE), comfy_quant=files.marker({"format": "int8_tensorwise", "convrot": True})
        ),
        "with rotated weights",
    ),
    ("scaled inputs", lambda: changed(files.nvfp4(BASE), pre_quant_scale=torch.ones(256)), "pre_quant_scale"),
    (
        "two layers mixed up",
        lambda: changed(files.fp8_plain(BASE), weight=torch.zeros(256, 384).to(E4M3)),
        r"blocks\.0\.ffn\.0\.weight is \[256, 384\], not \[384, 256\]",
    ),
    ("a scale of nothing", lambda: files.fp8_plain(BASE) | {"blocks.1.x.weight_scale": torch.ones(1)}, "too many"),
]


@pytest.mark.parametrize("make, message", [item[1:] for item in BROKEN], ids=[item[0] for item in BROKEN])
def test_broken_files_are_refused_by_name(make, message, tmp_path):
    path = files.write(tmp_path / "broken.safetensors", make())
    with pytest.raises((CheckpointError, UnsupportedError), match=message) as raised:
        load.load_transformer(path)
    assert "broken.safetensors" in str(raised.value) and str(raised.value).count("\n") <= 2


def test_broken_header_metadata(tmp_path):
    path = files.write(tmp_path / "x.safetensors", BASE, metadata={"_quantization_metadata": "{"})
    with pytest.raises(CheckpointError, match="x.safetensors has unreadable _quantization_metadata"):
        load.load_transformer(path)


@pytest.mark.parametrize("to", ["fp8", "int8", "fp4"])
@pytest.mark.parametrize("state, kind", [(BASE | ADAPTER, "transformer"), (ADAPTER, "adapter")])
def test_convert_writes_what_loading_would_make(to, state, kind, tmp_path, capsys):
    source, target = tmp_path / "dense.safetensors", tmp_path / f"{to}.safetensors"
    files.write(source, {f"model.diffusion_model.{key}": value.bfloat16() for key, value in state.items()})
    assert main(["convert", "--in", str(source), "--out", str(target), "--to", to]) == 0
    assert f"matrices in {to}" in capsys.readouterr().out
    written = open_tensors(target)
    assert all(key.startswith("model.diffusion_model.") for key in written)
    assert ("model.diffusion_model.scaled_fp8" in written) == (to == "fp8")
    layers = json.loads(written.metadata["_quantization_metadata"])["layers"]
    assert layers["model.diffusion_model.blocks.0.audio_cross_attn.proj"]["format"] == convert.MARKERS[to]
    files_of = {"transformer": lambda path: (path,), "adapter": lambda path: (BASE, path)}[kind]
    one = load.load_transformer(*files_of(target)).state_dict()
    two = load.load_transformer(*files_of(source), quantize=to).state_dict()
    for name, value in one.items():
        if kind == "transformer" or "audio_cross" in name:
            assert torch.equal(value.view(torch.uint8), two[name].view(torch.uint8)), name


def test_convert_to_bf16(tmp_path):
    source, target = write(tmp_path / "x.safetensors", "nvfp4", BASE), tmp_path / "y.safetensors"
    assert convert.convert(source, target, "bf16").quantized == 0
    plain = load.load_transformer(target)
    packed = load.load_transformer(source)
    for one, two in zip(plain.modules(), packed.modules(), strict=True):
        if isinstance(one, Linear):
            assert type(one) is Linear and torch.equal(one.weight, two.dense_weight(one.weight.dtype))
    assert open_tensors(target).dtype("blocks.0.norm3.weight") == torch.float32


def test_convert_gguf_and_text_encoder(tmp_path, caplog):
    files.write_gguf(tmp_path / "t5.gguf", recipes.t5_state_dict(5), "Q8_0")
    with caplog.at_level("WARNING", "wanvideo"):
        convert.convert(tmp_path / "t5.gguf", tmp_path / "t5.safetensors", "int8")
    assert "loses precision a second time" in caplog.text
    model = load.load_text_encoder(tmp_path / "t5.safetensors", dtype=torch.float32)
    ids, mask = recipes.t5_inputs(3)
    expected = torch.cat(load.load_text_encoder(tmp_path / "t5.gguf", dtype=torch.float32).encode(ids, mask))
    assert relative_error(torch.cat(model.encode(ids, mask)), expected) < 0.02


def test_convert_refuses_first(tmp_path, capsys):
    source = files.write(tmp_path / "base.safetensors", BASE)
    vae = files.write(tmp_path / "vae.safetensors", recipes.vae_state_dict(5))
    for arguments, message in [
        ((source, tmp_path / "x.bin", "fp8"), "is a .safetensors file, not x.bin"),
        ((source, source, "fp8"), "exists already"),
        ((vae, tmp_path / "x.safetensors", "fp8"), "vae.safetensors is a Wan2.1 VAE.*which is not quantized"),
        ((tmp_path / "none.safetensors", tmp_path / "x.safetensors", "fp8"), "There is no model file"),
    ]:
        with pytest.raises((InputError, CheckpointError), match=message):
            convert.convert(*arguments)
    assert main(["convert", "--in", str(vae), "--out", str(tmp_path / "x.safetensors"), "--to", "fp4"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "vae.safetensors"]


def test_convert_looks_for_room_before_it_reads_a_tensor(tmp_path, monkeypatch):
    source = files.write(tmp_path / "base.safetensors", BASE)
    monkeypatch.setattr("wanvideo.memory.machine.free_disk_bytes", lambda folder: 2**26 + 1000)
    monkeypatch.setattr(convert, "write_safetensors", None)
    with pytest.raises(OutputError, match="0.1 GB free, 0.0 GB are to come"):
        convert.convert(source, tmp_path / "x.safetensors", "fp8")
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_a_failed_conversion_leaves_nothing(tmp_path):
    stored = changed(files.fp8_scaled(BASE), scale_weight=torch.tensor(float("inf")))
    source = files.write(tmp_path / "x.safetensors", stored)
    with pytest.raises(CheckpointError, match="not finite"):
        convert.convert(source, tmp_path / "y.safetensors", "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


PEAK = """
import sys, torch
from support.host_memory import Peak
from wanvideo.checkpoints.convert import convert
from wanvideo.checkpoints.load import load_transformer

path, warm, to, out = sys.argv[1:]
torch.set_num_threads(1)
load_transformer(warm, quantize=to)
tensors = []
with Peak() as peak:
    if out:
        convert(path, out, to)
    else:
        model = load_transformer(path, quantize=to)
        tensors = [*model.parameters(), *model.buffers()]
print(sum(t.numel() * t.element_size() for t in tensors), peak.grown)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A bf16 checkpoint of about 300 MB, and a tiny one to warm up with."""
    folder = tmp_path_factory.mktemp("large")
    shapes = recipes.transformer_shapes(**{**recipes.TINY, "dim": 1024, "ffn_dim": 8192, "num_layers": 5})
    files.write(folder / "large.safetensors", {k: torch.full(s, 0.01, dtype=torch.bfloat16) for k, s in shapes.items()})
    files.write(folder / "tiny.safetensors", BASE)
    return folder


@host_memory.NEEDS_PROC
@pytest.mark.parametrize("to, out", [("fp8", ""), ("int8", ""), ("fp4", ""), ("fp8", "out.safetensors")])
def test_peak_memory_is_the_result_and_one_tensor(large, to, out, tmp_path):
    """A matrix has 8 M weights here: what is held of it at a time is its result and float32 copies of a few rows."""
    paths = large / "large.safetensors", large / "tiny.safetensors"
    size, peak = host_memory.run(PEAK, *paths, to, out and tmp_path / out)
    assert (large / "large.safetensors").stat().st_size > 280e6
    assert peak <= size + 32e6
