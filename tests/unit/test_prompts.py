"""Prompts of a long video: one a window, or each from a time on, through jobs, requests, nodes and the loop."""

import json
import logging
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import jobs
from support.pack import load_pack, node
from support.sampling import SETTINGS, conditioning

from wanvideo import TalkingVideoPipeline, WindowPlan, run_windows
from wanvideo.engine.conditioning import Prompts, make_conditioning
from wanvideo.errors import InputError
from wanvideo.prompts import PromptList
from wanvideo.request import TalkRequest
from wanvideo.sampling.setup import SamplingSetup
from wanvideo.synthetic.models import make_models
from wanvideo.synthetic.tokenizer import write_tokenizer

load_pack()
JOB = {"cond_video": "face.png", "cond_audio": {"person1": "a.wav"}}
TIMED = [{"from": 0, "prompt": "She talks."}, {"from": 0.6, "prompt": "She laughs."}]


@pytest.mark.parametrize(
    ("text", "texts", "starts"),
    [
        ("one|two", ("one", "two"), ()),
        ("", ("",), ()),
        ("[1, 2] are numbers | [red] is none", ("[1, 2] are numbers", "[red] is none"), ()),
        ("one | [12.5] two|[1:05]three | [1:02:03.5 ] four", ("one", "two", "three", "four"), (0, 12.5, 65, 3723.5)),
        ("[0] one | [ 7s ] two", ("one", "two"), (0, 7)),
    ],
)
def test_texts_of_nodes_are_read_and_written(text, texts, starts):
    found = PromptList.parse(text)
    assert (found.texts, found.starts) == (texts, starts) and PromptList.parse(str(found)) == found


@pytest.mark.parametrize("text", ["[3] one | [5] two", "one | [5] two | three", "a | [9] b | [5] c", "a | [0] b"])
def test_times_that_leave_gaps_or_fall_are_refused(text):
    with pytest.raises(InputError, match="Give every prompt its time"):
        PromptList.parse(text)
    assert "Give every prompt" in node("WanVideoTextEncode").VALIDATE_INPUTS(positive_prompt=text)
    assert "Give every prompt" in node("WanVideoTextEncodeSingle").VALIDATE_INPUTS(prompt=text)
    assert node("WanVideoTextEncode").VALIDATE_INPUTS() is True


def test_a_job_names_times():
    request = TalkRequest.from_job({**JOB, "prompt": TIMED})
    assert request.prompts == ("She talks.", "She laughs.") and request.prompt_starts == (0, 0.6)
    assert TalkRequest.from_json(request.to_json()) == request
    assert PromptList(request.prompts, request.prompt_starts).to_json() == TIMED
    assert PromptList(("a", "b")).to_json() == ["a", "b"] and PromptList(("a",)).to_json() == "a"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([TIMED[0], "She laughs."], "among prompts for times"),
        ([{"prompt": "x"}], "among prompts for times"),
        ([{"from": "1", "prompt": "x"}], "prompt_starts"),
        ([{"from": 1, "prompt": "x"}], "do not fit"),
        ([{"from": 0, "prompt": 5}], "prompt 5 is no text"),
        ([{"from": float("nan"), "prompt": "x"}], "prompt_starts"),
    ],
)
def test_wrong_times_of_a_job_are_refused(prompt, said):
    with pytest.raises(InputError, match=said):
        TalkRequest.from_job({**JOB, "prompt": prompt})


@pytest.mark.parametrize("seconds", [0.00001, 7.5, 3725.25, 12345.67, 10**6])
def test_times_are_written_as_they_are_read(seconds):
    prompts = PromptList(("a", "b"), (0.0, seconds))
    assert PromptList.parse(str(prompts)) == prompts and prompts.is_writable


@pytest.mark.parametrize("text", ["left | right", " [3] a", "[1:05] b"])
def test_texts_that_would_be_read_as_others_are_told(text):
    assert not PromptList((text,)).is_writable


def test_a_window_has_the_text_of_its_first_new_frame():
    plan = WindowPlan(41, 9, 5)
    timed = conditioning(prompts=3, text_starts=(0, 13, 20))
    found = [timed.text_index(span) for span in plan]
    assert [span.new_start for span in plan] == [0, 9, 13, 17, 21, 25, 29, 33, 37]
    assert found == [0, 0, 1, 1, 2, 2, 2, 2, 2]
    assert [conditioning(prompts=3).text_index(span) for span in plan][:4] == [0, 1, 2, 2]
    setup, parts = SamplingSetup.of(SETTINGS, False), (torch.zeros(1, 3, 32, 48), Prompts((), None, (0, 0.28, 0.3)))
    assert make_conditioning(setup, *parts, 40, fps=25).text_starts == (0, 7, 8)


def test_the_loop_samples_with_it(models):
    timed = conditioning(frames=17, prompts=2, text_starts=(0, 13))
    by_window = replace(timed, text_starts=(), text_embeds=[timed.text_embeds[i] for i in (0, 0, 1)])
    found = [window.latents for window in run_windows(*models, timed, SETTINGS, 1)]
    expected = [window.latents for window in run_windows(*models, by_window, SETTINGS, 1)]
    assert len(found) == 3 and all(map(torch.equal, found, expected))
    first = replace(timed, text_starts=(), text_embeds=timed.text_embeds[:1])
    *_, unlike = (window.latents for window in run_windows(*models, first, SETTINGS, 1))
    assert not torch.equal(found[2], unlike)


def test_a_run_with_other_times_is_another_run(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="wanvideo")
    pipeline = TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)
    request = jobs.request(tmp_path, prompts=("She talks.", "She laughs."), prompt_starts=(0, 0.6))
    windows = pipeline.run(request, folder=tmp_path / "a.run")
    next(windows)
    windows.close()
    next(pipeline.run(replace(request, prompt_starts=(0, 0.7)), folder=tmp_path / "a.run"))
    assert "prompt_starts was (0, 0.6), is (0, 0.7)" in caplog.text and (tmp_path / "a_2.run").is_dir()


def test_a_node_encodes_a_kept_prompt_anew_when_its_tokenizer_is_another(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["pack_under_test.nodes_text"], "cache_folder", lambda: tmp_path / "cache")
    (made,) = make_models(tmp_path / "models", "tiny", "comfy", parts=["text_encoder"])
    state = load_file(made.path)
    del state["spiece_model"]
    save_file(state, tmp_path / "t5.safetensors")
    write_tokenizer(tmp_path)
    tokenizer = tmp_path / "tokenizer.json"
    data = json.loads(tokenizer.read_text(encoding="utf-8"))

    def encoded(prompt="a woman"):
        text = node("WanVideoTextEncodeCached").process(str(tmp_path / "t5.safetensors"), "fp32", prompt, "")[0]
        return text.positive[0]

    first = encoded()
    assert torch.equal(encoded(), first) and len(list((tmp_path / "cache").iterdir())) == 2
    vocab = data["model"]["vocab"]
    vocab[3:] = [[piece, score] for (piece, _), (_, score) in zip(reversed(vocab[3:]), vocab[3:], strict=True)]
    tokenizer.write_text(json.dumps(data), encoding="utf-8")
    assert not torch.equal(encoded(), first)
