"""Scenes of one video: windows never reach over a cut, each scene has its own reference, and nothing is lost."""

import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import media_files as media
from support.sampling import SETTINGS, conditioning, track

from wanvideo import WindowPlan, run_windows
from wanvideo.errors import InputError, UnsupportedError
from wanvideo.sampling.loop import finished, seeded_noise
from wanvideo.sampling.state import WindowState
from wanvideo.video.scenes import find_cuts, joined
from wanvideo.video.source import SourceVideo

SHOTS = 40, 35, 50  # frames


def shot(num_frames, seed):
    """A pattern that moves by a pixel a frame; other seeds have other patterns."""
    blocks = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    return np.stack([np.roll(blocks.repeat(8, 0).repeat(8, 1), index, 1) for index in range(num_frames)])


def three_shots(folder, fps=25):
    frames = np.concatenate([shot(length, seed) for seed, length in enumerate(SHOTS)])
    return media.video(folder / "shots.mp4", frames, fps=fps)


# Where windows are


@pytest.mark.parametrize("cuts", [(), (1,), (10,), (40, 75), (9, 10, 11, 124)])
def test_windows_fill_every_scene_and_reach_over_no_cut(cuts):
    plan = WindowPlan(125, 13, 5, cuts)
    spans, bounds = list(plan), (0, *cuts, 125)
    shown = [frame for span in spans for frame in range(span.new_start, span.new_stop)]
    assert shown == list(range(125)) and [span.index for span in spans] == list(range(len(plan)))
    assert [span.start for span in spans if span.begins_scene] == list(bounds[:-1])
    for span in spans:
        start, stop = next(pair for pair in itertools.pairwise(bounds) if pair[0] <= span.new_start < pair[1])
        assert span.stop - span.start == 13 and start <= span.start and span.new_stop <= stop
        assert plan.start_of(span.index) == span.start
        assert plan[plan.scene_first(span.index)].start == start
    assert plan.start_of(len(plan)) == spans[-1].start + plan.stride


@pytest.mark.parametrize(("total", "cuts"), [(20, (0,)), (20, (20,)), (20, (7, 7)), (20, (9, 4)), (None, (4,))])
def test_cuts_have_to_rise_inside_of_the_video(total, cuts):
    with pytest.raises(InputError, match="do not rise"):
        WindowPlan(total, 13, 5, cuts)


# What the loop makes of them


@pytest.mark.parametrize("mode", ["infinitetalk", "multitalk"])
def test_a_scene_is_what_a_video_of_its_own_is(models, mode):
    """To the bit, with the noise of the same windows, and sound that does not change at the cut."""
    settings = replace(SETTINGS, mode=mode, color_match="mkl")
    whole = conditioning(pictures=5, audio=[track(0, 1).expand(27, -1, -1)], cuts=(14,))
    plan = WindowPlan(27, 9, 5, (14,))
    windows = list(run_windows(*models, whole, settings, 7))
    assert [window.start for window in windows] == [0, 4, 8, 14, 18]
    assert sum(len(finished(window, plan)) for window in windows) == 27
    alone = conditioning(
        audio=[track(0, 1).expand(13, -1, -1)], references=whole.references[3:], image_embeds=whole.image_embeds[3:]
    )  # fmt: skip
    scene = run_windows(*models, alone, settings, seeded_noise(7, 3))
    assert torch.equal(next(scene).pixels, windows[3].pixels)
    state = replace(windows[2].state, frames=torch.zeros_like(windows[2].state.frames))
    rest = run_windows(*models, whole, settings, 7, state=state)
    assert torch.equal(next(rest).pixels, windows[3].pixels), "frames from before the cut have no part in it"


def test_a_run_with_scenes_goes_on_to_the_bit(models):
    given = conditioning(frames=27, pictures=5, cuts=(14,))
    whole = list(run_windows(*models, given, SETTINGS, 7))
    for earlier in whole[:-1]:
        rest = run_windows(*models, given, SETTINGS, 7, state=WindowState.from_bytes(earlier.state.to_bytes()))
        for window, expected in zip(rest, whole[earlier.index + 1 :], strict=True):
            assert torch.equal(window.pixels, expected.pixels) and window.start == expected.start
    with pytest.raises(InputError, match="begins window 4 at frame 14, this run would at 12"):
        list(run_windows(*models, replace(given, cuts=()), SETTINGS, 7, state=whole[2].state))


# Where they are found


@pytest.mark.parametrize(
    ("cuts", "expected"),
    [
        ([], ()),
        ([40, 75], (40, 75)),
        ([5, 75], (75,)),
        ([40, 75, 80], (40, 80)),
        ([40, 75, 80, 85], (40, 85)),
        ([40, 120], (40,)),
        ([5], ()),
    ],
)
def test_short_scenes_are_joined_to_a_neighbor(cuts, expected):
    assert joined(cuts, 125, 10) == expected


@pytest.mark.parametrize("fps", [25, 30])
def test_cuts_are_found_at_their_exact_frames(tmp_path, fps):
    pytest.importorskip("scenedetect", reason="the optional package scenedetect finds scenes")
    video = SourceVideo(three_shots(tmp_path, fps), 64, 48, 25)
    expected = tuple(-(-frame * 25 // fps) for frame in itertools.accumulate(SHOTS[:2]))
    assert find_cuts(video, sum(SHOTS) * 25 // fps, 25) == expected


def test_without_the_package_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scenedetect.detectors", None)
    video = SourceVideo(three_shots(tmp_path), 64, 48, 25)
    with pytest.raises(UnsupportedError, match="scene_seg needs the package scenedetect.*pip install scenedetect"):
        find_cuts(video, 125, 25)
