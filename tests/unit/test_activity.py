"""Where a speaker is quiet features fade into silence, each speaker's by themselves; off, nothing changes."""

import importlib.util

import numpy as np
import pytest
import torch
from support import jobs

from wanvideo import TalkingVideoPipeline
from wanvideo.audio import activity
from wanvideo.audio.activity import quieted, softened, speech_activity
from wanvideo.audio.source import TensorAudio
from wanvideo.errors import UnsupportedError

RATE = 16000
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480))
needs_silero = pytest.mark.skipif(
    importlib.util.find_spec("silero_vad") is None, reason="the optional package silero-vad finds speech"
)


def vowels(seconds):
    """[N] at 16 kHz that a detector takes for a voice: a melody of formants, four a second."""
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 120 + 15 * np.sin(2 * np.pi * 2.5 * time)
    phase, sound = 2 * np.pi * np.cumsum(pitch) / RATE, np.zeros_like(time)
    formants = np.array([VOWELS[int(t * 8) % 4] for t in time[::2000]]).repeat(2000, 0)[: len(time)]
    for harmonic in range(1, 30):
        distance = (harmonic * pitch[:, None] - formants) / 90
        sound += (1 / (1 + distance**2) / [1, 2, 3]).sum(1) * np.sin(harmonic * phase)
    sound *= 0.5 + 0.5 * np.sin(2 * np.pi * 4 * time)
    return torch.from_numpy((0.3 * sound / np.abs(sound).max()).astype(np.float32))


@pytest.fixture
def source():
    tracks = [torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    return TensorAudio(tracks, torch.arange(4.0)[:, None, None].expand(-1, 3, 8))


def test_features_fade_into_silence_where_a_speaker_is_quiet(source):
    weights = torch.zeros(2, 38)
    weights[0, :10], weights[0, 10] = 1, 0.25
    rest = quieted(source, weights)
    assert (rest.num_frames, rest.num_speakers) == (40, 2)
    features, given = rest.features(5, 40), source.features(5, 40)
    assert torch.equal(features[0, :5], given[0, :5])
    assert torch.allclose(features[0, 5], given[0, 5] * 0.25 + 2 * 0.75)
    expected = torch.tensor([float(index % 4) for index in range(5, 40)])[:, None, None].expand(-1, 3, 8)
    assert torch.equal(features[1], expected) and torch.equal(features[0, 6:], expected[6:])
    assert torch.equal(rest.features(20, 30), features[:, 15:25]), "parts are parts of the whole"


def test_speech_keeps_its_beginnings_and_ends():
    is_speech = torch.zeros(60, dtype=torch.bool)
    is_speech[25:30] = True
    weights = softened(is_speech, 25.0)
    assert weights.shape == (60,) and weights[20:35].eq(1).all()
    assert not weights[:9].any() and not weights[46:].any()
    assert (weights[9:21].diff() > 0).all() and (weights[34:46].diff() < 0).all()
    assert softened(torch.ones(3, dtype=torch.bool), 25.0).eq(1).all()


@needs_silero
def test_a_voice_is_found_and_silence_is_none():
    track = torch.cat((torch.zeros(2 * RATE), vowels(2), torch.zeros(2 * RATE)))
    threads = torch.get_num_threads()
    weights = speech_activity([track, torch.zeros(6 * RATE)], 150, 25.0)
    assert torch.get_num_threads() == threads
    assert weights.shape == (2, 150) and not weights[1].any()
    assert weights[0, 50:98].eq(1).all() and not weights[0, :35].any() and not weights[0, 120:].any()


@needs_silero
def test_long_tracks_are_read_in_parts(monkeypatch):
    track = torch.cat((torch.zeros(RATE), vowels(1), torch.zeros(RATE)))
    whole = speech_activity([track], 75, 25.0)
    monkeypatch.setattr(activity, "PIECE", 5 * activity.CHUNK)
    assert torch.equal(speech_activity([track], 75, 25.0), whole)


def test_without_the_package_one_sentence_says_so_before_anything_is_loaded(tmp_path, monkeypatch, caplog):
    jobs.capture_log(caplog)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    pipeline = TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)
    with pytest.raises(UnsupportedError, match="voice_activity needs the package silero-vad.*pip install silero-vad"):
        pipeline.run(jobs.request(tmp_path, voice_activity=True))
    assert not jobs.loads(caplog)


@needs_silero
def test_a_request_that_asks_for_it_makes_another_video_of_the_same_length(tmp_path):
    pipeline = TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)
    usual, resting = (
        torch.cat([window.frames for window in pipeline.run(jobs.request(tmp_path, voice_activity=is_on))])
        for is_on in (False, True)
    )
    assert usual.shape == resting.shape and not torch.equal(usual, resting), "a tone is no voice"
