"""Loudness, resampling and filtering in blocks against the values and the code of pyloudnorm, librosa and scipy."""

import json
from pathlib import Path

import librosa
import numpy as np
import pyloudnorm
import pytest
from safetensors.torch import load_file
from scipy.signal import butter, sosfiltfilt
from support import recipes

from wanvideo.audio.load import BLOCK, from_array
from wanvideo.audio.loudness import loudness, normalize
from wanvideo.audio.treatment import with_noise_floor, without_transients

DATA = Path(__file__).parent / "data"
LEVELS = json.loads((DATA / "audio_levels.json").read_text())["cases"]


def samples_of(sound):
    return sound.read(0, sound.num_samples)


def speech(seconds, seed=0, rate=16000):
    """Louder and quieter by turns, with pauses, so that both gates of the loudness have something to do."""
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(time))
    level = np.clip(np.sin(time * 0.9), 0, 1) * (0.02 + 0.3 * np.abs(np.sin(time * 0.07)))
    return ((np.sin(2 * np.pi * 180 * time) + 0.3 * noise) * level).astype(np.float32)


@pytest.mark.parametrize("case", LEVELS, ids=lambda case: f"gain {case['gain']}")
def test_loudness(case):
    samples = recipes.waveform(case["seconds"], case["seed"]).numpy() * np.float32(case["gain"])
    samples = np.concatenate((samples, np.zeros(16000 * case.get("trailing_silence_s", 0), np.float32)))
    sound = from_array(samples, 16000)
    measured, changed = loudness(sound), samples_of(normalize(sound))
    if case["lufs"] is None:
        assert np.isneginf(measured) and np.array_equal(changed, samples)
        return
    assert abs(measured - case["lufs"]) <= 1e-3
    assert changed.dtype == np.float32
    assert np.allclose(changed, samples * case["applied_gain"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("seconds", [0.41, 0.77, 1.0, 16.384, 59.93])
def test_loudness_in_blocks_is_that_of_the_whole(seconds):
    samples = speech(seconds)
    whole = pyloudnorm.Meter(16000).integrated_loudness(samples)
    assert abs(loudness(from_array(samples, 16000)) - whole) <= 1e-6


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.39])
def test_sound_shorter_than_a_measurement_is_brought_to_the_same_level(seconds):
    tone = np.sin(2 * np.pi * 400 * np.arange(16000) / 16000).astype(np.float32) * 0.01
    short, long = (samples_of(normalize(from_array(wave, 16000))) for wave in (tone[: int(seconds * 16000)], tone))
    assert abs(np.abs(short).max() / np.abs(long).max() - 1) < 0.1


@pytest.mark.parametrize(("rate", "seconds"), [(44100, 0.6), (48000, 0.4), (8000, 0.5)])
def test_resampling(rate, seconds):
    wave = recipes.waveform(seconds, 91, rate).numpy()
    expected = load_file(DATA / "resample.safetensors")[f"from_{rate}"].numpy()
    assert np.abs(samples_of(from_array(wave, rate)) - expected).max() <= 1e-5


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 48000, 96000])
@pytest.mark.parametrize("num_samples", [10, 1000, 2 * BLOCK + 77])
def test_resampling_in_blocks_is_that_of_the_whole(rate, num_samples):
    wave = np.random.default_rng(rate).standard_normal(num_samples).astype(np.float32)
    whole = librosa.resample(wave, orig_sr=rate, target_sr=16000, res_type="soxr_hq")
    assert np.array_equal(samples_of(from_array(wave, rate)), whole)


@pytest.mark.parametrize("num_samples", [10, 64, 5000, BLOCK, 2 * BLOCK + 5])
def test_filters_in_blocks_are_those_of_the_whole(num_samples):
    samples = speech(num_samples / 16000)[:num_samples]
    sound = from_array(samples, 16000)
    noise = np.random.default_rng(0).standard_normal(len(samples)).astype(np.float32)
    assert np.array_equal(samples_of(with_noise_floor(sound)), samples + noise * 10 ** (-45 / 20))
    whole = sosfiltfilt(butter(3, 3000, fs=16000, output="sos"), samples) if len(samples) >= 64 else samples
    smooth = samples_of(without_transients(sound))
    assert smooth.dtype == np.float32 and np.abs(smooth - whole).max() <= 1e-6


def test_noise_floor_and_low_pass():
    silence = samples_of(with_noise_floor(from_array(np.zeros(16000, np.float32), 16000)))
    assert 20 * np.log10(silence.std()) == pytest.approx(-45, abs=0.5)
    time = np.arange(16000) / 16000
    low, high = (np.sin(2 * np.pi * hz * time).astype(np.float32) for hz in (300, 7000))
    kept = samples_of(without_transients(from_array(low + high, 16000)))
    assert np.abs(kept - low)[200:-200].max() < 0.02
