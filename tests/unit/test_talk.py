"""The node that does all of it, called as plain Python: what it finds, and that its frames are those of a graph."""

import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import media_files as media
from support.folders import comfy_folders
from support.pack import load_pack, node

from wanvideo.presets import load_preset
from wanvideo.synthetic.models import LORA_NAME, make_models

NODES = load_pack().NODE_CLASS_MAPPINGS
common, sampler, talk, files = (
    sys.modules[f"pack_under_test.{name}"] for name in ("nodes_common", "nodes_sampler", "nodes_talk", "nodes_files")
)
SIZE = {"width": 64, "height": 48}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, "tiny", "comfy")
    return folder


@pytest.fixture
def models(made, tmp_path, monkeypatch):
    """ComfyUI's folders, with a copy of the models in them."""
    models = tmp_path / "models"
    shutil.copytree(made, models)
    monkeypatch.setattr(common, "folder_paths", comfy_folders(models, tmp_path))
    monkeypatch.setattr(sampler, "video_from_file", lambda path, *names: path)
    monkeypatch.setattr(talk.talk, "choose_preset", lambda free_bytes: load_preset("03_balanced"))
    return models


def audio(seconds):
    generator = torch.Generator().manual_seed(0)
    return {"waveform": torch.randn(1, 1, round(seconds * 16000), generator=generator) * 0.1, "sample_rate": 16000}


def picture():
    return torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(1))


def by_graph():
    """Template 01 with the preset's numbers."""
    lora = node("WanVideoLoraSelect").getlorapath(LORA_NAME, 0.8)[0]
    adapter = node("MultiTalkModelLoader").loadmodel("Wan2_1-InfiniTetalk-Single_fp16.safetensors")[0]
    model = node("WanVideoModelLoader").loadmodel(
        "wan2.1_i2v_480p_14B_fp8_scaled.safetensors", "bf16", "fp8_e4m3fn", attention_mode="auto", lora=lora,
        multitalk_model=adapter,
    )[0]  # fmt: skip
    speech = node("MultiTalkWav2VecEmbeds").process(
        node("Wav2VecModelLoader").loadmodel("wav2vec2-chinese-base_fp16.safetensors")[0], audio(0.8)
    )[0]
    text = node("WanVideoTextEncodeCached").process(
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "bf16", "She talks.", "bad", "fp8_e4m3fn"
    )[0]
    embeds = node("WanVideoImageToVideoMultiTalk").process(
        node("WanVideoVAELoader").loadmodel("wan_2.1_vae.safetensors")[0], **SIZE, frame_window_size=13, motion_frame=5,
        start_image=picture(), mode="infinitetalk",
        clip_vision=node("LoadWanVideoClipTextEncoder").loadmodel("clip_vision_h.safetensors", "bf16")[0],
    )[0]  # fmt: skip
    samples = node("WanVideoSampler").process(
        model, embeds, 4, 1.0, 11.0, 7, True, "flowmatch_distill", text_embeds=text, multitalk_embeds=speech
    )[0]
    return node("WanVideoTalkingVideo").process(samples)[0]


def test_its_frames_are_those_of_the_graph(models, tmp_path, monkeypatch):
    usual = talk.settled_preset("auto", "auto")
    short = replace(usual, settings=replace(usual.settings, window_frames=13, motion_frames=5))
    monkeypatch.setattr(talk, "settled_preset", lambda name, lora: short)
    settings = {"preset": "auto", "seed": 7, "size": "custom", "negative_prompt": "bad"}
    maker = node("WanVideoTalk")
    own = media.decoded_frames(maker.talk(audio(0.8), "She talks.", image=picture(), **SIZE, **settings)[0])
    (tmp_path / "output").rename(tmp_path / "earlier")  # or the graph would only go on with the same run
    graph = media.decoded_frames(by_graph())
    assert own.shape == (20, 48, 64, 3) and own.std() > 1 and np.array_equal(own, graph)


def test_models_are_found_by_what_they_are(models):
    for path in sorted(models.rglob("*.safetensors")):
        path.rename(path.with_name(f"{path.parent.name}_{len(path.name)}.safetensors"))
    (models / "vae" / "a.safetensors").write_bytes(b"nothing")
    preset = load_preset("02_comfyui_equivalent")
    with pytest.raises(ValueError, match="lightx2v.*GB. into loras from https") as missing:
        talk.find_models(preset, "auto", 1)
    assert "vae" not in str(missing.value).split("Put each")[0], "what is there is not asked for"
    found = talk.find_models(preset, "none", 1)
    assert found.vae.startswith("vae_") and found.transformer != found.adapter and not found.lora


def test_a_preset_suits_the_lora_and_an_adapter_the_speakers(models):
    names = {lora: talk.settled_preset("auto", lora).name for lora in ("auto", "none", "my_FusionX.safetensors")}
    assert list(names.values()) == ["02_comfyui_equivalent", "04_high_quality", "03_balanced"]
    preset = load_preset("02_comfyui_equivalent")
    assert "Single" in talk.find_models(preset, "auto", 1).adapter
    assert "Multi" in talk.find_models(preset, "auto", 2).adapter
    next(models.rglob("*Multi*")).unlink()
    with pytest.raises(ValueError, match=r"InfiniteTalk-Multi_fp16.safetensors \(5 GB\) into diffusion_models"):
        talk.find_models(preset, "auto", 2)


def test_a_loader_offers_adapters_as_adapters_and_keeps_what_it_loaded(models):
    options, widget = NODES["MultiTalkModelLoader"].INPUT_TYPES()["required"]["model"]
    assert sorted("Talk" in name or "talk" in name for name in options) == [True, True] and widget["default"] in options
    options, widget = NODES["WanVideoModelLoader"].INPUT_TYPES()["required"]["model"]
    assert widget["default"].startswith("wan2.1_i2v") and len(options) == 2
    loader = node("WanVideoModelLoader")
    lora = node("WanVideoLoraSelect").getlorapath(LORA_NAME, 0.8)[0]
    first, again, other = (loader.loadmodel(widget["default"], kind, lora=use)[0].handle
                           for kind, use in (("bf16", lora), ("bf16", None), ("fp32", None)))  # fmt: skip
    assert first is again and first is not other


def test_samples_are_placed_beside_what_is_there(models, tmp_path, monkeypatch):
    samples = sys.modules["pack_under_test.nodes_samples"]
    common.folder_paths.get_input_directory = lambda: str(tmp_path / "input")
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "talking_video_speech.flac").write_text("mine")
    samples.place_samples()
    assert {path.name for path in (tmp_path / "input").iterdir()} == set(samples.SAMPLES)
    assert (tmp_path / "input" / "talking_video_speech.flac").read_text() == "mine"
