"""A request's pictures and sounds, opened and checked: sizes, lengths, who speaks when, and what is heard."""

from dataclasses import replace

import numpy as np
import pytest
from support import jobs, media_files

from wanvideo.engine.inputs import open_inputs
from wanvideo.errors import InputError
from wanvideo.request import LoopSettings, Speaker

WIDE = ((10, 5, 60, 60), (10, 70, 60, 123))


def people(folder, sounds, **changes):
    speakers = tuple(Speaker(sound, box) for sound, box in zip(sounds, WIDE, strict=True))
    picture = jobs.picture(folder, 128, 64, "two.png")
    return jobs.request(folder, [], speakers=speakers, reference=picture, size=(128, 64), **changes)


def loud(track, start_s, stop_s):
    return float(np.abs(track[round(start_s * 16000) : round(stop_s * 16000)]).max()) > 0.01


@pytest.mark.parametrize(
    ("picture", "size", "expected"),
    [((832, 480), "infinitetalk-480", (832, 480)), ((480, 832), "infinitetalk-480", (480, 832)),
     ((500, 500), "infinitetalk-480", (640, 640)), ((1920, 1080), "infinitetalk-720", (1280, 704)),
     ((500, 500), (96, 48), (96, 48))],
)  # fmt: skip
def test_the_size_follows_the_picture_s_shape(tmp_path, picture, size, expected):
    request = jobs.request(tmp_path, [], reference=jobs.picture(tmp_path, *picture), size=size)
    media = open_inputs(request)
    assert (media.geometry.width, media.geometry.height) == expected
    assert tuple(media.references[0].shape) == (3, expected[1], expected[0])
    assert media.references[0].min() >= -1 and media.references[0].max() <= 1


def test_the_picture_fills_the_frame_and_keeps_its_middle(tmp_path):
    """A picture of another shape is cropped, not squashed."""
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = 255
    jobs.Image.fromarray(pixels).save(tmp_path / "bar.png")
    (reference, *_) = open_inputs(
        jobs.request(tmp_path, [], reference=str(tmp_path / "bar.png"), size=(64, 64))
    ).references
    assert reference[:, :, 4:-4].min() > 0.95


def test_together_the_longest_sound_counts(tmp_path):
    sounds = [jobs.speech(tmp_path, 0.5, "a.wav"), jobs.speech(tmp_path, 1.0, "b.wav")]
    media = open_inputs(people(tmp_path, sounds, audio_type="para"))
    one, two = (track[:].numpy() for track in media.tracks)
    assert media.plan.total_frames == 25 and len(one) == len(two) == 16000
    assert loud(one, 0, 0.5) and not loud(one, 0.51, 1) and loud(two, 0.5, 1)
    assert [str(path) for path in media.soundtrack.sources] == sounds and media.soundtrack.placement == "para"


def test_in_turn_the_sounds_add_up(tmp_path):
    sounds = [jobs.speech(tmp_path, 0.5, "a.wav"), jobs.speech(tmp_path, 1.0, "b.wav")]
    media = open_inputs(people(tmp_path, sounds, audio_type="add"))
    one, two = (track[:].numpy() for track in media.tracks)
    assert media.plan.total_frames == round(1.5 * 25) and len(one) == len(two) == 24000
    assert loud(one, 0, 0.5) and not loud(one, 0.51, 1.5) and not loud(two, 0, 0.49) and loud(two, 0.5, 1.5)


def test_who_only_listens_is_in_no_soundtrack(tmp_path):
    sound = jobs.speech(tmp_path, 0.5)
    media = open_inputs(people(tmp_path, [None, sound]))
    assert not media.tracks[0][:].any() and media.tracks[1][:].any()
    assert [str(path) for path in media.soundtrack.sources] == [sound]
    assert media.speaker_masks.shape == (3, 64, 128)


def test_nobody_speaks(tmp_path):
    media = open_inputs(people(tmp_path, [None, None]))
    assert media.tracks is None and media.soundtrack is None and media.plan.total_frames == 13


def test_a_video_gives_its_sound(tmp_path):
    """A speaker's file may be a film: its sound track is what the speaker says."""
    film = media_files.coded(tmp_path / "film.m4a", "aac", media_files.tone(44100, 0.6, 2), 44100)
    media = open_inputs(jobs.request(tmp_path, [str(film)]))
    assert abs(len(media.tracks[0]) / 16000 - 0.6) < 0.06 and loud(media.tracks[0][:].numpy(), 0.1, 0.5)


@pytest.mark.parametrize("level", [0.02, 0.3, 0.9])
def test_speech_is_brought_to_one_loudness(tmp_path, level):
    sound = jobs.speech(tmp_path, 2.0, level=level)
    request = jobs.request(tmp_path, [sound])
    plain = open_inputs(replace(request, normalize_loudness=False)).tracks[0][:].numpy()
    even = open_inputs(request).tracks[0][:].numpy()
    assert np.abs(plain).max() == pytest.approx(level, rel=0.05)
    assert 0.05 < np.sqrt(np.mean(even**2)) < 0.12  # -23 LUFS of a tone


def test_stereo_is_the_mean_of_both_sides(tmp_path):
    samples = np.zeros((16000, 2), np.float32)
    samples[:, 1] = media_files.tone(16000, 1.0)[:, 0]
    path = media_files.wav(tmp_path / "right.wav", samples, 16000)
    track = open_inputs(replace(jobs.request(tmp_path, [str(path)]), normalize_loudness=False)).tracks[0][:].numpy()
    assert np.abs(track).max() == pytest.approx(0.15, rel=0.02)


@pytest.mark.parametrize(("limit", "expected"), [(0, 25), (20, 20), (1000, 25)])
def test_the_cap_never_makes_a_video_longer(tmp_path, limit, expected):
    assert open_inputs(jobs.request(tmp_path, max_frames=limit)).plan.total_frames == expected


def test_windows_are_those_of_the_reference_implementation(tmp_path):
    settings = LoopSettings()
    counts = {550: 8, 750: 11, 1000: 14, 1500: 21, 7500: 105, 45000: 625, 90000: 1250}
    for frames, windows in counts.items():
        request = jobs.request(tmp_path, [], max_frames=frames, settings=settings)
        assert len(open_inputs(request).plan) == windows


def test_a_mask_of_another_shape_is_refused(tmp_path):
    jobs.Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "square.png")
    request = people(tmp_path, [jobs.speech(tmp_path)] * 2)
    speakers = tuple(Speaker(speaker.audio, mask=str(tmp_path / "square.png")) for speaker in request.speakers)
    with pytest.raises(InputError, match="mask of speaker 1.*64x64.*128x64"):
        open_inputs(replace(request, speakers=speakers))
