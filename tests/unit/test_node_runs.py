"""Runs of the sampler that end early or were finished before, and what the page is told of them."""

import logging
import sys
from dataclasses import replace

import pytest
import torch
from support.pack import load_pack, node

from wanvideo.synthetic.models import make_models

load_pack()
common, text = (sys.modules[f"pack_under_test.nodes_{name}"] for name in ("common", "text"))
errors = sys.modules["pack_under_test.wanvideo.errors"]
conditioning = sys.modules["pack_under_test.wanvideo.engine.conditioning"]
StepReport = sys.modules["pack_under_test.wanvideo.sampling.window"].StepReport
FAST = {"steps": 2, "cfg": 1.0, "shift": 11.0, "seed": 3, "scheduler": "flowmatch_distill"}


class Interrupt(Exception):
    """What ComfyUI raises."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, "tiny", "comfy")
    return {path.parent.name: str(path) for path in sorted(folder.rglob("*.safetensors"))} | {
        "base": str(folder / "diffusion_models" / "wan2.1_i2v_480p_14B_fp8_scaled.safetensors"),
        "adapter": next(map(str, folder.rglob("*Single*"))),
    }


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def parts(models):
    """What a graph has before its sampler."""
    generator = torch.Generator().manual_seed(1)
    sound = {"waveform": torch.randn(1, 1, 12800, generator=generator) * 0.1, "sample_rate": 16000}
    encoder = node("Wav2VecModelLoader").loadmodel(models["wav2vec2"])[0]
    adapter = node("MultiTalkModelLoader").loadmodel(models["adapter"])[0]
    return {
        "model": node("WanVideoModelLoader").loadmodel(models["base"], "fp32", multitalk_model=adapter)[0],
        "image_embeds": node("WanVideoImageToVideoMultiTalk").process(
            node("WanVideoVAELoader").loadmodel(models["vae"], "fp32")[0], width=64, height=48, frame_window_size=13,
            motion_frame=5, start_image=torch.rand(1, 48, 64, 3, generator=generator),
        )[0],
        "multitalk_embeds": node("MultiTalkWav2VecEmbeds").process(encoder, sound, num_frames=0)[0],
        "text_embeds": conditioning.Prompts((torch.randn(7, 64, generator=generator),)),
    }  # fmt: skip


def frames(parts, **changes):
    """As the file shows them."""
    samples = node("WanVideoSampler").process(**{**parts, **FAST, **changes})[0]
    return samples["talking_video"].recording.read(0)


def interrupt(parts, monkeypatch, **changes):
    """Leave a run after its first window."""

    def stop(self, report):
        if report.window_index == 1:
            raise Interrupt

    with monkeypatch.context() as patch, pytest.raises(Interrupt):
        patch.setattr(common.RunProgress, "__call__", stop)
        frames(parts, **changes)


def test_a_run_goes_on_only_with_a_vae_of_the_same_precision(parts, models, monkeypatch):
    vae = node("WanVideoVAELoader").loadmodel(models["vae"], "bf16")[0]
    other = parts | {"image_embeds": replace(parts["image_embeds"], vae=vae)}
    expected = frames(other)
    interrupt(parts, monkeypatch)
    assert torch.equal(frames(other), expected)


def test_a_run_that_only_has_to_be_joined_with_its_sound_loads_no_transformer(parts, monkeypatch, tmp_path):
    expected, run = frames(parts, seed=4), tmp_path / "output" / "talking_video_2"
    blocked = run / "video.mp4"

    def block(self, report):
        if report.window_index == 1 and not blocked.exists():
            (blocked / "taken").mkdir(parents=True)

    with monkeypatch.context() as patch, pytest.raises(errors.OutputError):
        patch.setattr(common.RunProgress, "__call__", block)
        frames(parts, seed=4)
    (blocked / "taken").rmdir()
    blocked.rmdir()
    parts["model"].handle.unload()
    assert torch.equal(frames(parts, seed=4), expected)
    assert not (tmp_path / "output" / "talking_video_3").exists() and parts["model"].handle.residency is None


def test_time_is_left_for_what_a_run_that_goes_on_has_not_done(caplog):
    caplog.set_level(logging.DEBUG, "wanvideo")
    progress = common.RunProgress("7")
    progress.started -= 60
    progress(StepReport(9, 10, 0, 2, torch.zeros(16, 1, 2, 2)))
    assert "window 10/10 · step 1/2 · 60.0 s/step · 1:00 left" in caplog.messages


def test_a_prompt_that_was_encoded_elsewhere_is_encoded_anew(models, monkeypatch, tmp_path):
    """Numbers of threads and devices differ in the last bits, and frames follow them."""
    monkeypatch.setattr(text, "cache_folder", lambda: tmp_path / "prompts")
    encoder = node("LoadWanVideoT5TextEncoder").loadmodel(models["text_encoders"], "fp32")[0]

    def encode():
        node("WanVideoTextEncode").process("one", "bad", encoder, use_disk_cache=True)
        return len(list((tmp_path / "prompts").iterdir()))

    assert encode() == encode() == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert encode() == 4
