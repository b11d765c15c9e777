"""SyncNet and its MFCCs: as the published program, python_speech_features and plain formulas compute them.

data/syncnet.safetensors is what syncnet_python (commit 6efbb1c) and python_speech_features 0.6 made of the same drawn
weights, faces and sound. Its own weights were not at hand.
"""

from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import torch
from safetensors import safe_open
from support import recipes, syncnets

from wanvideo.audio.load import from_array
from wanvideo.audio.mfcc import mfccs
from wanvideo.checkpoints.load import load_syncnet
from wanvideo.quality.syncnet import distances, lag_of

DATA = Path(__file__).parent / "data" / "syncnet.safetensors"
SEED, NUM_FRAMES = 7, 24


@pytest.fixture(scope="module")
def reference():
    with safe_open(DATA, "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def samples():
    return (recipes.waveform(NUM_FRAMES / 25, SEED) * 32767).round().to(torch.int16)


def sound_of(samples):
    return from_array(np.asarray(samples, np.float32) / 32768, 16000)


def test_distances_are_those_of_the_published_program(reference, samples):
    about, expected = reference
    state, faces = syncnets.state_dict(SEED, syncnets.PUBLISHED), syncnets.faces(SEED, NUM_FRAMES)
    assert recipes.fingerprint(state | {"faces": faces, "sound": samples}) == about["fingerprint"]
    each = distances(load_syncnet(state), iter(faces), sound_of(samples), NUM_FRAMES)
    assert (each - expected["distances"].flip(1)).abs().max() <= 1e-4
    found = lag_of(each, 25)
    assert found.lag_frames == expected["offset"] and len(found.confidences) == NUM_FRAMES - 5
    assert found.distance == pytest.approx(float(expected["distance"]), abs=1e-4)
    assert found.confidence == pytest.approx(float(expected["confidence"]), abs=1e-4)


def test_mfccs_are_those_of_python_speech_features(reference, samples):
    assert np.abs(mfccs(sound_of(samples)) - reference[1]["mfccs"].numpy()).max() <= 1e-4


def plain(samples):
    """The definition, sample by sample."""
    raised = [samples[0], *(samples[i] - 0.97 * samples[i - 1] for i in range(1, len(samples)))]
    mels = [i * 2595 * np.log10(1 + 8000 / 700) / 27 for i in range(28)]
    bins = [int(513 * 700 * (10 ** (mel / 2595) - 1) / 16000) for mel in mels]
    rows = []
    for start in range(0, max(len(samples) - 400 + 159, 0) + 1, 160):
        piece = np.array(raised[start : start + 400])
        powers = np.abs(np.fft.fft(piece, 512))[:257] ** 2 / 512
        bands = []
        for low, middle, high in zip(bins, bins[1:], bins[2:]):
            up = sum(powers[i] * (i - low) / (middle - low) for i in range(low, middle))
            bands.append(up + sum(powers[i] * (high - i) / (high - middle) for i in range(middle, high)))
        bands = np.where(np.array(bands) == 0, np.finfo(float).eps, bands)
        row = scipy.fft.dct(np.log(bands), norm="ortho")[:13] * (1 + 11 * np.sin(np.pi * np.arange(13) / 22))
        rows.append([np.log(powers.sum() or np.finfo(float).eps), *row[1:]])
    return np.array(rows)


@pytest.mark.parametrize("num_samples", [1, 399, 400, 401, 560, 561, 2000])
def test_mfccs_of_any_length_are_those_of_the_formulas(num_samples):
    samples = np.random.default_rng(num_samples).normal(0, 3000, num_samples).astype(np.int16)
    samples[600:1200] = 0
    found, expected = mfccs(sound_of(samples)), plain(samples.astype(float))
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 1e-4


def test_long_sounds_are_read_in_parts(monkeypatch):
    sound = sound_of(np.random.default_rng(1).normal(0, 3000, 12_345).astype(np.int16))
    whole = mfccs(sound)
    monkeypatch.setattr("wanvideo.audio.mfcc.AT_ONCE", 10)
    assert np.array_equal(mfccs(sound), whole)


def test_spans_are_seen_one_by_one():
    """What the network makes of a span does not depend on its neighbors, though frames are read once."""
    net, faces = load_syncnet(syncnets.state_dict(SEED)), syncnets.faces(SEED, 8)
    together = net.mouths(faces)
    assert together.shape == (4, 16) and together.std() > 0.1
    for start in range(4):
        assert (net.mouths(faces[start : start + 5])[0] - together[start]).abs().max() <= 1e-4
    rows = recipes.tensor("rows", (31, 13), SEED)
    assert net.sounds(rows).shape == (3, 16)
    assert (net.sounds(rows[4:24])[0] - net.sounds(rows)[1]).abs().max() <= 1e-4
