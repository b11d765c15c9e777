"""What runs took is kept, bounded and checked, and plans of runs like them count with it; and the nodes that ask."""

import json
import logging
import time
from dataclasses import replace

import pytest
import torch
from support.pack import load_pack, node

from wanvideo.engine.forecast import Outcome, disk_bytes, forecast
from wanvideo.geometry import VideoGeometry, WindowPlan
from wanvideo.memory import learned
from wanvideo.memory.learned import MOST, Measured, learn, learned_seconds
from wanvideo.memory.planner import Device, ModelWeights, Work, kind_of_run, plan_run
from wanvideo.request import EngineOptions, LoopSettings
from wanvideo.synthetic.models import make_models

RUN = Measured("A GPU", "fp8", "sdpa", 0, 4, 1e15, 2.0)
WEIGHTS = ModelWeights(40, 465_000_000, 660_000_000, 5120, 13824, 32, "fp8", 254_000_000, 11_400_000_000)
WORK = Work(num_steps=4, num_passes=1, num_speakers=1, num_texts=1, num_speeches=1, num_references=1)
DEVICE = Device("A GPU", 80 * 10**9)


def plan(size=(832, 480), device=DEVICE):
    geometry = VideoGeometry(*size, 81)
    return plan_run(geometry, WindowPlan(550), 25.0, LoopSettings(), EngineOptions(), WEIGHTS, device, WORK)


def test_the_nearest_run_counts_and_one_that_is_unlike_does_not():
    assert learned_seconds(RUN) is None
    learn(RUN)
    learn(replace(RUN, flops=1.8e15, pass_seconds=9.0))
    assert learned_seconds(replace(RUN, flops=1.1e15)) == pytest.approx(2.2)
    for other in ({"device": "B"}, {"stored": "bf16"}, {"attention": "x"}, {"num_streamed": 9}, {"flops": 9e15}):
        assert learned_seconds(replace(RUN, **other)) is None, other


def test_a_later_run_takes_the_place_of_the_same_one_and_the_file_is_bounded():
    learn(RUN)
    learn(replace(RUN, pass_seconds=3.0))
    assert learned_seconds(RUN) == pytest.approx(3.0)
    for number in range(MOST + 5):
        learn(replace(RUN, device=f"GPU {number}"))
    runs = json.loads(learned.learned_file().read_text())["runs"]
    assert len(runs) == MOST and runs[-1]["device"] == f"GPU {MOST + 4}"
    assert learned_seconds(RUN) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": 5}', '{"runs": [5, {"device": "x"}]}', '{"runs": NaN}'])
def test_a_damaged_file_is_no_more_than_not_known(text):
    file = learned.learned_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    assert learned_seconds(RUN) is None
    learn(RUN)
    assert learned_seconds(RUN) == pytest.approx(2.0)


def test_values_that_no_run_has_are_left_out():
    learn(RUN)
    file = learned.learned_file()
    for wrong in (-1.0, "2", 1e300, None):
        data = json.loads(file.read_text())
        data["runs"][0]["pass_seconds"] = wrong
        file.write_text(json.dumps(data))
        assert learned_seconds(RUN) is None, wrong


def test_a_folder_that_cannot_be_written_only_means_that_less_is_known(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(learned, "learned_file", lambda: tmp_path / "file" / "measured.json")
    with caplog.at_level(logging.INFO, "wanvideo"):
        learn(RUN)
    assert "is not kept for later plans" in caplog.text


def test_a_plan_counts_with_what_this_machine_took():
    assert plan().step_seconds is None
    learn(kind_of_run(VideoGeometry(832, 480, 81), WEIGHTS, DEVICE, WORK, 0, pass_seconds=1.5))
    known = plan()
    assert known.step_seconds == pytest.approx(1.5)
    assert known.total_seconds == pytest.approx(8 * 4 * 1.5)
    assert 0.5 < plan((640, 384)).step_seconds < 1.5
    assert plan(device=Device()).step_seconds is None


class _Engine:
    """As much of an engine as an outcome on a CPU asks for."""

    class host:
        device = torch.device("cpu")


def test_a_run_says_what_was_planned_and_what_was_measured(caplog):
    outcome = Outcome(_Engine, plan(device=Device()), LoopSettings())
    outcome.report()
    assert not caplog.records
    for seconds in (9.0, 2.0, 2.2):
        outcome.add(seconds)
    with caplog.at_level(logging.INFO, "wanvideo"):
        outcome.report()
    assert "Measured: 2.1 s a window, 13.2 s in all" in caplog.text
    assert not learned.learned_file().exists()


def test_the_disk_is_counted_and_a_full_one_is_said(tmp_path, monkeypatch, caplog):
    assert 10e6 < disk_bytes(plan()) < 200e6
    assert "MB on the disk" in forecast(plan(), tmp_path / "not" / "there")
    assert not caplog.records
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    forecast(plan(), tmp_path)
    assert "Make room" in caplog.text


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, "tiny", "comfy")
    adapter = node("MultiTalkModelLoader").loadmodel(str(next(folder.rglob("*Single*"))))[0]
    base = str(folder / "diffusion_models" / "wan2.1_i2v_480p_14B_fp8_scaled.safetensors")
    return node("WanVideoModelLoader").loadmodel(base, "fp32", multitalk_model=adapter)[0]


def sound(seconds):
    return {"waveform": torch.rand(1, 1, 16000 * seconds) * 0.1, "sample_rate": 16000}


def test_the_plan_node_answers_at_once_and_loads_nothing(model):
    start = time.process_time()  # which other processes do not move
    told, frames, windows = node("WanVideoPlan").process(
        model, 832, 480, 81, 9, steps=4, cfg=1.0, scheduler="flowmatch_distill", shift=11.0, audio_1=sound(22)
    )
    assert time.process_time() - start < 1
    assert (frames, windows) == (550, 8)
    assert "8 windows of 4 steps, one pass a step" in told and "MB on the disk" in told
    assert model.handle.residency is None


def test_the_plan_node_says_what_the_run_would_warn_of(model):
    told, frames, _ = node("WanVideoPlan").process(model, num_frames=81, fps=24.0, audio_1=sound(22), steps=4)
    assert frames == 81
    assert "num_frames 81 ends the video after" in told and "fps 24: the audio adapters" in told
    with pytest.raises(ValueError, match="one person"):
        node("WanVideoPlan").process(model, audio_1=sound(1), audio_2=sound(1))
    assert "width 100" in type(node("WanVideoPlan")).VALIDATE_INPUTS(width=100)


def test_projected_guidance_reaches_the_samplers_settings(model):
    (apg,) = node("WanVideoAPG").process(-0.5, 30.0)
    (extras,) = node("WanVideoSamplerExtraArgs").process(apg_args=apg)
    job = node("WanVideoSampler")._job(model, steps=4, cfg=5.0, apg_args=apg)
    assert extras.apg == job.extras.apg == apg
    settings = job.check().settings
    assert (settings.apg.momentum, settings.apg.norm_threshold) == (-0.5, 30.0)
    assert load_pack().NODE_CLASS_MAPPINGS["WanVideoAPG"]
    with pytest.raises(ValueError, match="apg_args comes from another pack"):
        node("WanVideoSamplerExtraArgs").process(apg_args=5)
