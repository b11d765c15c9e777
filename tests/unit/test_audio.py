"""Sound files, speakers' tracks and feature windows."""

import tempfile

import numpy as np
import pytest
import soundfile
import torch
from support import host_memory, recipes
from support.encoders import tiny_audio_encoder

from wanvideo.audio import load
from wanvideo.audio.features import audio_window, count_frames, extract_features, silence_features
from wanvideo.audio.load import Sound, check_speech, from_array, load_audio
from wanvideo.audio.source import SpooledAudio, TensorAudio, padded
from wanvideo.audio.speech import Preparation, encode_tracks, prepare_tracks, speaker_tracks
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
    assert abs(sound.duration_s - 1) < 0.06
    assert abs(np.abs(sound.read(4000, 12000)).max() - 0.3 * 0.75) < 0.02


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
    for name, message in (("none.wav", "no file"), ("text.wav", "a text file"), ("empty.wav", "empty"),
                          ("nan.wav", "NaN"), ("noise.raw", "noise.raw")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            load_audio(tmp_path / name)


def test_silence_is_told_from_quiet_speech():
    check_speech(from_array(tone(0.1).T * 0.02, 16000), "speaker 1")
    for level, words in ((0.0, "digital silence"), (1e-4, "dBFS")):
        with pytest.raises(InputError, match=f"speaker 2.*{words}"):
            check_speech(from_array(tone(0.1).T * level, 16000), "speaker 2")


def test_tracks():
    one, two = (from_array(np.array(samples, np.float32), 16000) for samples in ([1, 1, 1], [2, 2]))

    def samples(*arguments):
        return [track[:].tolist() for track in speaker_tracks(*arguments)]

    assert samples([one, two], "para") == [[1, 1, 1], [2, 2, 0]]
    assert samples([one, two], "add") == [[1, 1, 1, 0, 0], [0, 0, 0, 2, 2]]
    assert samples([None, two], "para") == [[0, 0], [2, 2]]
    assert samples([one, None], "add") == [[1, 1, 1], [0, 0, 0]]
    with pytest.raises(InputError, match="No speaker"):
        speaker_tracks([None], "para")
    with pytest.raises(InputError, match="'parallel'.*para, add"):
        speaker_tracks([one], "parallel")


def test_more_voices_than_the_adapters_were_trained_with_are_said(caplog):
    voice = from_array(np.full((1, 16000), 0.1, np.float32), 16000, "voice")
    prepare_tracks([voice, voice, None], "para", Preparation(normalize_loudness=False))
    assert not caplog.records
    prepare_tracks([voice] * 3, "para", Preparation(normalize_loudness=False))
    assert "3 people speak: the audio adapters were trained with one and with two" in caplog.text


def test_parts_of_a_track_are_those_of_the_whole():
    sounds = [from_array(tone(0.5)[:, 0] + 0.1, 16000), None, from_array(tone(0.3)[:, 0] - 0.1, 16000)]
    for track in prepare_tracks(sounds, "add", Preparation(noise_floor=True, smooth=True, max_s=0.7)):
        whole = track[:]
        assert len(track) == len(whole) == 11200 and whole.dtype == torch.float32
        for start, stop in ((0, 10), (7990, 8010), (8000, 11200), (11000, 20000), (500, 500), (0, 11200)):
            assert torch.equal(track[start:stop], whole[start:stop])


def test_long_sound_is_read_from_a_file_that_goes_away(monkeypatch, tmp_path):
    def prepared():
        sound = load_audio(path)
        return prepare_tracks([sound, sound], "add", Preparation(True, True, True, 3.0))

    path = tmp_path / "speech.flac"
    soundfile.write(path, tone(4.0, 44100, 2), 44100)
    (folder := tmp_path / "spool").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    in_memory = [track[:] for track in prepared()]
    monkeypatch.setattr("wanvideo.audio.load.IN_MEMORY", 1000)
    monkeypatch.setattr("wanvideo.audio.treatment.IN_MEMORY", 1000)
    assert all(torch.equal(track[:], whole) for track, whole in zip(prepared(), in_memory, strict=True))
    assert not list(folder.iterdir())


def test_windows_are_clamped_to_the_track():
    features = torch.arange(6.0).view(6, 1, 1)
    window = audio_window(features, 3, 4)[..., 0, 0]
    assert window.tolist() == [[1, 2, 3, 4, 5], [2, 3, 4, 5, 5], [3, 4, 5, 5, 5], [4, 5, 5, 5, 5]]
    assert audio_window(features, 0, 1)[..., 0, 0].tolist() == [[0, 0, 0, 1, 2]]


def test_sources_give_the_same_entries_from_memory_and_from_a_file():
    tracks, silence = torch.randn(2, 9, 3, 4), torch.randn(2, 3, 4)
    kept, spooled = TensorAudio(list(tracks), silence), SpooledAudio(2, 9, silence)
    for speaker in range(2):
        for layer in range(3):
            for start, stop in ((5, 9), (0, 5)):
                spooled.write(speaker, layer, start, tracks[speaker, start:stop, layer])
    for source in (kept, spooled):
        assert (source.num_speakers, source.num_frames) == (2, 9) and torch.equal(source.silence, silence)
        assert torch.equal(source.features(0, 9), tracks) and torch.equal(source.features(4, 6), tracks[:, 4:6])
        longer = padded(source, 14)
        expected = torch.cat((tracks, silence.repeat(3, 1, 1)[:5].expand(2, -1, -1, -1)), 1)
        assert (longer.num_speakers, longer.num_frames) == (2, 14) and torch.equal(longer.silence, silence)
        for start, stop in ((0, 14), (2, 5), (8, 10), (10, 14)):
            assert torch.equal(longer.features(start, stop), expected[:, start:stop])
        assert padded(source, 9) is source
    with pytest.raises(InputError, match="differ in shape"):
        TensorAudio([tracks[0], tracks[1, :4]], silence)


def test_frames_are_counted_exactly():
    assert [count_frames(n, 25) for n in (0, 100, 640, 1279, 1280, 16000)] == [1, 1, 1, 1, 2, 25]
    assert count_frames(18560, 25) == 29 and count_frames(16000 * 3600, 30) == 108000


def test_long_sound_is_encoded_in_pieces_close_to_the_whole():
    encoder, samples = tiny_audio_encoder(), torch.tile(recipes.waveform(3.7, 3), (80,))
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


def test_many_features_are_in_a_file_that_goes_away(monkeypatch, tmp_path):
    encoder, wave = tiny_audio_encoder(), recipes.waveform(8.0, 3)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = encode_tracks(encoder, [wave, wave.flip(0)], 25)
    monkeypatch.setattr("wanvideo.audio.speech.IN_MEMORY", 100)
    spooled = encode_tracks(encoder, [wave, wave.flip(0)], 25)
    assert isinstance(kept, TensorAudio) and isinstance(spooled, SpooledAudio)
    assert kept.features(0, 200).shape == (2, 200, 4, 32)
    assert torch.equal(kept.features(0, 200), spooled.features(0, 200))
    assert torch.equal(kept.features(30, 111), spooled.features(30, 111))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_before_and_while_it_is_written(monkeypatch, tmp_path):
    with pytest.raises(OutputError, match="audio features need .* GB free.*TMPDIR"):
        SpooledAudio(1, 10**9, torch.zeros(1, 12, 768))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(OutputError, match="x.wav cannot be put into .*missing.*TMPDIR"):
        Sound.of([np.zeros(load.IN_MEMORY + 1, np.float32)], "x.wav")


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.5])
def test_very_short_sound(seconds):
    features = extract_features(tiny_audio_encoder(), torch.from_numpy(tone(seconds)[:, 0].copy()), 25)
    assert features.shape == (max(1, int(seconds * 25)), 4, 32) and features.isfinite().all()


def test_silence_features():
    assert silence_features(tiny_audio_encoder(), 25).shape == (100, 4, 32)


MEMORY = """
import sys
import torch
from support.encoders import tiny_audio_encoder
from support.host_memory import high_water
from wanvideo.audio.load import load_audio
from wanvideo.audio.speech import Preparation, encode_tracks, prepare_tracks

torch.set_num_threads(1)
with torch.inference_mode():
    tracks = prepare_tracks([load_audio(sys.argv[1]), None], "para", Preparation(True, True, True))
    source = encode_tracks(tiny_audio_encoder(), tracks, 25)
    for start in range(0, source.num_frames - 85, 72):
        assert source.features(start, start + 85).isfinite().all()
print(high_water(), source.num_frames)
"""


@host_memory.NEEDS_PROC
def test_an_hour_of_speech_takes_hardly_more_memory_than_a_minute(tmp_path):
    minute, peaks = tone(60.0, 8000), {}
    for minutes in (1, 60):
        path = tmp_path / f"{minutes}.flac"
        with soundfile.SoundFile(path, "w", 8000, 1) as file:
            for _ in range(minutes):
                file.write(minute)
        peaks[minutes], frames = host_memory.run(MEMORY, path)
        assert frames == minutes * 1500
    assert peaks[60] - peaks[1] < 50e6, peaks
