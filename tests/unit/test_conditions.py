"""Modes are classes behind one seam; what of the sound a window reads; a run of unknown length."""

from dataclasses import replace

import pytest
import torch
from support.sampling import FEATURE, SETTINGS, LiveAudio, conditioning, silence, track

from wanvideo import VideoGeometry, WindowPlan, run_windows
from wanvideo.audio.source import TensorAudio
from wanvideo.engine.conditioning import workload_of
from wanvideo.errors import InputError
from wanvideo.request import MODES
from wanvideo.sampling.codec import VideoCodec
from wanvideo.sampling.conditions import CONDITIONS, Motion, Plain
from wanvideo.sampling.contexts import read_audio_window
from wanvideo.sampling.loop import finished
from wanvideo.sampling.setup import SamplingSetup

GEOMETRY = VideoGeometry(48, 32, 9)
PICTURES = conditioning(pictures=2).references
LAST_FRAMES = torch.linspace(-1, 1, 3 * 5 * 32 * 48).view(3, 5, 32, 48)


class CountedVAE:
    """A VAE that notes what it encodes."""

    def __init__(self, vae):
        self.vae, self.device, self.encoded = vae, vae.device, []

    def encode(self, pixels, tiling=None):
        self.encoded.append(pixels)
        return self.vae.encode(pixels, tiling=tiling)


# Modes


def test_every_mode_has_its_class():
    assert tuple(CONDITIONS) == MODES


def test_infinitetalk_shows_the_picture_and_keeps_clean_motion_latents(models):
    vae = CountedVAE(models[1])
    condition = CONDITIONS["infinitetalk"](PICTURES, VideoCodec(vae), GEOMETRY, 5)
    channels, motion = condition.known(0, None)
    assert channels.shape == (20, 3, 4, 6) and channels[:4, :, 0, 0].T.tolist() == [[1] * 4, [0] * 4, [0] * 4]
    assert torch.equal(motion.latents, channels[4:, :1])
    later, motion = condition.known(1, LAST_FRAMES)
    assert motion.clean and torch.equal(motion.latents, models[1].encode(LAST_FRAMES))
    assert not torch.equal(later, channels), "the second picture serves the second window"
    assert torch.equal(condition.known(2, LAST_FRAMES)[0], later)
    assert [frames.shape[1] for frames in vae.encoded] == [9, 9, 5, 5], "a picture is encoded once"
    assert [condition.reference_index(index) for index in range(3)] == [0, 1, 1]
    assert torch.equal(condition.color_reference(2), PICTURES[1])


def test_multitalk_begins_with_the_last_frames_and_noises_motion_latents(models):
    condition = CONDITIONS["multitalk"](PICTURES, VideoCodec(models[1]), GEOMETRY, 5)
    channels, motion = condition.known(0, None)
    assert motion is None
    assert torch.equal(
        channels, CONDITIONS["infinitetalk"](PICTURES, VideoCodec(models[1]), GEOMETRY, 5).known(0, None)[0]
    )
    channels, motion = condition.known(1, LAST_FRAMES)
    padded = torch.cat((LAST_FRAMES, torch.zeros(3, 4, 32, 48)), 1)
    assert torch.equal(channels[4:], models[1].encode(padded))
    assert not motion.clean and torch.equal(motion.latents, channels[4:, :2])
    assert torch.equal(condition.color_reference(1), PICTURES[0])


def test_motion_latents_are_held_clean_or_at_the_level_of_the_step():
    known, latents = torch.ones(16, 2, 4, 6), torch.zeros(16, 3, 4, 6)
    clean = Motion(known, clean=True).hold(latents.clone(), 500.0, lambda shape: pytest.fail("no noise is needed"))
    assert clean[:, :2].eq(1).all() and not clean[:, 2:].any()
    noised = Motion(known, clean=False).hold(latents.clone(), 500.0, lambda shape: torch.full(shape, 3.0))
    assert noised[:, :2].eq(2).all() and not noised[:, 2:].any()


def test_a_plain_clip_knows_what_it_is_given():
    channels = torch.ones(20, 3, 4, 6)
    assert Plain(channels).known(0, None) == (channels, None) and Plain(None).color_reference(0) is None


# Setup


def test_a_setup_gives_what_its_settings_give(models):
    settings = replace(SETTINGS, scheduler="unipc", steps=4, guidance_scale=4.0, audio_guidance_scale=3.0)
    setup = SamplingSetup.of(settings, has_audio=True)
    assert setup.num_steps == len(setup.timesteps) == 4 and len(setup.sigmas) == 5
    assert [which.value for which in setup.passes] == ["cond", "drop_text", "uncond"]
    assert setup.needs_negative and setup.needs_null_audio and setup.scheduler() is not setup.scheduler()
    assert setup == SamplingSetup.of(settings, has_audio=True)
    for _ in range(2):  # a setup that was used remembers nothing
        pairs = [list(run_windows(*models, conditioning(), how, 7)) for how in (settings, setup)]
        assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(*pairs, strict=True))


def test_without_sound_no_pass_drops_it():
    setup = SamplingSetup.of(replace(SETTINGS, audio_guidance_scale=3.0), has_audio=False)
    assert [which.value for which in setup.passes] == ["cond"] and not setup.needs_null_audio
    tiled = setup.with_tiled_vae(True)
    assert tiled.settings.tiled_vae and tiled.passes == setup.passes and tiled != setup


def test_a_setup_for_another_video_is_refused(models):
    with pytest.raises(InputError, match="without sound, the conditioning has sound"):
        next(run_windows(*models, conditioning(), SamplingSetup.of(SETTINGS, has_audio=False), 7))
    with pytest.raises(InputError, match="scheduler|Scheduler"):
        SamplingSetup.of(replace(SETTINGS, scheduler="eulr"), has_audio=True)


# The sound of a window


def expected_entries(tracks, quiet, total, span, num_windows):
    """By the rule, entry by entry: clamped to the track, and silence behind it in the last of several windows."""
    frames, is_last = len(tracks[0]), 0 < span.index == num_windows - 1
    length = span.stop - frames + 3
    repeated = torch.cat([quiet] * (length // len(quiet) + 1))[-length:] if length >= 3 and is_last else quiet[:0]
    rows = []
    for speaker in tracks:
        continued = torch.cat((speaker, repeated))
        rows.append(
            torch.stack([
                torch.stack([continued[min(max(frame + reach, 0), len(continued) - 1)] for reach in range(-2, 3)])
                for frame in range(span.start, span.stop)
            ])
        )  # fmt: skip
    return torch.stack(rows)


@pytest.mark.parametrize("frames", [1, 4, 9, 10, 11, 12, 13, 14, 17, 18, 19, 40])
@pytest.mark.parametrize("total", [9, 13, 17, 18])
def test_a_window_reads_the_entries_around_its_frames(frames, total):
    tracks, quiet = [track(speaker, frames) for speaker in range(2)], silence()
    plan, asked = WindowPlan(total, 9, 5), []
    source = TensorAudio(tracks, quiet)
    read = source.features
    source.features = lambda start, stop: asked.append((start, stop)) or read(start, stop)
    for span in plan:
        entries = read_audio_window(source, span, lambda: plan.num_windows)
        assert torch.equal(entries, expected_entries(tracks, quiet, total, span, plan.num_windows))
        start, stop = asked.pop()
        assert not asked and 0 <= start < stop <= frames and stop - start <= 9 + 4


def test_without_silence_the_last_entry_goes_on():
    source, span = TensorAudio([track(0, 11)], track(0, 0)), WindowPlan(17, 9, 5)[2]
    assert torch.equal(read_audio_window(source, span, lambda: 3)[0, -1], track(0, 11)[[-1] * 5])


def test_tracks_of_different_lengths_are_refused(models):
    with pytest.raises(InputError, match="differ in shape"):
        next(run_windows(*models, conditioning(speakers=2, audio=[track(0, 9), track(1, 10)]), SETTINGS, 7))


# Unknown length


@pytest.mark.parametrize("frames", [5, 9, 10, 12, 13, 14, 16, 17, 18, 19])
def test_live_sound_gives_the_frames_of_the_same_sound_from_a_file(models, frames):
    """It is read ahead by two frames, whenever it ends; the plan of the last window knows where that was."""
    tracks = [track(speaker, frames) for speaker in range(2)]
    source = LiveAudio(tracks, silence())
    reports = []
    live = list(run_windows(*models, conditioning(speakers=2, audio=source), SETTINGS, 7, reports.append))
    known = list(run_windows(*models, conditioning(speakers=2, audio=tracks), SETTINGS, 7))
    assert len(live) == len(known)
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(live, known, strict=True))
    plan = WindowPlan(frames, 9, 5)
    made = torch.cat([finished(window, window.plan) for window in live])
    assert torch.equal(made, torch.cat([finished(window, plan) for window in known])) and len(made) == frames
    assert {report.num_windows for report in reports} <= {None, len(plan)}
    assert all(stop <= index * 4 + 9 + 2 for index, (_, stop) in enumerate(source.asked))


def test_a_run_of_unknown_length_ends_with_its_caller(models):
    endless = LiveAudio([track(0, 1000)], silence())
    reports = []
    run = run_windows(*models, conditioning(audio=endless), SETTINGS, 7, reports.append)
    windows = [next(run) for _ in range(3)]
    run.close()
    assert [window.plan.num_windows for window in windows] == [None] * 3
    assert {report.num_windows for report in reports} == {None}
    assert endless.asked[-1] == (6, 19)


def test_features_of_another_encoder_are_refused(models):
    layers, channels = FEATURE
    given = conditioning(audio=[torch.zeros(17, layers + 1, channels)], silence=None)
    with pytest.raises(InputError, match=f"{layers + 1} layers of {channels}, this model takes {layers * channels}"):
        next(run_windows(*models, given, SETTINGS, 7))


@pytest.mark.parametrize("reanchor", [0, 1])
def test_a_run_of_unknown_length_is_planned_by_its_first_window(reanchor):
    setup = SamplingSetup.of(replace(SETTINGS, reanchor=reanchor), has_audio=True)
    live = workload_of(conditioning(audio=LiveAudio([track(0, 1000)], silence())), setup)
    assert live.windows.num_windows is None and live.work == workload_of(conditioning(frames=9), setup).work


def test_live_sound_may_end_before_a_video_of_given_length(models):
    run = run_windows(*models, conditioning(audio=LiveAudio([track(0, 6)], silence()), num_frames=17), SETTINGS, 7)
    expected = run_windows(*models, conditioning(audio=[track(0, 6)], num_frames=17), SETTINGS, 7)
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(run, expected, strict=True))


def test_sound_that_never_came_is_said(models):
    nothing = LiveAudio([torch.zeros(0, *FEATURE)], silence())
    with pytest.raises(InputError, match="ended before its first"):
        list(run_windows(*models, conditioning(audio=nothing, num_frames=17), SETTINGS, 7))
    with pytest.raises(InputError, match="0 frames"):
        list(run_windows(*models, conditioning(audio=LiveAudio([torch.zeros(0, *FEATURE)], silence())), SETTINGS, 7))
