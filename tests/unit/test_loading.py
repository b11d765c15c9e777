"""Models from files: the same parameters from every layout, little memory, one clear sentence for what does not fit."""

import functools
import json

import pytest
import torch
from safetensors.torch import save_file
from support import host_memory, jobs, recipes

from wanvideo.checkpoints import load, reader
from wanvideo.checkpoints.dialects import DIALECTS, Kind, find_dialect, from_canonical, to_canonical
from wanvideo.checkpoints.folders import find_in_folder
from wanvideo.checkpoints.reader import open_tensors
from wanvideo.engine.files import ResolvedFiles, resolve
from wanvideo.engine.sizes import model_sizes
from wanvideo.errors import CheckpointError
from wanvideo.memory.placement import check_parameters
from wanvideo.ops.linear.layer import Linear, RowScaledLinear
from wanvideo.text.tokenizer import load_tokenizer


@functools.cache
def _drawn(recipe, changes):
    return getattr(recipes, f"{recipe}_state_dict")(5, **dict(changes))


def state_of(recipe, **changes):
    """A fresh dictionary of tensors that are drawn once."""
    return dict(_drawn(recipe, tuple(changes.items())))


BASE, ADAPTER = "transformer", "adapter"
STATES = {
    Kind.TRANSFORMER: BASE,
    Kind.ADAPTER: ADAPTER,
    Kind.VAE: "vae",
    Kind.TEXT_ENCODER: "t5",
    Kind.CLIP_VISION: "clip",
    Kind.AUDIO_ENCODER: "wav2vec",
}
LOADERS = {
    Kind.TRANSFORMER: load.load_transformer,
    Kind.VAE: load.load_vae,
    Kind.TEXT_ENCODER: load.load_text_encoder,
    Kind.CLIP_VISION: load.load_clip_vision,
    Kind.AUDIO_ENCODER: load.load_audio_encoder,
}


def assert_same_parameters(one, two):
    one, two = one.state_dict(), two.state_dict()
    assert list(one) == list(two)
    for key in one:
        assert one[key].dtype == two[key].dtype and torch.equal(one[key], two[key]), key


@pytest.mark.parametrize("item", [d for d in DIALECTS if d.kind in LOADERS], ids=lambda d: f"{d.kind.value}, {d.name}")
def test_every_dialect_gives_the_same_parameters(item, tmp_path):
    state = state_of(STATES[item.kind])
    if item.name == "multitalk_audio_proj":
        state |= state_of(ADAPTER)
    load_model = LOADERS[item.kind]
    expected = load_model(state, dtype=torch.float32)
    source = open_tensors(state)
    written = from_canonical(to_canonical(source, find_dialect(source)), item, item.prefixes[-1])
    tensors = {key: written.tensor(key).contiguous() for key in written}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "x.pth")
    for name in ("x.safetensors", "x.pth"):
        model = load_model(tmp_path / name, dtype=torch.float32)
        check_parameters(model, "cpu")
        assert_same_parameters(model, expected)
        assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_the_numbers_are_those_of_the_file():
    state = state_of("vae")
    model = load.load_vae(state, dtype=torch.float32)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    half = load.load_vae(state, dtype=torch.bfloat16)
    assert all(torch.equal(tensor, state[key].bfloat16()) for key, tensor in half.state_dict().items())


def test_merged_and_separate_adapter_are_equal(tmp_path):
    base, adapter = state_of(BASE), state_of(ADAPTER)
    save_file(base, tmp_path / "base.safetensors")
    save_file({f"diffusion_model.{key}": value for key, value in adapter.items()}, tmp_path / "adapter.safetensors")
    save_file(base | adapter, tmp_path / "merged.safetensors")
    merged = load.load_transformer(tmp_path / "merged.safetensors")
    separate = load.load_transformer(tmp_path / "base.safetensors", tmp_path / "adapter.safetensors")
    assert merged.config.audio is not None and merged.config == separate.config
    assert_same_parameters(merged, separate)
    assert load.load_transformer(tmp_path / "base.safetensors").config.audio is None


def test_a_separate_adapter_replaces_a_merged_one(caplog):
    base = state_of(BASE)
    with caplog.at_level("WARNING", "wanvideo"):
        model = load.load_transformer(base | state_of(ADAPTER), recipes.adapter_state_dict(6))
    assert "has an audio adapter already" in caplog.text
    assert_same_parameters(model, load.load_transformer(base | recipes.adapter_state_dict(6)))


def test_sensitive_parameters_stay_in_float32():
    model = load.load_transformer(state_of(BASE), state_of(ADAPTER))
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == (torch.float32 if model.keep_float32(name) else torch.bfloat16), name
    assert model.blocks[0].modulation.dtype == torch.float32


def test_one_log_line_a_load(caplog):
    with caplog.at_level("INFO", "wanvideo"):
        load.load_transformer(state_of(BASE), state_of(ADAPTER))
    assert len(caplog.records) == 1
    assert "image-to-video transformer (36 channels) with an audio adapter" in caplog.text
    assert "113 tensors" in caplog.text and "bf16 on cpu" in caplog.text


def test_parameters_own_their_memory(tmp_path):
    state = {key: value.clone() for key, value in state_of("vae").items()}
    path = tmp_path / "x.safetensors"
    save_file(state, path)
    from_file, from_dict = load.load_vae(path, dtype=torch.float32), load.load_vae(state, dtype=torch.float32)
    expected = {key: value.clone() for key, value in state.items()}
    with path.open("r+b") as file:
        file.seek(100_000)
        file.write(bytes(1_000_000))
    for value in state.values():
        value.zero_()
    for model in (from_file, from_dict):
        assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("quantize", [None, "fp8", "int8", "fp4"])
def test_models_loaded_in_inference_mode_can_be_changed_outside(quantize):
    with torch.inference_mode():
        state = {key: value.clone() for key, value in state_of("transformer").items()}
        model = load.load_transformer(state, quantize=quantize)
    tensors = [*model.parameters(), *model.buffers()]
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in tensors)


@pytest.mark.parametrize("names", [("weight", "scale_weight"), ("weight._data", "weight._scale")])
def test_scaled_weights_are_multiplied_out(names):
    state = state_of(BASE)
    plain, stored = dict(state), dict(state)
    for key in [key for key in state if key.startswith("blocks") and key.endswith(".weight") and state[key].ndim == 2]:
        layer = key.removesuffix(".weight")
        scale = state[key].abs().amax(1, keepdim=True) / 448
        del stored[key]
        stored[f"{layer}.{names[0]}"] = (state[key] / scale).to(torch.float8_e4m3fn)
        stored[f"{layer}.{names[1]}"] = scale
        plain[key] = stored[f"{layer}.{names[0]}"].float() * scale
    widened, expected = load.load_transformer(stored), load.load_transformer(plain)
    for (name, one), two in zip(widened.named_modules(), expected.modules(), strict=True):
        if isinstance(one, Linear):
            assert isinstance(one, RowScaledLinear) == name.startswith("blocks."), name
            assert torch.equal(one.dense_weight(torch.bfloat16), two.dense_weight(torch.bfloat16)), name


@pytest.mark.parametrize("slot", LOADERS)
@pytest.mark.parametrize("kind", STATES)
def test_wrong_file_in_each_slot(slot, kind, tmp_path):
    if kind is slot:
        return
    save_file(state_of(STATES[kind]), tmp_path / "chosen.safetensors")
    with pytest.raises(CheckpointError, match="chosen.safetensors is a.* slot needs a .*e.g. .* in models/"):
        LOADERS[slot](tmp_path / "chosen.safetensors")


def test_a_base_in_the_adapter_slot():
    base = state_of(BASE)
    with pytest.raises(CheckpointError, match="image-to-video transformer.*; the audio adapter slot needs"):
        load.load_transformer(base, base)


def test_adapter_of_another_size():
    with pytest.raises(CheckpointError, match="3 blocks of width 256; .* 2 of width 256"):
        load.load_transformer(state_of(BASE), state_of(ADAPTER, num_layers=3))


def test_adapter_needs_an_image_to_video_base():
    base = {k: v for k, v in state_of(BASE, in_dim=16).items() if "img" not in k}
    assert load.load_transformer(base).config.in_dim == 16
    with pytest.raises(CheckpointError, match="text-to-video.*needs a Wan2.1 image-to-video"):
        load.load_transformer(base, state_of(ADAPTER))


def test_what_does_not_fit_is_listed(tmp_path):
    state = state_of(BASE)
    for n in range(5):
        state[f"extra.{n}"] = torch.zeros(1)
    del state["blocks.1.ffn.2.bias"]
    state["head.head.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError) as error:
        load.load_transformer(tmp_path / "x.safetensors")
    message = str(error.value)
    assert message.startswith(
        "x.safetensors does not fit: of the 87 tensors of its transformer, 1 missing (blocks.1.ffn.2.bias [256])"
    )
    assert "5 too many (extra.0, extra.1, extra.2 and 2 more)" in message
    assert "1 of another size (head.head.bias is [3], not [64])" in message
    assert message.count("\n") <= 2


def test_incomplete_model_names_its_file():
    state = {k: v for k, v in state_of(BASE).items() if not k.startswith("time_embedding")}
    with pytest.raises(
        CheckpointError, match=r"of its transformer, time_embedding\.0\.weight is missing, which is \[256, 256\]"
    ):
        load.load_transformer(state)


@pytest.mark.parametrize(
    "kind, harmless",
    [
        (Kind.TEXT_ENCODER, {"spiece_model": torch.zeros(9, dtype=torch.uint8), "decoder.x": torch.zeros(1)}),
        (Kind.CLIP_VISION, {"log_scale": torch.zeros(()), "textual.token_embedding.weight": torch.zeros(2, 2)}),
        (Kind.AUDIO_ENCODER, {"quantizer.codevectors": torch.zeros(1), "project_hid.bias": torch.zeros(1)}),
        (Kind.TRANSFORMER, {"first_stage_model.x": torch.zeros(1)}),
    ],
)
def test_harmless_surplus(kind, harmless):
    assert_same_parameters(LOADERS[kind](state_of(STATES[kind]) | harmless), LOADERS[kind](state_of(STATES[kind])))


def test_what_is_never_used_may_be_missing():
    state = state_of("wav2vec")
    del state["masked_spec_embed"]
    assert not load.load_audio_encoder(state).masked_spec_embed.any()


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A folder like Wan2.1-I2V-14B-480P, with files in it that are no models."""
    folder = tmp_path_factory.mktemp("Wan2.1-I2V-14B-480P")
    state = state_of(BASE)
    keys, count = list(state), 7
    for n in range(count):
        part = {key: state[key] for key in keys[n * len(keys) // count : (n + 1) * len(keys) // count]}
        save_file(part, folder / f"diffusion_pytorch_model-{n + 1:05}-of-00007.safetensors")
    torch.save(state_of("t5"), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(state_of("clip"), folder / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    torch.save(state_of("vae"), folder / "Wan2.1_VAE.pth")
    (folder / "config.json").write_text(json.dumps({"model_type": "i2v"}))
    (folder / "README.md").write_text("model card")
    return folder


def test_official_folder(official):
    files = find_in_folder(official)
    assert len(files.models[Kind.TRANSFORMER].paths) == 7
    assert files.models[Kind.VAE].paths == (official / "Wan2.1_VAE.pth",)
    assert files.tokenizer is None and not files.refused
    for kind in (Kind.TRANSFORMER, Kind.VAE, Kind.TEXT_ENCODER, Kind.CLIP_VISION):
        assert_same_parameters(LOADERS[kind](official), LOADERS[kind](state_of(STATES[kind])))
    with pytest.raises(CheckpointError, match="has no audio encoder; it has .*VAE Wan2.1_VAE.pth.* a wav2vec2"):
        load.load_audio_encoder(official)
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_tokenizer(official)


def test_a_broken_file_beside_the_right_one(official, tmp_path):
    for path in official.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "diffusion_pytorch_model-00003-of-00007.safetensors").unlink()
    assert_same_parameters(load.load_vae(tmp_path), load.load_vae(official))
    with pytest.raises(CheckpointError, match="has no transformer(.|\n)*6 of the 7 parts"):
        load.load_transformer(tmp_path)


def test_two_files_of_one_kind(tmp_path, caplog):
    save_file(recipes.wav2vec_state_dict(6), tmp_path / "a.safetensors")
    save_file(state_of("wav2vec"), tmp_path / "model.safetensors")
    with caplog.at_level("INFO", "wanvideo"):
        model = load.load_audio_encoder(tmp_path)
    assert "model.safetensors is used" in caplog.text
    assert_same_parameters(model, load.load_audio_encoder(state_of("wav2vec")))


@pytest.fixture
def opened(monkeypatch):
    """The paths of the files whose headers are read, in order."""
    names, whole = [], reader._from_file

    def count(path):
        names.append(str(path))
        return whole(path)

    monkeypatch.setattr(reader, "_from_file", count)
    return names


def test_a_header_is_read_once(tmp_path, opened):
    paths = {kind: tmp_path / f"{kind.name}.safetensors" for kind in STATES}
    for kind, path in paths.items():
        save_file(state_of(STATES[kind]), path)
    found = {kind: load.open_checkpoint(path, kind) for kind, path in paths.items()}
    assert all(checkpoint.paths == (paths[kind],) for kind, checkpoint in found.items())
    base, adapter, vae, text_encoder, clip_vision, speech = found.values()
    files = ResolvedFiles(base, adapter, vae, text_encoder, clip_vision, speech)
    model_sizes(files, torch.bfloat16)
    assert load.open_checkpoint(base, Kind.TRANSFORMER) is base
    load.load_transformer(base, adapter)
    for kind, load_model in LOADERS.items():
        load_model(found[kind])
    assert sorted(opened) == sorted(map(str, paths.values()))


def test_headers_of_a_folder_are_read_once(official, opened):
    load.load_vae(load.open_checkpoint(official, Kind.VAE))
    assert len(opened) == len(set(opened)) == 10


def test_headers_of_a_run_are_read_once(opened):
    """Files found in a folder, a plan, and the models: each header once."""
    files = resolve(jobs.official_files())
    model_sizes(files, torch.bfloat16)
    load.load_transformer(files.transformer, files.adapter)
    load.load_vae(files.vae)
    assert len(opened) == len(set(opened)) >= 6


def test_a_checkpoint_in_the_wrong_slot(tmp_path):
    save_file(state_of("vae"), tmp_path / "chosen.safetensors")
    checkpoint = load.open_checkpoint(tmp_path / "chosen.safetensors", Kind.VAE)
    with pytest.raises(CheckpointError, match=r"chosen\.safetensors is a.*the transformer slot needs"):
        load.load_transformer(checkpoint)


PEAK = """
import sys, torch
from support.host_memory import Peak
from wanvideo.checkpoints.load import load_transformer

load_transformer(sys.argv[2])
with Peak() as peak:
    model = load_transformer(sys.argv[1], dtype=getattr(torch, sys.argv[3]))
print(sum(p.numel() * p.element_size() for p in model.parameters()), peak.grown)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint of about 260 MB in float32, as safetensors and as torch file, and a tiny one to warm up with."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {**recipes.TINY, "dim": 1024, "ffn_dim": 4096, "num_layers": 3}
    shapes = recipes.transformer_shapes(**sizes)
    state = {key: torch.full(shape, 0.01) for key, shape in shapes.items()}
    save_file(state, folder / "large.safetensors")
    torch.save(state, folder / "large.pth")
    save_file(state_of(BASE), folder / "tiny.safetensors")
    return folder


@host_memory.NEEDS_PROC
@pytest.mark.parametrize(
    "name, dtype",
    [("large.safetensors", "bfloat16"), ("large.safetensors", "float32"), ("large.pth", "bfloat16")],
)
def test_peak_memory_is_the_model(large, name, dtype):
    size, peak = host_memory.run(PEAK, large / name, large / "tiny.safetensors", dtype)
    assert size > 120e6
    assert peak <= size + 40e6
