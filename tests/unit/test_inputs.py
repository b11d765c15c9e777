"""What a request is checked for once its files are opened, and what is said of a video that ends before its sound."""

from dataclasses import replace

import pytest
from support import jobs

from wanvideo import TalkingVideoPipeline
from wanvideo.engine import inputs
from wanvideo.engine.inputs import open_inputs
from wanvideo.errors import CheckpointError, InputError, UnsupportedError
from wanvideo.request import EngineOptions, SkipLayers


def test_speech_that_is_cut_is_said(tmp_path, caplog):
    request = jobs.request(tmp_path, [jobs.speech(tmp_path, 2.0)])
    assert open_inputs(request).num_frames == 50 and "speech lasts" not in caplog.text
    assert open_inputs(replace(request, max_frames=13)).num_frames == 13
    assert "The speech lasts 2.00 s, but the video ends after 13 frames, 0.52 s" in caplog.text
    assert "--max_frame_num 50" in caplog.text


def test_a_silent_video_is_said(tmp_path, caplog):
    caplog.set_level("INFO", logger="wanvideo")
    assert open_inputs(jobs.request(tmp_path, [])).num_frames == 13
    assert "Nobody speaks: the video is 0.52 s of silence, 13 frames" in caplog.text


def test_two_people_need_the_adapter_for_several(tmp_path):
    pair = [jobs.speech(tmp_path, 0.5, f"{n}.wav") for n in (1, 2)]
    with pytest.raises(CheckpointError, match="adapter for one person"):
        TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS).check(jobs.request(tmp_path, pair))
    TalkingVideoPipeline(jobs.official_files("multi"), jobs.OPTIONS).check(jobs.request(tmp_path, pair))


def test_attention_and_blocks_are_known_before_anything_is_encoded(tmp_path):
    with pytest.raises(InputError, match="attention_mode 'nope' is not offered"):
        TalkingVideoPipeline(jobs.official_files(), EngineOptions(device="cpu", attention="nope"))
    request = jobs.request(tmp_path)
    request = replace(request, settings=replace(request.settings, skip_layers=SkipLayers((1, 99))))
    with pytest.raises(InputError, match="names block 99; this model has the blocks 0 to"):
        TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS).check(request)


def test_the_schedule_is_checked_before_any_file_is_opened(tmp_path):
    request = jobs.request(tmp_path, reference="/nowhere.png")
    for change, words in (
        ({"scheduler": "unipcc"}, "unipc"),
        ({"start_step": 2}, "start_step 2"),
        ({"start_step": 1, "end_step": 1}, "leave no step"),
        ({"scheduler": "flowmatch_causvid", "steps": 10}, "steps 10"),
        ({"scheduler": "deis"}, "dpm"),
    ):
        with pytest.raises((InputError, UnsupportedError), match=words):
            open_inputs(replace(request, settings=replace(request.settings, **change)))


def test_what_a_library_makes_of_a_file_is_answered_with_its_name(tmp_path, monkeypatch):
    def breaks(path):
        raise IndexError("list index out of range")

    monkeypatch.setattr(inputs, "load_audio", breaks)
    with pytest.raises(InputError, match="speech.wav cannot be read.*IndexError"):
        open_inputs(jobs.request(tmp_path))
