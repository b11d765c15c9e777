"""Loudness and resampling against the values of pyloudnorm and librosa."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from support import recipes

from wanvideo.audio.load import from_array
from wanvideo.audio.loudness import loudness, normalise

DATA = Path(__file__).parent / "data"
LEVELS = json.loads((DATA / "audio_levels.json").read_text())["cases"]


@pytest.mark.parametrize("case", LEVELS, ids=lambda case: f"gain {case['gain']}")
def test_loudness(case):
    samples = recipes.waveform(case["seconds"], case["seed"]).numpy() * np.float32(case["gain"])
    samples = np.concatenate((samples, np.zeros(16000 * case.get("trailing_silence_s", 0), np.float32)))
    measured = loudness(samples, 16000)
    if case["lufs"] is None:
        assert np.isneginf(measured) and np.array_equal(normalise(samples, 16000), samples)
        return
    assert abs(measured - case["lufs"]) <= 1e-3
    changed = normalise(samples, 16000)
    assert changed.dtype == np.float32
    assert np.allclose(changed, samples * case["applied_gain"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.39])
def test_sound_shorter_than_a_measurement_is_brought_to_the_same_level(seconds):
    tone = np.sin(2 * np.pi * 400 * np.arange(16000) / 16000).astype(np.float32) * 0.01
    short = normalise(tone[: int(seconds * 16000)], 16000)
    assert abs(np.abs(short).max() / np.abs(normalise(tone, 16000)).max() - 1) < 0.1


@pytest.mark.parametrize(("rate", "seconds"), [(44100, 0.6), (48000, 0.4), (8000, 0.5)])
def test_resampling(rate, seconds):
    wave = recipes.waveform(seconds, 91, rate).numpy()
    expected = load_file(DATA / "resample.safetensors")[f"from_{rate}"].numpy()
    assert np.abs(from_array(wave, rate).samples - expected).max() <= 1e-5
