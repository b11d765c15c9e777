"""Whole runs from a video: dubbed, cut into scenes, continued beyond its end; and what is refused before anything."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from support import jobs, sources
from support import media_files as media

from wanvideo import TalkingVideoPipeline
from wanvideo.audio.load import load_audio
from wanvideo.engine.conditioning import workload_of_request
from wanvideo.errors import InputError
from wanvideo.keep import Camera, Keep
from wanvideo.request import TalkRequest
from wanvideo.runs.store import VIDEO
from wanvideo.video.reader import probe
from wanvideo.video.source import SourceVideo, to_bytes
from wanvideo.video.writer import VideoWriter

NTSC = Fraction(30000, 1001)
BOX = 16, 16, 32, 32
QUICK = replace(jobs.SETTINGS, steps=1)


def moving(num_frames, height=48, width=48):
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin((columns - index) / 9) * 50 + np.cos(rows / 9) * 40 + 120 for index in range(num_frames)]
    return np.stack([np.stack([wave, wave * 0.8, 230 - wave], -1) for wave in waves]).astype(np.uint8)


@pytest.fixture(scope="module")
def pipeline():
    return TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)


def request(folder, frames, fps=25, **changes):
    path = media.video(folder / "source.mp4", frames, fps=fps)
    return jobs.request(folder, reference=str(path), **changes)


def made(pipeline, talk):
    return torch.cat([window.frames for window in pipeline.run(talk)])


def test_a_dub_keeps_its_source_and_its_time(pipeline, tmp_path):
    talk = request(tmp_path, moving(40), fps=NTSC, keep=Keep(box=BOX, feather=2))
    with VideoWriter(tmp_path / "dub.mp4", 48, 48, 25) as writer:
        video = torch.cat([window.frames for window in pipeline.run(talk)])
        writer.write(video)
    source = SourceVideo(talk.reference, 48, 48, 25).frames(0, 25)
    outside = torch.ones(48, 48, dtype=torch.bool)
    outside[13:35, 13:35] = False
    assert video.shape == source.shape and torch.equal(video[:, outside], source[:, outside])
    assert not torch.equal(video[:, 16:32, 16:32], source[:, 16:32, 16:32])
    assert len(media.decoded_frames(writer.path)) == 25


@pytest.mark.parametrize("make", sources.KINDS)
def test_frames_and_sound_of_every_source_are_in_time_to_the_end(pipeline, tmp_path, make):
    """In the file: the source's frames by its own times, and a click in the last frame where it was."""
    path, times = make(tmp_path)
    voice = media.tone(16000, 0.68, level=0.05) + media.click(16000, 0.68, 0.64)
    sound = str(media.wav(tmp_path / "click.wav", voice, 16000))
    talk = jobs.request(
        tmp_path, [sound], reference=str(path), keep=Keep(box=(4, 4, 24, 24), feather=0), settings=QUICK
    )
    video = pipeline.generate(talk, tmp_path / "dub.mp4")
    assert [media.index_of(frame[-8:]) for frame in media.decoded_frames(video)] == sources.on_screen(times, 17)
    sound_of_file = load_audio(video)
    samples = sound_of_file.read(0, sound_of_file.num_samples)
    assert probe(video).frames == 17 and abs(len(samples) / 16000 - 0.68) <= 0.04
    assert abs(int(np.argmax(np.abs(samples) > 0.3)) / 16000 - 0.64) < 0.01


def test_a_dub_loops_where_its_source_is_short(pipeline, tmp_path):
    talk = request(tmp_path, moving(10), keep=Keep(box=BOX, feather=0), source_end="loop")
    video = made(pipeline, talk)
    assert (
        len(video) == 25 and torch.equal(video[10, :16], video[0, :16]) and torch.equal(video[24, :16], video[4, :16])
    )


def test_the_plan_counts_what_a_dub_encodes(pipeline, tmp_path):
    talk = request(tmp_path, moving(30))
    loads = [
        workload_of_request(asked, pipeline.check(asked)) for asked in (talk, replace(talk, keep=Keep(box=BOX)))
    ]  # fmt: skip
    assert [load.num_references for load in loads] == [len(loads[0].windows), 2 * len(loads[0].windows)]


def three_shots():
    return np.concatenate([np.roll(255 - moving(30) if index % 2 else moving(30), 17 * index, 2) for index in range(3)])


def test_every_scene_begins_with_its_own_reference(pipeline, tmp_path):
    pytest.importorskip("scenedetect", reason="the optional package scenedetect finds scenes")
    talk = request(tmp_path, three_shots(), scene_seg=True, speakers=(), max_frames=90, settings=QUICK)
    inputs = pipeline.check(talk)
    assert inputs.plan.cuts == (30, 60)
    windows = list(pipeline.run(talk))
    starts = [span.start for span in inputs.plan if span.begins_scene]
    assert starts == [0, 30, 60] and sum(len(window.frames) for window in windows) == 90
    assert [window.start for window in windows] == [span.new_start for span in inputs.plan]
    frames = SourceVideo(talk.reference, 48, 48, 25)
    for span in inputs.plan:
        assert torch.equal(to_bytes(inputs.references[span.index]), frames.frame(span.start).movedim(-1, 0))


@pytest.mark.parametrize("stop_after", [2, 5])
def test_scenes_are_one_file_that_goes_on_in_the_middle_of_one(pipeline, tmp_path, stop_after):
    """Windows of three shots: 0 to 3, 4 to 7, 8 to 11. With sound, dubbed, stopped within the first or the second."""
    pytest.importorskip("scenedetect", reason="the optional package scenedetect finds scenes")
    talk = request(
        tmp_path, three_shots(), sounds=[jobs.speech(tmp_path, 3.6)], scene_seg=True, settings=QUICK,
        keep=Keep(box=BOX, feather=0),
    )  # fmt: skip
    whole = list(pipeline.run(talk, folder=tmp_path / "whole" / "run"))
    windows = pipeline.run(talk, folder=tmp_path / "cut" / "run")
    first = [next(windows) for _ in range(stop_after)]
    windows.close()
    rest = list(pipeline.run(talk, folder=tmp_path / "cut" / "run"))
    assert [window.index for window in first + rest] == [window.index for window in whole] and len(whole) > stop_after
    for window, expected in zip(first + rest, whole, strict=True):
        assert torch.equal(window.frames, expected.frames) and window.start == expected.start
    files = [tmp_path / name / "run" / VIDEO for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    info = probe(files[1])
    assert info.frames == 90 and abs(info.audio_duration_s - 3.6) <= 0.04
    source, outside = SourceVideo(talk.reference, 48, 48, 25).frames(0, 90), torch.ones(48, 48, dtype=torch.bool)
    outside[BOX[0] : BOX[2], BOX[1] : BOX[3]] = False
    assert torch.equal(torch.cat([window.frames for window in whole])[:, outside], source[:, outside])


@pytest.mark.parametrize(("source_frames", "fps", "expected"), [(10, 25, 10), (13, NTSC, 11), (40, 25, 25)])
def test_a_result_may_end_with_its_source(pipeline, tmp_path, source_frames, fps, expected, caplog):
    jobs.capture_log(caplog)
    talk = request(tmp_path, moving(source_frames), fps=fps, source_end="stop", settings=QUICK)
    assert len(made(pipeline, talk)) == expected == pipeline.check(talk).num_frames
    assert ("the video ends with its source" in caplog.text) == (expected < 25)


def test_a_camera_gives_each_window_its_own_view(pipeline, tmp_path):
    talk = jobs.request(tmp_path, camera=Camera(1.3, period_s=2))
    references = pipeline.check(talk).references
    assert len(references) == 3 and not torch.equal(references[0], references[1])
    assert made(pipeline, talk).shape == (25, 48, 48, 3)


def test_requests_with_all_of_it_survive_json(tmp_path):
    talk = jobs.request(
        tmp_path, keep=Keep("mask.png", feather=3), source_end="ping-pong", scene_seg=True,
        camera=Camera(1.2, (1.0, 0.0)),
    )  # fmt: skip
    assert TalkRequest.from_json(talk.to_json()) == talk
    assert TalkRequest.from_json(replace(talk, keep=Keep(box=BOX)).to_json()).keep == Keep(box=BOX)


@pytest.mark.parametrize("changes", [dict(keep=Keep(box=BOX)), dict(scene_seg=True), dict(source_end="loop")])
def test_what_is_for_videos_is_refused_for_pictures(pipeline, tmp_path, changes, caplog):
    jobs.capture_log(caplog)
    with pytest.raises(InputError, match=f"{next(iter(changes))} is for a source video, and .* is a still picture"):
        pipeline.run(jobs.request(tmp_path, **changes))
    assert not jobs.loads(caplog)


def test_a_camera_is_refused_for_videos(pipeline, tmp_path):
    with pytest.raises(InputError, match="camera moves over a still picture"):
        pipeline.run(request(tmp_path, moving(5), camera=Camera()))


def test_a_mask_that_is_missing_is_named_before_anything_is_loaded(pipeline, tmp_path, caplog):
    jobs.capture_log(caplog)
    Image.new("L", (48, 48)).save(tmp_path / "black.png")
    for name, message in (("none.png", "none.png"), ("black.png", "black.png is nowhere white")):
        with pytest.raises(InputError, match=message):
            pipeline.run(request(tmp_path, moving(5), keep=Keep(str(tmp_path / name))))
    assert not jobs.loads(caplog)
