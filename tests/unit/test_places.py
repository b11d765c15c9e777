"""Where a preset finds its models: what users have, wherever they have it, and what is said of the rest."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest

from wanvideo.cli.generate import read_job
from wanvideo.errors import InputError
from wanvideo.presets.places import find_first, places

JOB = {"prompt": "p", "cond_video": "a.png", "cond_audio": {"person1": "a.wav"}}
TWO = {**JOB, "cond_audio": {"person1": "a.wav", "person2": "b.wav"}, "audio_type": "add"}
BASE, SPEECH = (
    "Wan2.1-I2V-14B-480P/diffusion_pytorch_model-00001-of-00007.safetensors",
    "chinese-wav2vec2-base/pytorch_model.bin",
)
ADAPTER, LORA = "InfiniteTalk/single/infinitetalk.safetensors", "lightx2v_I2V_14B_480p_cfg_step_distill_rank{}_bf16"
COMFYUI = (
    "diffusion_models/wan2.1_i2v_480p_14B_fp8_scaled.safetensors", "vae/wan_2.1_vae.safetensors",
    "diffusion_models/InfiniteTalk/Wan2_1-InfiniTetalk-Single_fp16.safetensors",
    "clip_vision/clip_vision_h.safetensors", "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "wav2vec2/wav2vec2-chinese-base_fp16.safetensors",
    f"loras/Lightx2v/{LORA.format(32)}.safetensors",
)  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, on a machine where nobody has any model."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANVIDEO_MODELS", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def read(*flags, preset="01_ultra_fast", job=JOB):
    Path("job.json").write_text(json.dumps(job), encoding="utf-8")
    return read_job(["--preset", preset, "--input_json", "job.json", *flags]).files


def test_weights_where_the_command_runs(here):
    put(here / "weights", BASE, SPEECH, ADAPTER, f"loras/{LORA.format(64)}.safetensors")
    files = read()
    assert (files.transformer, files.adapter) == ("weights/Wan2.1-I2V-14B-480P", f"weights/{ADAPTER}")
    assert files.wav2vec == "weights/chinese-wav2vec2-base" and files.vae is None
    (lora,) = files.loras
    assert lora.path == f"weights/loras/{LORA.format(64)}.safetensors" and lora.strength == 0.8


def test_the_best_rank_that_is_there(here):
    put(here / "weights", BASE, SPEECH, ADAPTER)
    for rank in (256, 64, 128):
        put(here / "weights", f"{LORA.format(rank)}.safetensors")
        assert f"rank{rank}_" in read().loras[0].path


@pytest.mark.parametrize("place", ["../home/ComfyUI/models", "ComfyUI/models", "../elsewhere"])
def test_the_folders_of_comfyui(here, monkeypatch, place):
    put(here / place, *COMFYUI)
    monkeypatch.setenv("WANVIDEO_MODELS", str(here / "../elsewhere"))
    files = read()
    named = [files.transformer, files.vae, files.adapter, files.clip_vision, files.text_encoder, files.wav2vec]
    assert all(path.endswith(name) for path, name in zip(named, COMFYUI, strict=False))
    assert files.loras[0].path.endswith(COMFYUI[-1])


def test_what_was_downloaded_into_the_cache(here):
    hub = here.parent / "hub"
    for owner, name in (("Wan-AI", BASE), ("MeiGen-AI", ADAPTER), ("TencentGameMate", SPEECH)):
        repository, _, file = name.partition("/")
        put(hub / f"models--{owner}--{repository}/snapshots", f"old/{file}", f"new/{file}")
        put(hub / f"models--{owner}--{repository}/refs", "main")
        (hub / f"models--{owner}--{repository}/refs/main").write_text("new")
    put(hub / "models--Kijai--WanVideo_comfy/snapshots/1", f"Lightx2v/{LORA.format(64)}.safetensors")
    files = read()
    assert files.transformer.endswith("models--Wan-AI--Wan2.1-I2V-14B-480P/snapshots/new")
    assert files.adapter.endswith("snapshots/new/single/infinitetalk.safetensors")
    assert files.wav2vec.endswith("chinese-wav2vec2-base/snapshots/new")
    assert files.loras[0].path.endswith(f"Lightx2v/{LORA.format(64)}.safetensors")


def test_two_people_take_the_adapter_for_several(here):
    put(here / "weights", BASE, SPEECH, ADAPTER, ADAPTER.replace("single", "multi"))
    assert read(job=TWO, preset="04_high_quality").adapter == f"weights/{ADAPTER.replace('single', 'multi')}"
    silent = read(job={**JOB, "cond_audio": {}}, preset="04_high_quality")
    assert (silent.adapter, silent.wav2vec) == (None, None)


def test_what_download_fetches_for_a_preset_in_fp8(here):
    fp8 = "InfiniteTalk/quant_models/{}_fp8.safetensors"
    put(here / "weights", BASE.replace("diffusion_pytorch_model-00001-of-00007.safetensors", "Wan2.1_VAE.pth"), SPEECH)
    put(here / "weights", fp8.format("infinitetalk_single"), fp8.format("t5"), f"{LORA.format(128)}.safetensors")
    files = read()
    assert files.transformer == f"weights/{fp8.format('infinitetalk_single')}" and files.adapter is None
    assert (files.folder, files.text_encoder) == ("weights/Wan2.1-I2V-14B-480P", f"weights/{fp8.format('t5')}")
    with pytest.raises(InputError, match="(?s)04_high_quality lacks the base .*; the InfiniteTalk adapter"):
        read(preset="04_high_quality")
    with pytest.raises(InputError, match=r"(?s)adapter \(multi\).*--set base-480p t5-480p infinitetalk-multi"):
        read(job=TWO)


def test_what_is_named_is_taken(here):
    put(here / "weights", BASE, SPEECH, ADAPTER)
    flags = ["--infinitetalk_dir", "mine.safetensors", "--lora_dir", "own.safetensors", "--wav2vec_dir", "w"]
    files = read("--ckpt_dir", "base", *flags)
    assert (files.transformer, files.adapter, files.wav2vec) == ("base", "mine.safetensors", "w")
    assert files.loras[0].path == "own.safetensors"
    merged = read("--quant_dir", "merged.safetensors", "--lora_dir", "own.safetensors")
    assert merged.transformer == "merged.safetensors" and merged.adapter is None  # it brings its own


def test_the_base_of_the_other_size_is_better_than_none(here, caplog):
    put(here / "weights", BASE, SPEECH, ADAPTER, f"{LORA.format(64)}.safetensors")
    assert read(preset="06_720p_high_res").transformer == "weights/Wan2.1-I2V-14B-480P"
    assert "14B-720P is not there; the base model Wan2.1-I2V-14B-480P is used" in caplog.text
    put(here / "ComfyUI/models", "diffusion_models/wan2.1_i2v_720p_14B_fp16.safetensors")
    put(here / "ComfyUI/models", "vae/wan_2.1_vae.safetensors", "text_encoders/umt5_xxl_fp16.safetensors")
    assert read(preset="06_720p_high_res").transformer.endswith("wan2.1_i2v_720p_14B_fp16.safetensors")


def test_all_that_is_missing_is_one_message_with_the_command_that_fetches_it(here):
    with pytest.raises(InputError) as raised:
        read()
    message = str(raised.value)
    assert "base model Wan2.1-I2V-14B-480P" in message and "adapter (single)" in message
    assert "chinese-wav2vec2-base" in message and f"{LORA.format(128)}.safetensors (lightx2v, 4 steps)" in message
    assert "python -m wanvideo download --preset 01_ultra_fast" in message
    assert "--ckpt_dir, --infinitetalk_dir, --wav2vec_dir, --lora_dir" in message
    put(here / "weights", BASE, SPEECH, ADAPTER)
    with pytest.raises(InputError, match="(?s)lacks the LoRA FusionX_LoRa/.* with --lora_dir"):
        read(preset="balanced")


def test_links_in_circles_and_folders_without_models_end_the_search(here):
    weights = here / "weights"
    put(weights, "notes.txt", ".cache/x.safetensors", "a/b/c/d/e/deep.safetensors")
    (weights / "loop").symlink_to(weights)
    (weights / "gone.safetensors").symlink_to(here / "nowhere")
    (place,) = places()
    assert place.entries == () and find_first(["*"], [place]) is None
