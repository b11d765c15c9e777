"""What a run goes on with, and what it does not: everything that decides the frames and the sound is compared."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from support import jobs

from wanvideo import TalkingVideoPipeline
from wanvideo.errors import InputError, OutputError
from wanvideo.runs.find import is_locked
from wanvideo.runs.manifest import NAME, Manifest


class Stop(Exception):
    pass


@functools.cache
def pipeline():
    return TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)


def stop(report):
    if report.window_index == 1:
        raise Stop


def sound(path, seconds, rate, channels, seed=0):
    samples = np.random.default_rng(seed).standard_normal((round(seconds * rate), channels)) * 0.1
    soundfile.write(path, samples, rate)
    return str(path)


def test_an_unfinished_run_of_a_sound_of_another_form_holds_nobody_up(tmp_path):
    first = jobs.request(tmp_path, [sound(tmp_path / "a.wav", 0.9, 16000, 1)])
    other = replace(first, speakers=jobs.request(tmp_path, [sound(tmp_path / "b.wav", 0.9, 44100, 2, 1)]).speakers)
    with pytest.raises(Stop):
        pipeline().generate(first, tmp_path / "talk.mp4", on_step=stop)
    made = pipeline().generate(other, tmp_path / "talk.mp4")
    alone = pipeline().generate(other, tmp_path / "alone.mp4", resume="never")
    assert made.read_bytes() == alone.read_bytes()
    assert Manifest.read(tmp_path / "talk.run").progress.num_windows == 1, "the first run stays"


def test_a_long_sound_that_was_edited_in_one_place_is_another_one(tmp_path):
    path = sound(tmp_path / "a.wav", 30, 48000, 1)
    request = jobs.request(tmp_path, [path], max_frames=21)
    before = pipeline().manifest(request, pipeline().check(request))
    samples, rate = soundfile.read(path)
    samples[20 * rate : 20 * rate + rate // 2] = 0
    soundfile.write(path, samples, rate)
    now = pipeline().manifest(request, pipeline().check(request))
    assert now.identity == before.identity and now.sound != before.sound


def test_a_run_whose_state_is_damaged_is_let_go(tmp_path):
    request = jobs.request(tmp_path, [jobs.speech(tmp_path, 0.9)])
    with pytest.raises(Stop):
        pipeline().generate(request, tmp_path / "talk.mp4", on_step=stop)
    (state,) = (tmp_path / "talk.run").glob("state_*")
    state.write_bytes(b"nothing")
    for _ in range(2):
        with pytest.raises(InputError, match="damaged"):
            pipeline().generate(request, tmp_path / "talk.mp4")
        assert not is_locked(tmp_path / "talk.run")


def test_what_decides_a_run_is_text(tmp_path):
    request = jobs.request(tmp_path)
    wanted = pipeline().manifest(request, pipeline().check(request))
    for part in ("identity", "sound"):
        wanted.write(tmp_path)
        data = json.loads((tmp_path / NAME).read_bytes())
        data[part]["frames"] = 5
        (tmp_path / NAME).write_text(json.dumps(data))
        with pytest.raises(OutputError, match="of other kinds"):
            Manifest.read(tmp_path)
