import json
import math
from pathlib import Path

import pytest

from wanvideo import TalkRequest
from wanvideo.errors import InputError
from wanvideo.request import Apg, EngineOptions, LoopSettings, LoraFile, ModelFiles, SkipLayers, Speaker, StepCache

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


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (LoopSettings, {"steps": True}), (LoopSettings, {"steps": 4.0}), (LoopSettings, {"steps": 10**400}),
        (LoopSettings, {"shift": "7"}), (LoopSettings, {"mode": ["multitalk"]}), (LoopSettings, {"tiled_vae": 1}),
        (LoopSettings, {"add_noise_to_samples": "no"}), (LoopSettings, {"start_step": -1}),
        (LoopSettings, {"start_step": 1.5}), (LoopSettings, {"start_step": math.nan}), (LoopSettings, {"end_step": ""}),
        (LoopSettings, {"end_step": -2}), (LoopSettings, {"denoise_strength": math.nan}), (LoopSettings, {"apg": 1}),
        (LoopSettings, {"step_cache": "teacache"}), (LoopSettings, {"skip_layers": (1,)}),
        (LoopSettings, {"scheduler": None}), (LoopSettings, {"scheduler": "a\0"}), (LoopSettings, {"sigmas": 5}),
        (LoopSettings, {"sigmas": (1.0, 0.5)}), (LoopSettings, {"steps": 2, "sigmas": (1.0, 1.0)}),
        (LoopSettings, {"steps": 2, "sigmas": (1.0, math.nan)}), (LoopSettings, {"steps": 2, "sigmas": (2.0, 1.0)}),
        (LoopSettings, {"steps": 2, "sigmas": ("1", "0")}), (LoopSettings, {"steps": 2, "sigmas": "10"}),
        (LoopSettings, {"window_frames": 81.0}), (LoopSettings, {"window_frames": 10**12 + 1}),
        (Apg, {"momentum": math.nan}), (Apg, {"momentum": 2}), (Apg, {"norm_threshold": math.inf}),
        (Apg, {"norm_threshold": None}), (SkipLayers, {"blocks": 5}), (SkipLayers, {"blocks": ("5",)}),
        (SkipLayers, {"blocks": (-1,)}), (SkipLayers, {"blocks": (1,), "start": 0.9, "end": 0.1}),
        (StepCache, {"start_step": 5, "end_step": 5}), (StepCache, {"offload": None}),
        (StepCache, {"threshold": math.nan}), (LoraFile, {"path": ""}), (LoraFile, {"path": "a", "strength": math.inf}),
        (LoraFile, {"path": "a", "strength": ()}), (LoraFile, {"path": "a", "strength": (1, True)}),
        (ModelFiles, {"transformer": None}), (ModelFiles, {"transformer": "a\0"}),
        (ModelFiles, {"transformer": "a", "vae": "\ud800"}), (ModelFiles, {"transformer": "a", "loras": ("b",)}),
        (EngineOptions, {"device": "meta"}), (EngineOptions, {"device": "gpu"}), (EngineOptions, {"device": 0}),
        (EngineOptions, {"text_encoder_device": "cuda"}), (EngineOptions, {"attention": None}),
        (EngineOptions, {"tf32": "yes"}), (EngineOptions, {"vae_tiling": 1}), (EngineOptions, {"compile": True}),
        (Speaker, {"audio": 5}), (Speaker, {"audio": ""}), (Speaker, {"audio": "a", "box": [1, 2, 3, 4]}),
        (Speaker, {"audio": "a", "box": (1, 2, 3)}), (Speaker, {"audio": "a", "box": (0, 0, math.nan, 4)}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "_".join(f"{k}={value[k]!r:.20}" for k in value),
)  # fmt: skip
def test_every_field_is_checked_where_it_is_made(kind, values):
    with pytest.raises(InputError):
        kind(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"prompts": "She talks."}, {"prompts": ()}, {"prompts": (None,)}, {"reference": None}, {"reference": ""},
        {"negative_prompt": None}, {"negative_prompt": "\udcff"}, {"size": None}, {"size": (48,)}, {"size": (48.0, 48)},
        {"size": (True, 48)}, {"size": "²x²"}, {"size": "9" * 5000}, {"size": "8192x8192"}, {"fps": True}, {"seed": -1},
        {"seed": 2**64}, {"seed": 1.0}, {"max_frames": -1}, {"normalize_loudness": 1}, {"settings": None},
        {"speakers": (None,)}, {"speakers": Speaker("a")}, {"output": 5}, {"audio_type": None},
    ],
    ids=lambda values: ", ".join(f"{k}={v!r:.20}" for k, v in values.items()),
)  # fmt: skip
def test_every_field_of_a_request_is_checked(values):
    with pytest.raises(InputError):
        TalkRequest(**{"prompts": ("p",), "reference": "a.png", **values})


def test_paths_may_be_path_objects():
    request = TalkRequest(("p",), Path("a.png"), (Speaker(Path("b.wav")),), output=Path("c.mp4"))
    assert json.loads(json.dumps(request.to_json()))["speakers"][0]["audio"] == "b.wav"
    assert (request.reference, request.output) == ("a.png", "c.mp4")
