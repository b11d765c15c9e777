"""Complete sets of random models: they load in every layout, fit each other, and give numbers of a sensible size."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wanvideo.checkpoints import load
from wanvideo.checkpoints.detect import identify
from wanvideo.checkpoints.dialects import Kind, dialect, from_canonical
from wanvideo.checkpoints.reader import open_tensors
from wanvideo.cli.make_models import main
from wanvideo.errors import CheckpointError, InputError, OutputError
from wanvideo.models.text_encoder import encode_prompts
from wanvideo.synthetic.models import PARTS, SPEECH, WAN, make_models
from wanvideo.synthetic.weights import SIZES, draw, random_source, shapes_of
from wanvideo.text.tokenizer import from_sentencepiece, load_tokenizer

TEXT = "A woman is talking to the camera. 一个女人在说话 🙂 Zażółć"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_models(folder / "official", layout="official", seed=3)
    make_models(folder / "comfy", layout="comfy", seed=3)
    return folder


@pytest.fixture(scope="module")
def sets(folder):
    """The paths of each part, (official, comfy)."""
    wan, comfy = folder / "official" / WAN, folder / "comfy"
    talk = folder / "official" / "InfiniteTalk"
    return {
        "transformer": (wan, comfy / "diffusion_models" / "wan2.1_i2v_480p_14B_fp8_scaled.safetensors"),
        "single": (talk / "single", comfy / "diffusion_models" / "Wan2_1-InfiniTetalk-Single_fp16.safetensors"),
        "multi": (talk / "multi", comfy / "model_patches" / "Wan2_1-InfiniteTalk-Multi_fp16.safetensors"),
        "vae": (wan, comfy / "vae" / "wan_2.1_vae.safetensors"),
        "text": (wan, comfy / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors"),
        "clip": (wan, comfy / "clip_vision"),
        "audio": (folder / "official" / SPEECH, comfy / "wav2vec2" / "wav2vec2-chinese-base_fp16.safetensors"),
    }


def assert_same(one, two):
    one, two = one.state_dict(), two.state_dict()
    assert list(one) == list(two) and all(torch.equal(one[key], two[key]) for key in one)


def test_both_layouts_hold_the_same_models(sets):
    for adapter in ("single", "multi"):
        assert_same(*map(load.load_transformer, sets["transformer"], sets[adapter]))
    assert_same(*map(load.load_vae, sets["vae"]))
    assert_same(*map(load.load_text_encoder, sets["text"]))
    assert_same(*map(load.load_clip_vision, sets["clip"]))
    assert_same(*map(load.load_audio_encoder, sets["audio"]))
    single, multi = (load.load_transformer(sets["transformer"][0], sets[name][0]) for name in ("single", "multi"))
    assert not torch.equal(single.audio_proj.proj1.weight, multi.audio_proj.proj1.weight)


def test_tokenizers_agree(sets, folder):
    tokenizers = [load_tokenizer(sets["transformer"][0]), load_tokenizer(sets["text"][1])]
    tokenizers += [
        load_tokenizer(folder / "official" / WAN / "google/umt5-xxl" / name)
        for name in ("tokenizer.json", "spiece.model")
    ]
    ids = [tokenizer(TEXT)["input_ids"] for tokenizer in tokenizers]
    assert ids.count(ids[0]) == len(ids) and ids[0][-1] == 1 and 2 not in ids[0]
    assert tokenizers[0].decode(ids[0], skip_special_tokens=True) == TEXT
    padded = tokenizers[0](["a", TEXT], padding=True)
    assert padded["attention_mask"][0].count(0) == padded["input_ids"][0].count(0) > 0


def test_transformers_loads_the_tokenizer_too(folder):
    from transformers import AutoTokenizer

    path = folder / "official" / WAN / "google" / "umt5-xxl"
    theirs = AutoTokenizer.from_pretrained(path, local_files_only=True)
    assert theirs(TEXT)["input_ids"] == load_tokenizer(path)(TEXT)["input_ids"]


def test_activations_stay_near_one(sets):
    wan, generator = sets["transformer"][0], torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    float32 = {"dtype": torch.float32}
    text = encode_prompts(load.load_text_encoder(wan, **float32), load_tokenizer(wan), [TEXT])[0]
    image = load.load_clip_vision(wan, **float32).encode(noise(1, 3, 64, 64).clamp(-1, 1))
    audio = load.load_audio_encoder(sets["audio"][0]).features(0.1 * noise(16000), 9)
    vae = load.load_vae(wan, **float32)
    latents = vae.encode(noise(3, 9, 64, 64).clamp(-1, 1))
    pixels = vae.decode(latents)
    assert pixels.abs().max() < 1.5
    transformer = load.load_transformer(wan, sets["single"][0], **float32)
    windows = audio[(torch.arange(9)[:, None] + torch.arange(-2, 3)).clamp(0, 8)][None]
    velocity = transformer(noise(16, 3, 8, 8), torch.tensor([500.0]), text, image, noise(20, 3, 8, 8), windows)
    for tensor in (text, image, audio, latents, pixels, velocity):
        assert tensor.isfinite().all() and 0.05 < tensor.std() < 3
    assert image.shape == (1, 257, 1280)


def test_numbers_follow_the_seed_only(tmp_path):
    first, again, other = (
        make_models(tmp_path / str(n), seed=seed, parts=["vae", "adapter", "lora"]) for n, seed in enumerate((1, 1, 2))
    )
    data = [
        [file.path.read_bytes() for file in files if file.path.suffix == ".safetensors"]
        for files in (first, again, other)
    ]
    assert data[0] == data[1] and data[0] != data[2]
    assert [file.part for file in first] == ["vae", "adapter", "adapter", "lora", "lora"]


def test_full_size_key_tables():
    sizes = SIZES["full"]
    tables = {kind: shapes_of(kind, sizes) for kind in (Kind.TRANSFORMER, Kind.ADAPTER, Kind.VAE, Kind.TEXT_ENCODER)}
    counts = {kind: (len(table), sum(map(math.prod, table.values()))) for kind, table in tables.items()}
    assert counts == {
        Kind.TRANSFORMER: (1303, 16_394_878_784),
        Kind.ADAPTER: (330, 2_487_168_000),
        Kind.VAE: (194, 126_892_531),
        Kind.TEXT_ENCODER: (242, 5_680_910_336),
    }
    assert len(tables[Kind.TRANSFORMER] | tables[Kind.ADAPTER]) == 1633
    speech = shapes_of(Kind.AUDIO_ENCODER, sizes)
    assert (len(speech), sum(map(math.prod, speech.values()))) == (211, 94_371_712)
    clip = random_source(shapes_of(Kind.CLIP_VISION, sizes), 0, "clip")
    assert len(from_canonical(clip, dialect(Kind.CLIP_VISION, "official"))) == 392
    assert tables[Kind.ADAPTER]["audio_proj.proj1_vf.weight"] == (512, 73728)
    assert tables[Kind.TEXT_ENCODER]["shared.weight"] == (256384, 4096)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_fits_its_models(size):
    """Shapes only: what a loader would build from them has exactly these tensors."""
    from wanvideo.models.clip_vision import ClipVisionConfig, ClipVisionEncoder
    from wanvideo.models.text_encoder import TextEncoder, TextEncoderConfig
    from wanvideo.models.wav2vec2 import AudioEncoder, AudioEncoderConfig

    for kind, config, model in (
        (Kind.TEXT_ENCODER, TextEncoderConfig, TextEncoder),
        (Kind.CLIP_VISION, ClipVisionConfig, ClipVisionEncoder),
        (Kind.AUDIO_ENCODER, AudioEncoderConfig, AudioEncoder),
    ):
        shapes = shapes_of(kind, SIZES[size])
        with torch.device("meta"):
            built = model(config.from_shapes(shapes)).state_dict()
        shapes.pop("visual_projection.weight", None)
        assert {key: tuple(tensor.shape) for key, tensor in built.items()} == shapes
    transformer = SIZES[size].transformer
    assert transformer.audio.feature_dim == SIZES[size].speech_layers * SIZES[size].speech_dim


def test_lora_names_the_transformers_layers(folder):
    path = next((folder / "comfy" / "loras").iterdir())
    source = open_tensors(path)
    assert identify(source).kind is Kind.LORA
    layers = {key.split(".", 1)[1].rsplit(".", 1)[0] for key in shapes_of(Kind.TRANSFORMER, SIZES["tiny"])}
    assert {key for key in source if not key.startswith("diffusion_model.")} == set()
    assert "diffusion_model.blocks.1.ffn.2.lora_down.weight" in source and layers


def test_large_tensors_are_drawn_in_parts():
    whole = draw("w.weight", (5000, 4000), "0")
    assert whole.dtype == torch.bfloat16 and abs(whole.float().std() - 0.7 / 4000**0.5) < 1e-4
    assert not torch.equal(whole[:100], whole[-100:])


def test_nothing_is_overwritten(tmp_path):
    make_models(tmp_path, parts=["vae"])
    with pytest.raises(OutputError, match="Wan2.1_VAE.pth exists already"):
        make_models(tmp_path, parts=["vae"])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        make_models(tmp_path / "file" / "models", parts=["vae"])


@pytest.mark.parametrize("wrong", [{"size": "huge"}, {"layout": "flat"}, {"parts": ["vea"]}])
def test_unknown_choices(tmp_path, wrong):
    with pytest.raises(InputError, match="Use one of"):
        make_models(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


def test_no_room(tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**7))
    with pytest.raises(OutputError, match="0 GB free"):
        make_models(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\x0a\x05ab", "no SentencePiece model"),
        (b"not one", "no SentencePiece model"),
        (b"\x0a\x03\x0a\x01a", "another model"),
    ],
)
def test_broken_tokenizers(tmp_path, data, message):
    with pytest.raises(CheckpointError, match=message):
        from_sentencepiece(data, "spiece.model")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="There is no tokenizer"):
        load_tokenizer(tmp_path / "nowhere")


def test_another_models_tokenizer(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    Tokenizer(BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="of another model: it lacks <pad>"):
        load_tokenizer(tmp_path)


def test_command_line(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "a"), "--parts", "vae", "tokenizer"]) == 0
    assert "Wan2.1_VAE.pth" in capsys.readouterr().out
    assert main(["--out", str(tmp_path / "my weights")]) == 0
    assert f"--wav2vec_dir '{tmp_path}/my weights'/chinese-wav2vec2-base" in capsys.readouterr().out
    command = [sys.executable, "-m", "wanvideo", "make-models", "--out", str(tmp_path / "b"), "--layout", "comfy"]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert f"extra_model_paths.yaml\n  synthetic:\n    base_path: {tmp_path / 'b'}\n" in result.stdout
    assert all(part in result.stdout for part in PARTS if part != "tokenizer")
