"""Re-anchoring: which picture a window is conditioned on, that a run goes on with it, and what it is refused for."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load
from support import jobs, recipes
from support import media_files as media
from support.sampling import SETTINGS, conditioning

from wanvideo import TalkingVideoPipeline, run_windows
from wanvideo.engine.conditioning import workload_of_request
from wanvideo.errors import InputError
from wanvideo.keep import Camera, Keep
from wanvideo.request import LoopSettings, TalkRequest
from wanvideo.sampling.anchor import Anchor
from wanvideo.sampling.codec import VideoCodec
from wanvideo.sampling.state import WindowState

GIVEN = conditioning(frames=21)  # four windows
EVERY = replace(SETTINGS, reanchor=1)
QUICK = replace(jobs.SETTINGS, steps=1)


def frames(shift=0.0, noise=0.1):
    """A finished window [9, 32, 48, 3], brighter by `shift`, the sharper the more noise is on it."""
    ramp = torch.linspace(-0.5, 0.5, 48).expand(9, 32, 48)
    pixels = torch.stack([ramp, -ramp, ramp / 2], -1) + shift
    return pixels + noise * recipes.tensor("in.noise", tuple(pixels.shape), 5)


@pytest.fixture
def known_pictures(monkeypatch):
    """The pictures that windows are conditioned on, each where it is encoded."""
    seen, encode = [], VideoCodec.encode_start

    def spy(self, given, num_frames):
        seen.append(given[:, 0].clone())
        return encode(self, given, num_frames)

    monkeypatch.setattr(VideoCodec, "encode_start", spy)
    return seen


@pytest.fixture
def steady(monkeypatch):
    """No window drifts, whatever tiny models make on this machine."""
    monkeypatch.setattr("wanvideo.sampling.anchor.has_moved", lambda now, since: False)


def same(windows, expected):
    return all(
        torch.equal(window.pixels, other.pixels) and torch.equal(window.latents, other.latents)
        for window, other in zip(windows, expected, strict=True)
    )  # fmt: skip


@pytest.mark.usefixtures("steady")
def test_a_window_is_conditioned_on_the_end_of_the_one_before(models, known_pictures):
    windows = list(run_windows(*models, GIVEN, EVERY, 7))
    ends = [window.pixels[-1].permute(2, 0, 1).clamp(-1, 1) for window in windows[:-1]]
    assert len(windows) == 4 and len(known_pictures) == 4
    assert all(torch.equal(a, b) for a, b in zip(known_pictures, [GIVEN.references[0], *ends], strict=True))
    assert torch.equal(windows[0].state.anchor.picture, ends[0]) and windows[0].state.anchor.window == 0


@pytest.mark.usefixtures("steady")
def test_only_the_windows_behind_an_anchor_change(models, known_pictures):
    off = list(run_windows(*models, GIVEN, SETTINGS, 7))
    assert len(known_pictures) == 1 and all(window.state.anchor is None for window in off)
    assert set(load(off[0].state.to_bytes())) == {"frames", "position"}
    assert same(run_windows(*models, GIVEN, replace(SETTINGS, reanchor=4), 7), off)
    on = list(run_windows(*models, GIVEN, replace(SETTINGS, reanchor=2), 7))
    assert same(on[:2], off[:2]) and not torch.equal(on[2].latents, off[2].latents)
    assert [window.state.anchor.window for window in on] == [-1, 1, 1, 3]


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_run_goes_on_to_the_bit(models, every):
    settings = replace(SETTINGS, reanchor=every, color_match="lab")
    whole = list(run_windows(*models, GIVEN, settings, 7))
    for window in whole[:-1]:
        state = WindowState.from_bytes(window.state.to_bytes())
        assert state.anchor.first == window.state.anchor.first
        assert same(run_windows(*models, GIVEN, settings, 7, state=state), whole[window.index + 1 :])


def test_a_window_that_drifted_gives_no_anchor():
    first = Anchor.after(0, frames(), None, 2)
    assert first.picture is None and first.window == -1
    for drifted in (frames(shift=0.15), frames(shift=-0.15), frames(noise=0.2), frames(noise=0.05)):
        assert Anchor.after(1, drifted, first, 2) is first
    taken = Anchor.after(1, frames(shift=0.01), first, 2)
    assert taken.window == 1 and torch.equal(taken.picture, frames(shift=0.01)[-1].permute(2, 0, 1))
    assert Anchor.after(2, frames(), taken, 2) is taken, "not yet"
    assert Anchor.after(3, frames(shift=0.15), taken, 2) is taken
    assert Anchor.after(3, frames(shift=0.02), taken, 2).window == 3, "compared with the first window, not the last"


def test_where_every_window_drifted_the_reference_stays(models, known_pictures, monkeypatch):
    monkeypatch.setattr("wanvideo.sampling.anchor.has_moved", lambda now, since: True)
    windows = list(run_windows(*models, GIVEN, EVERY, 7))
    assert len(known_pictures) == 1 and all(window.state.anchor.picture is None for window in windows)
    assert same(windows, run_windows(*models, GIVEN, SETTINGS, 7))


def test_a_picture_is_a_copy_in_range():
    pixels = frames(shift=1.0)
    anchor = Anchor.after(0, pixels, None, 1)
    pixels.zero_()
    assert anchor.picture.max() == 1 and anchor.picture.is_contiguous() and anchor.picture.min() > 0


def test_a_state_of_other_anchors_is_refused(models):
    off, on = (next(run_windows(*models, GIVEN, settings, 7)).state for settings in (SETTINGS, EVERY))
    for state, settings in ((off, EVERY), (on, SETTINGS)):
        with pytest.raises(InputError, match="another reanchor"):
            next(run_windows(*models, GIVEN, settings, 7, state=state))
    small = replace(on, anchor=replace(on.anchor, picture=on.anchor.picture[:, 1:]))
    with pytest.raises(InputError, match="an anchor of another size"):
        next(run_windows(*models, GIVEN, EVERY, 7, state=small))
    data = replace(on, anchor=None).to_bytes()
    assert WindowState.from_bytes(data).anchor is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(keep=Keep(box=(0, 0, 8, 8))), "keep"),
        (dict(scene_seg=True), "scene_seg"),
        (dict(camera=Camera()), "camera"),
    ],
)
def test_what_changes_the_reference_is_refused(tmp_path, change, words):
    with pytest.raises(InputError, match=f"reanchor 1 does not go with {words}"):
        jobs.request(tmp_path, settings=replace(QUICK, reanchor=1), **change)


def test_modes_videos_and_many_pictures_are_refused(models, tmp_path):
    with pytest.raises(InputError, match="does not go with multitalk mode"):
        LoopSettings(mode="multitalk", reanchor=2)
    with pytest.raises(InputError, match="reanchor -1 is not usable"):
        LoopSettings(reanchor=-1)
    with pytest.raises(InputError, match="several reference pictures"):
        next(run_windows(*models, conditioning(pictures=2), EVERY, 7))
    video = media.video(tmp_path / "source.mp4", np.zeros((5, 48, 48, 3), np.uint8))
    talk = jobs.request(tmp_path, reference=str(video), settings=replace(QUICK, reanchor=1))
    with pytest.raises(InputError, match="a source video"):
        TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS).check(talk)


@pytest.mark.usefixtures("steady")
def test_a_run_folder_goes_on_with_its_anchor(tmp_path):
    pipeline = TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)
    talk = jobs.request(tmp_path, settings=replace(QUICK, reanchor=1))
    assert TalkRequest.from_json(talk.to_json()) == talk
    assert workload_of_request(talk, pipeline.check(talk)).num_references == 3, "the picture and two anchors"
    whole = [window.frames for window in pipeline.run(talk)]
    windows = pipeline.run(talk, folder=tmp_path / "run")
    first = [next(windows).frames for _ in range(2)]
    windows.close()
    rest = [window.frames for window in pipeline.run(talk, folder=tmp_path / "run")]
    assert len(rest) == 1 and torch.equal(torch.cat(first + rest), torch.cat(whole))
    assert identity_in(tmp_path / "run")["settings.reanchor"] == "1"
    off = pipeline.run(replace(talk, settings=QUICK), folder=tmp_path / "off")
    assert torch.equal(next(off).frames, whole[0]) and not torch.equal(next(off).frames, whole[1])
    off.close()
    assert identity_in(tmp_path / "off")["settings.reanchor"] == "0", "the two never go on with each other"


def identity_in(folder):
    return json.loads((folder / "manifest.json").read_text())["identity"]
