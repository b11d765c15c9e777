"""Encoded prompts are kept over runs: the same frames without the text encoder, and no other prompt's or model's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from support import jobs, media_files

from wanvideo import TalkingVideoPipeline
from wanvideo.cli import generate
from wanvideo.cli.main import run
from wanvideo.request import EngineOptions
from wanvideo.synthetic.models import WAN
from wanvideo.text.cache import TextCache, user_cache

FAST = "--size 48x48 --frame_num 5 --motion_frame 1 --sample_steps 1 --scheduler euler --device cpu --dtype fp32"


@pytest.fixture
def made(tmp_path, monkeypatch, caplog):
    """Makes a clip; returns its frames, and whether the text encoder was loaded."""
    monkeypatch.setenv("WANVIDEO_CACHE", str(tmp_path / "cache"))
    jobs.capture_log(caplog)

    def made(name, prompt="She talks.", *more):
        job = {"prompt": prompt, "cond_video": jobs.picture(tmp_path)}
        job["cond_audio"] = {"person1": jobs.speech(tmp_path, 0.2)}
        (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
        files = jobs.official_files()
        flags = ["--ckpt_dir", files.transformer, "--infinitetalk_dir", files.adapter, "--wav2vec_dir", files.wav2vec]
        flags += ["--input_json", str(tmp_path / "job.json"), "--save_file", str(tmp_path / name), *FAST.split()]
        caplog.clear()
        assert run(generate.main, [*flags, *more]) == 0
        return media_files.decoded_frames(tmp_path / f"{name}.mp4"), any(
            "models_t5" in line for line in jobs.loads(caplog)
        )

    return made


def test_a_known_prompt_needs_no_text_encoder(made, tmp_path):
    first, was_loaded = made("first")
    again, is_loaded = made("again")
    assert was_loaded and not is_loaded and np.array_equal(first, again)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2  # and the negative prompt
    assert made("other", "He sings.")[1]


@pytest.mark.parametrize(
    "kept",
    [torch.zeros(4, 8).long(), torch.zeros(0, 8), torch.zeros(8), torch.full((4, 8), torch.nan), torch.zeros(4, 9)],
)
def test_what_is_no_prompt_is_encoded_anew(tmp_path, kept):
    right, asked = torch.ones(4, 8), []

    def encode(prompts):
        asked.append(prompts)
        return [right]

    cache = TextCache(tmp_path, (), "fp32", 8)
    cache.get(["She talks."], encode)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(save({"embeds": kept}))
    for _ in range(2):
        (embeds,) = cache.get(["She talks."], encode)
        assert torch.equal(embeds, right)
    assert asked == [["She talks."]] * 2


def test_another_text_encoder_is_another_cache(made, tmp_path):
    made("first")
    copy = tmp_path / "t5.pth"
    copy.write_bytes(next((jobs.official() / WAN).glob("models_t5*")).read_bytes())
    made("second", "She talks.", "--t5_path", str(copy))
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4


def test_precision_and_quantization_are_told_apart():
    options = [
        EngineOptions(device="cpu", dtype=d, quantize=q) for d, q in (("fp32", None), ("bf16", None), ("fp32", "fp8"))
    ]
    encoders = [TalkingVideoPipeline(jobs.official_files(), option).encoders.text for option in options]
    assert len({encoder.precision for encoder in encoders}) == 3


def test_a_cache_that_cannot_be_written_ends_no_run(made, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert len(made("first")[0]) == 5
    assert "cannot be kept" in caplog.text


def test_the_cache_is_where_users_have_theirs(monkeypatch):
    monkeypatch.delenv("WANVIDEO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert user_cache() == Path("/caches/wan-talking-video/prompts")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache() == Path.home() / ".cache/wan-talking-video/prompts"
    monkeypatch.setenv("WANVIDEO_CACHE", " ")
    assert user_cache() is None
