"""The node: the video of one process by two that stay warm, stop when asked, are replaced, and give memory back."""

import os
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.pack import load_pack, node

from wanvideo.synthetic.models import make_models

load_pack()
parallel, job, common, loading = (
    sys.modules[f"pack_under_test.nodes_{name}"] for name in ("parallel", "job", "common", "model_loading")
)
conditioning = sys.modules["pack_under_test.wanvideo.engine.conditioning"]
errors = sys.modules["pack_under_test.wanvideo.errors"]
FAST = {"steps": 2, "cfg": 1.0, "shift": 11.0, "seed": 3, "scheduler": "flowmatch_distill"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What a graph has before its sampler."""
    models = tmp_path_factory.mktemp("models")
    make_models(models, "tiny", "comfy")
    file = {path.parent.name: str(path) for path in sorted(models.rglob("*.safetensors"))}
    generator = torch.Generator().manual_seed(1)
    adapter = node("MultiTalkModelLoader").loadmodel(next(map(str, models.rglob("*Single*"))))[0]
    sound = {"waveform": torch.randn(1, 1, 12800, generator=generator) * 0.1, "sample_rate": 16000}
    vae = node("WanVideoVAELoader").loadmodel(file["vae"], "fp32")[0]
    base = str(models / "diffusion_models" / "wan2.1_i2v_480p_14B_fp8_scaled.safetensors")
    encoder = node("Wav2VecModelLoader").loadmodel(file["wav2vec2"])[0]
    return {
        "model": node("WanVideoModelLoader").loadmodel(base, "fp32", multitalk_model=adapter)[0],
        "image_embeds": node("WanVideoImageToVideoMultiTalk").process(
            vae, width=64, height=48, frame_window_size=13, motion_frame=5,
            start_image=torch.rand(1, 48, 64, 3, generator=generator),
        )[0],
        "multitalk_embeds": node("MultiTalkWav2VecEmbeds").process(encoder, sound, num_frames=0)[0],
        "text_embeds": conditioning.Prompts((torch.randn(7, 64, generator=generator),)),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def frames(parts, **changes):
    samples = node("WanVideoSampler").process(**{**parts, **FAST, **changes})[0]
    return node("WanVideoPassImagesFromSamples").decode(samples)[0]


class Interrupt(Exception):
    """What ComfyUI raises."""


def test_a_model_that_workers_cannot_read_leaves_no_run(parts, tmp_path):
    module = parts["image_embeds"].vae.load()
    vae = loading.vae_of(SimpleNamespace(first_stage_model=module, vae_dtype=torch.float32))
    model = node("WanVideoParallel").share(parts["model"], 2, 2)[0]
    with pytest.raises(errors.TalkError, match="read models from files"):
        frames(parts, model=model, image_embeds=replace(parts["image_embeds"], vae=vae))
    assert not (tmp_path / "output").exists()


def test_two_workers_make_the_video_of_one_process(parts, monkeypatch):
    expected = frames(parts)
    model = node("WanVideoParallel").share(parts["model"], 2, 2)[0]
    warm = parallel._handle(2).residency
    steps = []

    def progress(report):
        steps.append(report)
        assert report.denoised.shape[:2] == (16, 1)

    monkeypatch.setattr(common.RunProgress, "__call__", lambda self, report: progress(report))
    try:
        result = frames(parts, model=model)
        assert result.shape == expected.shape == (20, 48, 64, 3) and len(steps) == 4
        assert (result - expected).abs().max() <= 1.5 / 255
        assert parts["model"].handle.device_bytes == 0 or not torch.cuda.is_available()
        processes, count = warm.group.process_ids, len(steps)

        def interrupted(report):
            raise Interrupt

        progress = interrupted
        with pytest.raises(Interrupt):
            frames(parts, model=model, seed=4)
        assert warm.group.process_ids == processes and warm.device_bytes > 0

        def deadly(report):
            if report.window_index == 1 and warm.group.process_ids == processes:
                os.kill(processes[1], signal.SIGKILL)

        progress = deadly
        assert torch.equal(frames(parts, model=model), result), "others went on after the first window"
        assert not set(warm.group.process_ids) & set(processes) and count == 4
    finally:
        warm.offload()
    assert not warm.group.is_warm and warm.device_bytes == 0


def test_numbers_that_the_machine_does_not_have(parts):
    with pytest.raises(errors.InputError, match="gpus is 65"):
        node("WanVideoParallel").share(parts["model"], 65)
    assert node("WanVideoParallel").share(parts["model"], 1)[0].ranks is None
