"""A run that goes on from a window's state gives the same frames to the bit, and refuses a state that does not fit."""

from dataclasses import replace

import pytest
import torch
from support import recipes
from support.sampling import SETTINGS, conditioning
from support.tiny import tiny_transformer, tiny_vae

from wanvideo import run_windows
from wanvideo.errors import InputError
from wanvideo.geometry import VideoGeometry, WindowPlan
from wanvideo.request import Apg, StepCache
from wanvideo.sampling.state import WindowState

SAMPLES = recipes.tensor("in.samples", (16, 4, 4, 6), 5)
CASES = {
    "infinitetalk": (SETTINGS, conditioning(pictures=2, prompts=2)),
    "multitalk": (replace(SETTINGS, mode="multitalk", color_match="mkl"), conditioning(prompts=2)),
    "two speakers": (replace(SETTINGS, scheduler="lcm"), conditioning(speakers=2)),
    "two speakers, multitalk": (
        replace(SETTINGS, mode="multitalk", scheduler="lcm", audio_guidance_scale=3.0), conditioning(speakers=2),
    ),
    "step cache": (replace(SETTINGS, steps=8, step_cache=StepCache("easycache", 0.5)), conditioning()),
    "momentum": (replace(SETTINGS, scheduler="unipc", steps=4, guidance_scale=4.0, apg=Apg()), conditioning()),
    "samples": (replace(SETTINGS, steps=4, denoise_strength=0.6), conditioning(samples=SAMPLES)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_on_to_the_bit(models, name):
    settings, given = CASES[name]
    whole = list(run_windows(*models, given, settings, 7))
    assert len(whole) == 3
    for earlier in whole[:2]:
        for state in (earlier.state, WindowState.from_bytes(earlier.state.to_bytes())):
            rest = list(run_windows(*models, given, settings, 7, state=state))
            assert [window.index for window in rest] == [window.index for window in whole[earlier.index + 1 :]]
            for window, expected in zip(rest, whole[earlier.index + 1 :], strict=True):
                assert torch.equal(window.latents, expected.latents)
                assert torch.equal(window.pixels, expected.pixels)
                assert (window.start, window.num_new) == (expected.start, expected.num_new)


def test_it_goes_on_with_other_models_of_the_same_weights(models):
    settings, given = CASES["multitalk"]
    first, *expected = run_windows(*models, given, settings, 7)
    data = first.state.to_bytes()
    again = run_windows(tiny_transformer(), tiny_vae(), given, settings, 7, state=WindowState.from_bytes(data))
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(again, expected, strict=True))


def test_behind_the_last_window_nothing_is_left(models):
    settings, given = CASES["infinitetalk"]
    *_, last = run_windows(*models, given, settings, 7)
    assert list(run_windows(*models, given, settings, 7, state=last.state)) == []


def test_a_state_is_the_end_of_its_window(models):
    window = next(run_windows(*models, conditioning(), SETTINGS, 7))
    state = window.state
    assert (state.next_index, state.next_start) == (1, 4) and state.frames.is_contiguous()
    assert torch.equal(state.frames, window.pixels[-5:].permute(3, 0, 1, 2))
    window.pixels.zero_()
    assert state.frames.any(), "whoever uses a window's pixels up must not change the next window"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(motion_frames=1), r"\[3, 5, 32, 48\], this run needs \[3, 1, 32, 48\]"),
        (dict(window_frames=13), "begins window 2 at frame 4, this run would at 8"),
    ],
)
def test_a_state_of_other_windows_is_refused(models, change, words):
    state = next(run_windows(*models, conditioning(), SETTINGS, 7)).state
    with pytest.raises(InputError, match=words):
        next(run_windows(*models, conditioning(), replace(SETTINGS, **change), 7, state=state))


def test_a_state_of_another_size_is_refused():
    state = WindowState.after(0, WindowPlan(17, 9, 5), torch.zeros(9, 32, 48, 3))
    state.check_fits(WindowPlan(None, 9, 5), VideoGeometry(48, 32, 9))
    with pytest.raises(InputError, match="height, width"):
        state.check_fits(WindowPlan(17, 9, 5), VideoGeometry(32, 48, 9))


def test_damaged_bytes_are_refused():
    data = WindowState(1, 4, torch.zeros(3, 5, 32, 48)).to_bytes()
    for wrong in (data[:-1], data[:20], b"", data.replace(b"position", b"positron")):
        with pytest.raises(InputError, match="damaged"):
            WindowState.from_bytes(wrong)
