"""Guidance against reference vectors, and the algebra that lets passes be left out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support import recipes

from wanvideo.request import Apg, LoopSettings
from wanvideo.sampling.guidance import Guidance, Pass
from wanvideo.sampling.setup import SamplingSetup

DATA = Path(__file__).parent / "data"
SPEC = json.loads((DATA / "guidance.json").read_text())
SHAPE = (4, 3, 5, 5)


def outputs_of(step, gain=1.0, passes=tuple(Pass)):
    return {which: recipes.tensor(f"{which.value}.{step}", SPEC["shape"], SPEC["seed"], gain) for which in passes}


def expected_of(key):
    with safe_open(DATA / "guidance.safetensors", "pt") as file:
        return file.get_tensor(key)


def assert_close(result, expected, tolerance=1e-4):
    assert result.dtype == torch.float32 and result.shape == expected.shape
    assert (result - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("case", SPEC["cfg"], ids=lambda case: case["key"])
def test_cfg_vectors(case):
    guidance = Guidance(case["text_scale"], case["audio_scale"])
    assert len(guidance.passes) == case["passes_needed"]
    outputs = outputs_of(0, case["gain"], guidance.passes)
    assert_close(guidance.combine(outputs), expected_of(case["key"]))


@pytest.mark.parametrize("scales", [(1.0, 4.0), (5.0, 4.0)])
def test_apg_vectors(scales):
    """The steps of a window share momentum: the same object sees them in order, and a new object starts anew."""
    cases = [case for case in SPEC["apg"] if (case["text_scale"], case["audio_scale"]) == scales]
    assert len(cases) == 3
    apg = Apg(cases[0]["momentum"], cases[0]["norm_threshold"])
    for _ in range(2):
        guidance = Guidance(*scales, apg)
        for case in cases:
            outputs = outputs_of(case["step"], case["gain"], guidance.passes)
            assert_close(guidance.combine(outputs), expected_of(case["key"]))


@pytest.mark.parametrize(
    ("text", "audio", "has_audio", "passes"),
    [
        (1, 1, True, ["cond"]),
        (1.0 + 1e-12, 1.0 - 1e-12, True, ["cond"]),
        (1, 4, True, ["cond", "drop_audio"]),
        (5, 1, True, ["cond", "drop_text"]),
        (5, 4, True, ["cond", "drop_text", "uncond"]),
        (0, 0, True, ["cond", "drop_text", "uncond"]),
        (1, 4, False, ["cond"]),
        (5, 4, False, ["cond", "drop_text"]),
    ],
)
@pytest.mark.parametrize("apg", [None, Apg()])
def test_only_the_passes_that_matter_run(text, audio, has_audio, passes, apg):
    guidance = Guidance(text, audio, apg, has_audio=has_audio)
    assert [which.value for which in guidance.passes] == passes
    settings = LoopSettings(guidance_scale=text, audio_guidance_scale=audio, apg=apg)
    setup = SamplingSetup.of(settings, has_audio)
    assert setup.passes == guidance.passes
    assert setup.needs_negative == any(name in passes for name in ("drop_text", "uncond"))
    assert setup.needs_null_audio == any(name in passes for name in ("drop_audio", "uncond"))
    assert guidance.combine(outputs_of(0, passes=guidance.passes)).isfinite().all()


def guidance_is(guidance, outputs, expected):
    return torch.allclose(guidance.combine(outputs), expected, rtol=1e-5, atol=1e-5)


def test_no_guidance_is_the_output_itself():
    outputs = outputs_of(0)
    assert guidance_is(Guidance(1, 1), outputs, outputs[Pass.COND])


def test_three_passes_are_the_published_formula():
    outputs = outputs_of(0)
    cond, drop_text, uncond = (outputs[which] for which in (Pass.COND, Pass.DROP_TEXT, Pass.UNCOND))
    for text, audio in ((5, 4), (0, 0), (0.5, 2), (7.5, 1.001)):
        expected = uncond + text * (cond - drop_text) + audio * (drop_text - uncond)
        assert guidance_is(Guidance(text, audio), outputs, expected)


def test_an_audio_scale_of_one_does_not_need_the_unconditional_pass():
    outputs = outputs_of(0)
    cond, drop_text, uncond = (outputs[which] for which in (Pass.COND, Pass.DROP_TEXT, Pass.UNCOND))
    three_passes = uncond + 5 * (cond - drop_text) + (drop_text - uncond)
    assert guidance_is(Guidance(5, 1), outputs, three_passes)
    assert guidance_is(Guidance(5, 4, has_audio=False), outputs, three_passes)
    assert guidance_is(Guidance(1, 4), outputs, outputs[Pass.DROP_AUDIO] + 4 * (cond - outputs[Pass.DROP_AUDIO]))


def test_passes_that_agree_leave_nothing_to_guide():
    same = {which: recipes.tensor("cond.0", SHAPE, 3) for which in Pass}
    for apg in (None, Apg(), Apg(0.0, 0.0)):
        assert guidance_is(Guidance(5, 4, apg), same, same[Pass.COND])


def test_projection_leaves_no_part_along_the_conditional_output():
    outputs, guidance = outputs_of(0), Guidance(5, 1, Apg(0.0, 0.0))
    change = (guidance.combine(outputs) - outputs[Pass.COND]).double()
    assert abs((change * outputs[Pass.COND].double()).sum()) < 1e-3
    assert change.norm() > 1


def test_threshold_bounds_the_change_and_can_be_switched_off():
    outputs = outputs_of(0, gain=100.0)
    bounded = Guidance(2, 1, Apg(0.0, 5.0)).combine(outputs) - outputs[Pass.COND]
    assert bounded.norm() <= 5.001
    free = [Guidance(2, 1, Apg(0.0, limit)).combine(outputs) for limit in (0.0, -1.0, 1e9)]
    assert torch.equal(free[0], free[1]) and torch.allclose(free[0], free[2])
    assert (free[0] - outputs[Pass.COND]).norm() > 100


def test_an_output_of_zeros_does_not_divide_by_zero():
    zeros = {which: torch.zeros(SHAPE) for which in Pass}
    guidance = Guidance(5, 4, Apg())
    assert all(torch.equal(guidance.combine(zeros), torch.zeros(SHAPE)) for _ in range(3))
