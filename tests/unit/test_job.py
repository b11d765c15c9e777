"""Job files: what each key may be, what becomes of it, and what is said when it is wrong."""

import json
import math

import pytest

from wanvideo import TalkRequest
from wanvideo.errors import InputError
from wanvideo.request import NEGATIVE_PROMPT, Speaker

JOB = {"prompt": "She talks.", "cond_video": "face.png", "cond_audio": {"person1": "a.wav"}}
TWO = {**JOB, "cond_audio": {"person1": "a.wav", "person2": "b.wav"}, "audio_type": "para"}


def speakers(**changes):
    return [speaker.audio for speaker in TalkRequest.from_job({**TWO, **changes}).speakers]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": None}, ['"prompt" null', "Write one text"]),
        ({"prompt": 5}, ['"prompt" 5', "Write one text"]),
        ({"prompt": {"a": 1}}, ['"prompt" {...}', "Write one text"]),
        ({"prompt": []}, ["prompts is empty"]),
        ({"prompt": ["a", None]}, ["prompt null is no text"]),
        ({"prompt": True}, ['"prompt" True']),
        ({"prompt": 10**400}, ['"prompt" of 1329 bits']),
        ({"prompt": "a\0b"}, ["'\\x00' at place 2", "Remove it"]),
        ({"prompt": "\ud800"}, ["'\\ud800' at place 1"]),
        ({"prompt": "long " * 20_000}, ["100000 characters", "at most 50000"]),
        ({"cond_video": "a\0b"}, ['"cond_video"', "'\\x00'"]),
        ({"cond_video": 7}, ['"cond_video" 7 is no text']),
        ({"cond_video": "x" * 300}, ["more than 255 bytes"]),
        ({"cond_audio": []}, ['"cond_audio"', '{"person1": ...']),
        ({"cond_audio": {"person1": 5}}, ["\"cond_audio\" of 'person1' 5 is no text"]),
        ({"cond_audio": {"person1": ["a.wav"]}}, ["'person1'"]),
        ({"bbox": {"person1": [math.nan] * 4}}, ["row_min of the box of person1 nan"]),
        ({"bbox": {"person1": [0, 0, 1e300, 5]}}, ["row_max of the box of person1 1e+300"]),
        ({"bbox": {"person1": [0, 0, True, 5]}}, ["row_max of the box of person1 True"]),
        ({"bbox": {"person1": [0, 0, "5", 5]}}, ["row_max of the box of person1 '5'"]),
        ({"bbox": {"person1": "0,0,5,5"}}, ["four numbers"]),
        ({"bbox": {"person1": [-5, 0, 5, 5]}}, ["row_min", "-5", "from 0"]),
        ({"bbox": {"person1": [5, 0, 5, 5]}}, ["empty"]),
        ({"audio_type": 3}, ["audio_type 3"]),
        ({"video_audio": 3}, ['"video_audio" 3']),
        ({"cond_image ": "x"}, ["'cond_image '", "cond_image"]),
        ({5: "x"}, ["unknown key 5"]),
    ],
    ids=lambda value: "=".join(str(part)[:20] for part in next(iter(value.items()))) if isinstance(value, dict) else "",
)
def test_every_key_is_checked(change, words):
    with pytest.raises(InputError) as caught:
        TalkRequest.from_job({**JOB, **change})
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a", "prompt": "b"}', ["'prompt' twice"]),
        ('{"prompt": ' + "9" * 5000 + "}", ["5000 digits"]),
        ('{"prompt": "a", "bbox": {"person1": [NaN, 0, 1, 1]}}', ["NaN"]),
        ("[" * 100_000, ["nested too deep"]),
        ('{"cond_video": "C:\\Users\\me\\a.png"}', ["column", "write / or \\\\"]),
        ("[]", ["list, not an object", "{...} around"]),
        ("", ["line 1"]),
    ],
    ids=["key twice", "long number", "NaN", "deep", "Windows path", "list", "nothing"],
)
def test_every_text_is_answered(tmp_path, text, words):
    path = tmp_path / "job.json"
    path.write_text(text)
    for read in (TalkRequest.from_job, TalkRequest.from_json):
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(path) in str(caught.value) and all(word in str(caught.value) for word in words), caught.value


def test_a_job_needs_a_prompt_which_may_be_empty():
    assert TalkRequest.from_job({**JOB, "prompt": ""}).prompts == ("",)
    with pytest.raises(InputError, match='no "prompt". Add'):
        TalkRequest.from_job({"cond_video": "face.png"})


def test_persons_are_taken_by_number_and_others_as_they_are_written():
    assert speakers(cond_audio={"person2": "b.wav", "person1": "a.wav"}) == ["a.wav", "b.wav"]
    assert speakers(cond_audio={"woman": "w.wav", "man": "m.wav"}) == ["w.wav", "m.wav"]
    assert speakers(cond_audio={"man": "m.wav", "person1": "a.wav"}) == ["m.wav", "a.wav"]
    sounds = {f"person{n}": f"{n}.wav" for n in (6, 2, 1)}
    boxes = {name: [0, 0, 9, 9 + i] for i, name in enumerate(sounds)}
    job = {**TWO, "cond_audio": sounds, "bbox": boxes}
    assert [(s.audio, s.box[3]) for s in TalkRequest.from_job(job).speakers] == [
        ("1.wav", 11),
        ("2.wav", 10),
        ("6.wav", 9),
    ]


def test_audio_type_decides_nothing_for_one_person():
    for given in ("single", None):
        assert TalkRequest.from_job({**JOB, "audio_type": given}).audio_type == "para"
    with pytest.raises(InputError, match="'single' is not offered. Use one of para, add"):
        TalkRequest.from_job({**TWO, "audio_type": "single"})
    with pytest.raises(InputError, match='need "audio_type"'):
        TalkRequest.from_job({**TWO, "audio_type": None})


def test_what_is_not_used_is_said(caplog):
    caplog.set_level("INFO", logger="wanvideo")
    TalkRequest.from_job({**JOB, "video_audio": "missing.wav", "cond_image": "other.png"})
    assert '"video_audio" of the job is not used' in caplog.text and '"cond_video" is used' in caplog.text
    caplog.clear()
    boxes = {"person1": [0, 0, 5.6, 5], "person2": [0.0, 6, 5, 9.0]}
    request = TalkRequest.from_job({**TWO, "bbox": boxes})
    assert request.speakers == (Speaker("a.wav", (0, 0, 5, 5)), Speaker("b.wav", (0, 6, 5, 9)))
    assert caplog.text.count("parts of pixels") == 1


def test_a_request_in_json_is_checked_at_every_depth(tmp_path):
    whole = TalkRequest(("p",), "a.png", (Speaker("a.wav"),)).to_json()
    for change, words in (
        ({"settings": {"apg": {"momentum": "x"}}}, "apg.momentum 'x'"),
        ({"settings": {"apg": 5}}, "request.settings.apg 5 is no object"),
        ({"settings": {"stepz": 4}}, "request.settings has the unknown key 'stepz'. Did you mean 'steps'"),
        ({"settings": None}, "settings null"),
        ({"speakers": [5]}, r"request.speakers\[0\] 5 is no object"),
        ({"speakers": {"audio": "a.wav"}}, "speakers"),
        ({"speakers": [{"box": [1, 2, 3]}]}, "speakers\\[0\\] lacks audio"),
        ({"size": [48]}, "size"),
        ({"negative_prompt": 5}, "negative_prompt 5 is no text"),
        ({"normalize_loudness": 1}, "normalize_loudness 1 is neither true nor false"),
        ({"fps": "25"}, "fps '25'"),
    ):
        path = tmp_path / "request.json"
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(InputError, match=words):
            TalkRequest.from_json(path)


def test_persons_are_placed_by_masks_and_what_is_not_wanted_is_named():
    masks = {"person2": "him.png", "person1": "her.png"}
    request = TalkRequest.from_job({**TWO, "mask": masks, "negative_prompt": "blurred"})
    assert [speaker.mask for speaker in request.speakers] == ["her.png", "him.png"]
    assert request.negative_prompt == "blurred" and not any(speaker.box for speaker in request.speakers)
    assert TalkRequest.from_job(TWO).negative_prompt == NEGATIVE_PROMPT


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask": {"person1": "her.png"}}, "mask names person1 but cond_audio names person1, person2"),
        ({"mask": {"person1": "a.png", "person2": 5}}, '"mask" of .person2.'),
        ({"mask": "a.png"}, '"mask" .* is no object of persons'),
        ({"negative_prompt": 5}, "negative_prompt 5"),
        (
            {key: {"person1": value, "person2": value} for key, value in (("mask", "a.png"), ("bbox", [0, 0, 9, 9]))},
            'by "bbox" and by "mask". Keep one',
        ),
    ],
    ids=["one", "number", "text", "negative", "both"],
)
def test_wrong_masks_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        TalkRequest.from_job({**TWO, **change})
