"""Large numbers: windows, cuts, pieces of sound, model files and prompts cost no more each than a few of them do."""

import math
import sys

import numpy as np
import pytest
import soundfile
import torch
from scipy.ndimage import distance_transform_edt
from support import media_files as media
from support.folders import comfy_folders
from support.pack import load_pack

from wanvideo.engine import talk
from wanvideo.fleet import jobs
from wanvideo.fleet.report import Report, Stage
from wanvideo.geometry import WindowPlan
from wanvideo.keep import Trim
from wanvideo.text import cache
from wanvideo.video.feather import feathered
from wanvideo.video.mask import VideoRegion
from wanvideo.video.part import VideoPart
from wanvideo.video.reader import VideoFrames
from wanvideo.video.soundtrack import Soundtrack
from wanvideo.video.source import SourceVideo

load_pack()
files, common = (sys.modules[f"pack_under_test.{name}"] for name in ("nodes_files", "nodes_common"))


@pytest.mark.parametrize("cuts", [(), (1,), (80, 81, 82), (3, 500, 501, 999), tuple(range(7, 1000, 13))])
def test_windows_of_scenes_are_counted_as_each_scene_would_be_alone(cuts):
    plan, windows = WindowPlan(1000, 21, 5, cuts), []
    for start, stop in zip((0, *cuts), (*cuts, 1000), strict=True):
        first = len(windows)
        for number in range(1 + math.ceil(max(0, stop - start - 21) / 16)):
            at = start + 16 * number
            windows.append((at, at + 21, at + 5 * (number > 0), min(at + 21, stop)))
            assert plan.scene_first(len(windows) - 1) == first
    assert [(span.start, span.stop, span.new_start, span.new_stop) for span in plan] == windows
    assert len(plan) == plan.num_windows == len(windows)
    assert plan.start_of(len(windows)) == windows[-1][0] + 16


def test_a_plan_of_many_scenes_is_gone_through_at_once(monkeypatch):
    calls, real = [], WindowPlan._windows_of
    monkeypatch.setattr(WindowPlan, "_windows_of", lambda plan, frames: calls.append(frames) or real(plan, frames))
    plan = WindowPlan(90_000, 81, 9, tuple(range(45, 90_000, 45)))
    assert sum(span.num_new for span in plan) == 90_000 and plan[1999].new_stop == 90_000
    assert len(calls) < 10 * len(plan)


def test_sound_that_is_asked_for_in_very_many_pieces(tmp_path):
    """A piece that comes too early for a frame is kept for the next one, however often: a day has 86,400 seconds."""
    samples = np.random.default_rng(0).standard_normal(32_000) * 0.1
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    pieces = {}
    for name, step in (("few", 25), ("many", 0.001)):
        part = VideoPart(tmp_path / f"{name}.mp4", 64, 48, 25, audio=Soundtrack((tmp_path / "a.wav",)), num_frames=50)
        stops = (step * number for number in range(1, round(50 / step) + 1))
        pieces[name] = [(start, piece.data) for stop in stops for start, piece in part._sound_until(stop)]
        part.close()
    assert len(pieces["many"]) > 30 and pieces["many"] == pieces["few"]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """ComfyUI's folders with 300 LoRAs, none of which can be read."""
    (tmp_path / "loras").mkdir()
    for number in range(300):
        (tmp_path / "loras" / f"style_{number}.safetensors").write_bytes(b"x")
    monkeypatch.setattr(common, "folder_paths", comfy_folders(tmp_path, tmp_path))
    return tmp_path


def test_a_file_among_many_is_found_without_all_of_them_being_listed(folders, monkeypatch):
    listed, real = [], files.folder_names
    monkeypatch.setattr(files, "folder_names", lambda folder: listed.append(folder) or real(folder))
    for number in range(300):
        assert files.LORAS.find(f"style_{number}.safetensors").is_file()
    assert not listed


def test_a_link_that_comfyui_lists_is_found_wherever_it_leads(folders, tmp_path_factory):
    other = tmp_path_factory.mktemp("elsewhere") / "far.safetensors"
    other.write_bytes(b"x")
    (folders / "loras" / "far.safetensors").symlink_to(other)
    assert files.LORAS.find("far.safetensors") == folders / "loras" / "far.safetensors"


def test_headers_are_read_only_of_loras_whose_names_may_be_meant(folders, monkeypatch):
    read = []
    monkeypatch.setattr(files, "identity_of", lambda path, kind: read.append(path.name))
    (folders / "loras" / "some_lightx2v_i2v.safetensors").write_bytes(b"x")
    for preset in ("02_comfyui_equivalent", "03_balanced"):
        for lora in talk.load_preset(preset).loras:
            talk._lora_of(files.LORAS, lora)
    assert set(read) <= {"some_lightx2v_i2v.safetensors"} and read


def test_many_jobs_of_one_name_are_told_in_one_line_each(tmp_path):
    lines = [f'{{"name": "job_{number // 2}"}}\n' for number in range(2000)]
    (tmp_path / "jobs.jsonl").write_text("".join(lines))
    entries, problems = jobs.read_entries(tmp_path / "jobs.jsonl", tmp_path)
    assert len(entries) == 2000 and len(problems) == 2000  # a name and an output each
    second = f"line 1, {tmp_path / 'jobs.jsonl'}, line 2: 2 jobs have the name job_0. Give each its own."
    assert problems[0].endswith(second)


def test_a_report_counts_what_is_done_once(tmp_path):
    said = []
    report = Report(["a", "b", "c"], tmp_path, said.append)
    for name, stage in (
        ("a", Stage.THERE), ("b", Stage.RUNNING), ("b", Stage.RETRIED), ("b", Stage.RUNNING), ("b", Stage.DONE),
        ("b", Stage.DONE), ("c", Stage.FAILED),
    ):  # fmt: skip
        report.change(name, stage)
    assert [line[:5] for line in said] == ["[1/3]"] * 4 + ["[2/3]"] * 3
    assert report.end() == 1 and said[-1].startswith("2 of 3 jobs are done.")


def test_the_oldest_prompts_are_forgotten_once_a_request(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MOST_FILES", 3)
    looks, real = [], cache.TextCache._forget_oldest
    monkeypatch.setattr(cache.TextCache, "_forget_oldest", lambda known: looks.append(0) or real(known))
    known = cache.TextCache(tmp_path / "cache", [], "bf16", 3)
    prompts = [f"prompt {number}" for number in range(8)]
    embeds = known.get(prompts, lambda missing: [torch.full((2, 3), float(prompts.index(one))) for one in missing])
    assert [int(each[0, 0]) for each in embeds] == list(range(8)) and len(looks) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 3
    known.get(prompts[:1], lambda missing: [torch.zeros(2, 3) for _ in missing])
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_video_of_masks_with_one_key_frame_is_read_forwards_once(tmp_path, monkeypatch):
    """Windows overlap: going back for what both have would decode such a file from its start, for every window."""
    frames = np.zeros((200, 48, 64, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[8:40, number % 40 : number % 40 + 16] = 255
    paths = [media.video(tmp_path / name, frames, keyframe=1000) for name in ("source.mp4", "mask.mp4")]
    source = SourceVideo(paths[0], 64, 48, 25.0)
    region, decoded, real = VideoRegion(str(paths[1]), source, 3), [], VideoFrames._upcoming
    monkeypatch.setattr(VideoFrames, "_upcoming", lambda video: decoded.append(0) or real(video))
    windows = [(span.start, span.stop) for span in WindowPlan(200, 21, 9)]
    found = [region.weights(*window) for window in windows]
    assert len(decoded) < 250
    for (start, stop), weights in zip(windows, found, strict=True):
        assert torch.equal(weights, VideoRegion(str(paths[1]), source, 3).weights(start, stop))


@pytest.mark.parametrize("feather", [1, 7, 100])
def test_edges_are_soft_wherever_a_region_lies(feather):
    generator = np.random.default_rng(feather)
    masks = [np.zeros((40, 50), bool) for _ in range(4)]
    masks[0][17, 3] = masks[1][:, 0] = masks[2][0, 49] = masks[2][39, 49] = True
    masks[3][:] = generator.random((40, 50)) > 0.97
    for mask in masks:
        distance = torch.from_numpy(distance_transform_edt(~mask)).float()
        ramp = (1 - distance / (feather + 1)).clamp(0, 1)
        assert torch.equal(feathered(torch.from_numpy(mask), feather), ramp * ramp * (3 - 2 * ramp))


@pytest.mark.parametrize("trim", [Trim(), Trim(0.2, 0.4)])
def test_a_last_frame_that_remains_is_not_looked_for_again(tmp_path, monkeypatch, trim):
    """Speech may be minutes longer than its source: nothing is decoded for what lies behind the source's end."""
    path = media.video(tmp_path / "source.mp4", media.numbered_frames(25), keyframe=1000)
    source = SourceVideo(path, 64, 48, 25.0, trim=trim)
    decoded, real = [], VideoFrames._upcoming
    monkeypatch.setattr(VideoFrames, "_upcoming", lambda video: decoded.append(0) or real(video))
    last = 14 if trim.duration_s else 24
    for start in range(0, 2000, 20):
        numbers = [media.index_of(frame) for frame in source.frames(start, start + 21).numpy()]
        assert numbers[-1] == (min(start + 20, last) if not trim.duration_s else min(start + 25, last))
    assert len(decoded) < 30
    assert media.index_of(source.frames(0, 1)[0].numpy()) == (5 if trim.duration_s else 0)
