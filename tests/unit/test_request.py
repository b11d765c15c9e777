import json

import pytest

from wanvideo import TalkRequest
from wanvideo.errors import InputError
from wanvideo.request import Apg, LoopSettings, Speaker

JOB = {"prompt": "Una mujer está hablando", "cond_video": "woman.png", "cond_audio": {"person1": "a.wav"}}
TWO = {**JOB, "cond_audio": {"person1": "a.wav", "person2": "None"}, "audio_type": "para",
       "bbox": {"person1": [160, 120, 1280, 1080], "person2": [160, 1320, 1280, 2280]}}  # fmt: skip


def test_round_trip_through_json(tmp_path):
    request = TalkRequest(
        prompts=("one", "два"), reference="a.png", speakers=(Speaker("a.wav", box=(0, 1, 2, 3)),), size=(832, 480),
        settings=LoopSettings(steps=4, apg=Apg(momentum=-0.5), scheduler="flowmatch_distill"),
    )  # fmt: skip
    file = tmp_path / "request.json"
    file.write_text(json.dumps(request.to_json(), ensure_ascii=False), encoding="utf-8")
    assert TalkRequest.from_json(file) == request


def test_job_of_one_person(tmp_path):
    file = tmp_path / "ejemplo.json"
    file.write_text(json.dumps(JOB, ensure_ascii=False), encoding="utf-8")
    request = TalkRequest.from_job(file, seed=7)
    assert request.prompts == ("Una mujer está hablando",) and request.speakers == (Speaker("a.wav"),)
    assert request.seed == 7


def test_job_of_two_persons_one_silent():
    request = TalkRequest.from_job(TWO)
    assert request.speakers == (
        Speaker("a.wav", (160, 120, 1280, 1080)),
        Speaker(None, (160, 1320, 1280, 2280)),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [({"cond_vidoe": "x"}, "cond_video"), ({"cond_video": ""}, "names no picture"),
     ({"bbox": {"person1": [0, 0, 5, 5]}}, "same persons"), ({"audio_type": "parallel"}, "para"),
     ({"bbox": {"person1": [5, 5, 0, 0], "person2": [0, 0, 5, 5]}}, "is empty"),
     ({"bbox": {"person1": [5, 5], "person2": [0, 0, 5, 5]}}, "four numbers")],
)  # fmt: skip
def test_wrong_jobs_say_what_to_do(change, message):
    with pytest.raises(InputError, match=message):
        TalkRequest.from_job({**TWO, **change})


def test_missing_audio_type_and_json_typo(tmp_path):
    with pytest.raises(InputError, match="audio_type"):
        TalkRequest.from_job({key: value for key, value in TWO.items() if key != "audio_type"})
    file = tmp_path / "bad.json"
    file.write_text('{"prompt": "x",,}')
    with pytest.raises(InputError, match="line 1, column 16"):
        TalkRequest.from_job(file)
    with pytest.raises(InputError, match="no file"):
        TalkRequest.from_job(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"steps": 0}, "steps"), ({"shift": float("nan")}, "shift"), ({"color_match": "mkll"}, "mkl"),
     ({"mode": "talk"}, "infinitetalk"), ({"window_frames": 80}, "77 or 81"), ({"motion_frames": 81}, "smaller"),
     ({"color_strength": 2}, "color_strength")],
)  # fmt: skip
def test_impossible_settings(settings, message):
    with pytest.raises(InputError, match=message):
        LoopSettings(**settings)


def test_three_speakers_need_regions():
    with pytest.raises(InputError, match="box or mask"):
        TalkRequest(("p",), "a.png", tuple(Speaker(f"{i}.wav") for i in range(3)))
    with pytest.raises(InputError, match="3 speakers have 2"):
        TalkRequest(("p",), "a.png", (Speaker("a", mask="m"), Speaker("b", mask="n"), Speaker("c")))
