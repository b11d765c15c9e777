"""`score` on drawn mouths: injected shifts are found within a frame, swapped sound and changed colors are told."""

import json
import math
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from support.mouths import FPS, OTHER, SECONDS, SIZE, SPEECH, dark_lips, talking

from wanvideo.audio.load import SAMPLE_RATE, from_array, load_audio
from wanvideo.cli import score as command
from wanvideo.errors import InputError, OutputError
from wanvideo.quality.score import save_score, score_video
from wanvideo.quality.sync import GRID, loudness, measure_sync


@pytest.mark.parametrize("shift", [0.0, 0.04, -0.04, 0.12, -0.2])
def test_a_shift_is_found_within_a_frame(tmp_path, shift):
    sync = score_video(talking(tmp_path / "a.mp4", shift), dark_lips, audios=[SPEECH]).syncs[0]
    assert abs(sync.lag_s - shift) <= 0.02 and abs(sync.lag_frames - shift * FPS) <= 0.5
    assert sync.correlation > 0.8 and sync.faces == 1
    assert sync.is_in_sync == (abs(shift) <= 0.08)


@pytest.mark.parametrize("late", [10, -10])
def test_a_sound_that_begins_with_another_frame_is_heard_when_it_is_played(tmp_path, late):
    """Its track begins so many frames after the first one with what is said then, or as long before it."""
    speech, path = load_audio(SPEECH), tmp_path / "both.mkv"
    cut, before = max(late, 0) * SAMPLE_RATE // FPS, max(-late, 0)
    with av.open(str(talking(tmp_path / "a.mp4"))) as given, av.open(str(path), "w") as made:
        video, audio = made.add_stream("ffv1", FPS), made.add_stream("flac", SAMPLE_RATE, layout="mono")
        video.width = video.height = SIZE
        samples = np.pad(speech.read(cut, speech.num_samples), (before * SAMPLE_RATE // FPS, 0)) * 32767
        frame = av.AudioFrame.from_ndarray(samples.astype(np.int16)[None], "s16", "mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, cut
        made.mux(audio.encode(frame) + audio.encode(None))
        for number, picture in enumerate(given.decode(video=0), before):
            picture.pts, picture.time_base = number, Fraction(1, FPS)
            made.mux(video.encode(picture))
    assert abs(score_video(path, dark_lips).syncs[0].lag_s) <= 0.02


def test_a_swapped_sound_is_told(tmp_path):
    video = talking(tmp_path / "a.mp4")
    right, swapped = (score_video(video, dark_lips, audios=[sound]).syncs[0] for sound in (SPEECH, OTHER))
    assert right.is_in_sync and not swapped.is_in_sync and swapped.correlation < right.correlation - 0.4


def test_a_mouth_that_does_not_rest_is_told():
    sound = load_audio(SPEECH)
    loud = loudness(sound, 20 * GRID)
    frames = 4 * FPS
    rate = np.arange(4 * SAMPLE_RATE)
    voice = from_array(np.where(rate < 2 * SAMPLE_RATE, np.sin(rate * 0.1) * 0.3, 0).astype(np.float32), SAMPLE_RATE)
    babble = np.interp(np.arange(frames) / FPS, np.arange(len(loud)) / GRID, loud)
    quiet = np.where(np.arange(frames) < 2 * FPS, babble, 0)
    resting, restless = measure_sync(quiet, voice, FPS), measure_sync(babble, voice, FPS)
    assert resting.is_shut_in_silence and resting.open_in_silence < 0.1 < resting.open_in_speech
    assert not restless.is_shut_in_silence and restless.silent_s == pytest.approx(2, abs=0.3)


def test_frames_without_a_face_are_left_out(tmp_path):
    sound = load_audio(SPEECH)
    loud = loudness(sound, SECONDS * GRID)
    opening = loud[(((np.arange(SECONDS * FPS) + 0.5) / FPS) * GRID).astype(int)]
    opening[40:50] = np.nan
    sync = measure_sync(opening, sound, FPS)
    assert (
        sync.faces == pytest.approx(1 - 10 / (SECONDS * FPS)) and abs(sync.lag_frames) <= 1 and sync.correlation > 0.8
    )
    none = score_video(talking(tmp_path / "a.mp4", faces=False), dark_lips, audios=[SPEECH])
    assert not none.syncs and none.sync_note == "no frame has a face for each sound"


def test_a_still_mouth_and_very_short_clips_have_no_correlation():
    sound = load_audio(SPEECH)
    assert measure_sync(np.full(50, 0.3), sound, FPS).correlation == 0
    for count in (0, 1, 2, 5):
        sync = measure_sync(np.linspace(0, 1, count), sound, FPS)
        assert math.isfinite(sync.lag_s + sync.correlation + sync.open_in_silence + sync.faces)


def test_a_video_may_be_minutes_longer_than_its_sound():
    sound = load_audio(SPEECH)
    whole = loudness(sound, 300 * GRID)
    assert len(whole) == 300 * GRID and not whole[(SECONDS + 10) * GRID :].any()
    assert np.array_equal(whole[: SECONDS * GRID], loudness(sound, (SECONDS + 9) * GRID)[: SECONDS * GRID])


def test_changed_colors_are_told(tmp_path):
    steady = score_video(talking(tmp_path / "a.mp4"), dark_lips, audios=[SPEECH]).colors
    tinted = score_video(talking(tmp_path / "b.mp4", tint=(1, 0.85, 0.7)), dark_lips, audios=[SPEECH]).colors
    assert steady.is_steady and len(steady.starts_s) == SECONDS
    assert not tinted.is_steady and tinted.delta_e[0] < 5 < min(tinted.delta_e[3:])
    Image.fromarray(np.full((40, 40, 3), (60, 160, 60), np.uint8)).save(tmp_path / "green.png")
    against = score_video(tmp_path / "a.mp4", dark_lips, tmp_path / "green.png", [SPEECH]).colors
    assert against.is_against_reference and not against.is_steady


def test_the_command_writes_json_and_a_plot_and_says_it(tmp_path, monkeypatch, capsys):
    video = talking(tmp_path / "a.mp4")
    monkeypatch.setattr("wanvideo.quality.lips.MeshLips", lambda: dark_lips)
    monkeypatch.setitem(sys.modules, "dlib", None)
    assert command.main([str(video), "--audio", str(SPEECH), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "in sync: yes" in printed and "colors steady: yes" in printed and "same person: not measured" in printed
    saved = json.loads((tmp_path / "out" / "a.score.json").read_text())
    assert saved["syncs"][0]["is_in_sync"] and saved["colors"]["is_steady"]
    assert len(saved["openings"][0]) == FPS * SECONDS
    assert (tmp_path / "out" / "a.score.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_mesh_or_without_sound_the_rest_is_measured(tmp_path, monkeypatch, capsys):
    video = talking(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "mediapipe.python.solutions.face_mesh", None)
    assert command.main([str(video), "--audio", str(SPEECH)]) == 0
    printed = capsys.readouterr().out
    assert "in sync: not measured: it needs a mediapipe" in printed and "colors steady: yes" in printed
    assert (tmp_path / "a.score.json").is_file() and (tmp_path / "a.score.png").is_file()
    assert score_video(video, dark_lips).sync_note == "the video has no sound"


def test_what_cannot_be_read_or_written_is_named(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        score_video(tmp_path / "none.mp4", dark_lips)
    score = score_video(talking(tmp_path / "a.mp4"), dark_lips)
    with pytest.raises(OutputError, match="cannot be written"):
        save_score(score, tmp_path / "a.mp4" / "a.score.json")
