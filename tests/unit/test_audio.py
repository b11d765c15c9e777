"""Sound files, speakers' tracks and feature windows."""

import tempfile

import numpy as np
import pytest
import soundfile
import torch
from support import recipes
from support.encoders import tiny_audio_encoder

from wanvideo.audio.features import (
    audio_window,
    count_frames,
    extract_features,
    mapped_tensor,
    pad_features,
    silence_features,
    speaker_tracks,
)
from wanvideo.audio.load import Sound, check_speech, from_array, load_audio
from wanvideo.errors import InputError, OutputError


def tone(seconds, rate=16000, channels=1):
    wave = 0.3 * np.sin(2 * np.pi * 330 * np.arange(int(seconds * rate)) / rate)
    return np.stack([wave * (1 - 0.5 * c) for c in range(channels)], 1).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.wav", {"subtype": "PCM_16"}), ("a.wav", {"subtype": "PCM_24"}), ("a.wav", {"subtype": "PCM_U8"}),
     ("a.wav", {"subtype": "FLOAT"}), ("a.flac", {}), ("a.ogg", {}), ("a.mp3", {})],
)  # fmt: skip
def test_formats(tmp_path, name, options):
    path = tmp_path / name
    soundfile.write(path, tone(1.0, 44100, 2), 44100, **options)
    sound = load_audio(path)
    assert sound.sample_rate == 16000 and abs(sound.duration_s - 1) < 0.06
    assert abs(np.abs(sound.samples[4000:12000]).max() - 0.3 * 0.75) < 0.02


def test_video_with_and_without_sound(tmp_path):
    import av

    for name, has_sound in (("with.mp4", True), ("without.mp4", False)):
        with av.open(str(tmp_path / name), "w") as container:
            picture = container.add_stream("mpeg4", rate=25)
            picture.width = picture.height = 32
            picture.pix_fmt = "yuv420p"
            sound = container.add_stream("aac", rate=48000) if has_sound else None
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
            container.mux(picture.encode(frame))
            container.mux(picture.encode(None))
            if has_sound:
                samples = av.AudioFrame.from_ndarray(tone(0.5, 48000).T.copy(), "fltp", "mono")
                samples.rate = 48000
                container.mux(sound.encode(samples))
                container.mux(sound.encode(None))
    assert abs(load_audio(tmp_path / "with.mp4").duration_s - 0.5) < 0.1
    with pytest.raises(InputError, match="holds no sound"):
        load_audio(tmp_path / "without.mp4")


def test_unusable_files(tmp_path):
    (tmp_path / "text.wav").write_text("this is no sound")
    (tmp_path / "noise.raw").write_bytes(bytes(1000))
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 1), np.float32), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full((100, 1), np.nan, np.float32), 16000, subtype="FLOAT")
    for name, message in (("none.wav", "no sound file"), ("text.wav", "cannot be read"), ("empty.wav", "empty"),
                          ("nan.wav", "NaN"), ("noise.raw", "noise.raw")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            load_audio(tmp_path / name)


def test_silence_is_told_from_quiet_speech():
    check_speech(from_array(tone(0.1).T * 0.02, 16000), "speaker 1")
    for level, words in ((0.0, "digital silence"), (1e-4, "dBFS")):
        with pytest.raises(InputError, match=f"speaker 2.*{words}"):
            check_speech(from_array(tone(0.1).T * level, 16000), "speaker 2")


def test_tracks():
    one, two = Sound(np.ones(3, np.float32), 16000), Sound(np.full(2, 2, np.float32), 16000)
    assert [list(t) for t in speaker_tracks([one, two], "para")] == [[1, 1, 1], [2, 2, 0]]
    assert [list(t) for t in speaker_tracks([one, two], "add")] == [[1, 1, 1, 0, 0], [0, 0, 0, 2, 2]]
    assert [list(t) for t in speaker_tracks([None, two], "para")] == [[0, 0], [2, 2]]
    assert [list(t) for t in speaker_tracks([one, None], "add")] == [[1, 1, 1], [0, 0, 0]]
    with pytest.raises(InputError, match="No speaker"):
        speaker_tracks([None], "para")
    with pytest.raises(InputError, match="'parallel'.*para, add"):
        speaker_tracks([one], "parallel")


def test_windows_are_clamped_to_the_track():
    features = torch.arange(6.0).view(6, 1, 1)
    window = audio_window(features, 3, 4)[..., 0, 0]
    assert window.tolist() == [[1, 2, 3, 4, 5], [2, 3, 4, 5, 5], [3, 4, 5, 5, 5], [4, 5, 5, 5, 5]]
    assert audio_window(features, 0, 1)[..., 0, 0].tolist() == [[0, 0, 0, 1, 2]]
    assert pad_features(features, 9, torch.tensor([[[7.0]], [[8.0]]])).flatten().tolist()[6:] == [7, 8, 7]
    assert pad_features(features, 4, features) is features


def test_frames_are_counted_exactly():
    assert [count_frames(n, 25) for n in (0, 100, 640, 1279, 1280, 16000)] == [1, 1, 1, 1, 2, 25]
    assert count_frames(18560, 25) == 29 and count_frames(16000 * 3600, 30) == 108000


def test_long_sound_is_encoded_in_pieces_close_to_the_whole():
    encoder, samples = tiny_audio_encoder(), np.tile(recipes.waveform(3.7, 3).numpy(), 80)
    whole = extract_features(encoder, samples, 25, whole_s=1000)
    pieces = extract_features(encoder, samples, 25, whole_s=100)
    assert pieces.shape == whole.shape == (7400, 4, 32)
    assert (pieces - whole).norm() / whole.norm() < 0.01
    closeness = torch.nn.functional.cosine_similarity(pieces.flatten(1), whole.flatten(1))
    assert closeness.min() > 0.995
    movement = whole.diff(dim=0).flatten(1).norm(dim=1)
    for seam in (3000, 6000):
        jump = (pieces - whole)[seam - 1 : seam + 1].diff(dim=0).norm()
        assert jump < 0.05 * movement.median()


def test_many_features_live_in_a_file(monkeypatch, tmp_path):
    tensor = mapped_tensor((10, 2, 3))
    tensor[3] = 1
    assert tensor.sum() == 6
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    features = extract_features(tiny_audio_encoder(), np.zeros(16000 * 4, np.float32), 25)
    monkeypatch.setattr("wanvideo.audio.features.IN_MEMORY", 100)
    mapped = extract_features(tiny_audio_encoder(), np.zeros(16000 * 4, np.float32), 25)
    assert torch.equal(features, mapped) and not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match="TMPDIR"):
        mapped_tensor((10**9, 12, 768))


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.5])
def test_very_short_sound(seconds):
    features = extract_features(tiny_audio_encoder(), tone(seconds)[:, 0], 25)
    assert features.shape == (max(1, int(seconds * 25)), 4, 32) and features.isfinite().all()


def test_silence_features():
    assert silence_features(tiny_audio_encoder(), 25).shape == (100, 4, 32)
