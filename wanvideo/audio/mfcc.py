"""Mel-frequency cepstral coefficients, as python_speech_features computes them and SyncNet was trained with.

Legend: N samples at 16 kHz, M rows at 100 Hz.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.fft import dct

from .load import SAMPLE_RATE, Sound

NUM_COEFFICIENTS, NUM_FILTERS = 13, 26
STEP, WINDOW = SAMPLE_RATE // 100, SAMPLE_RATE // 40  # samples: 10 and 25 ms, of no shape
NUM_POINTS = 512  # of the Fourier transform
EMPHASIS, LIFTER = 0.97, 22
FULL_SCALE = 32768  # of 16-bit samples, as which the sound is read
LEAST = np.finfo(np.float64).eps  # energy of what has none
AT_ONCE = 6000  # rows whose samples are held


def mfccs(sound: Sound) -> np.ndarray:
    """[M, 13] float32, M = 1 + ceil((N - 400) / 160), at least 1: a row for each 25 ms from each 10 ms on.

    The first column is the logarithm of the energy. Behind the end is silence.
    """
    num_rows = 1 + max(0, math.ceil((sound.num_samples - WINDOW) / STEP))
    parts = [_rows(sound, start, min(start + AT_ONCE, num_rows)) for start in range(0, num_rows, AT_ONCE)]
    return np.concatenate(parts).astype(np.float32)


def _rows(sound: Sound, start: int, stop: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(_emphasized(sound, start, stop), WINDOW)[::STEP]
    powers = np.square(np.abs(np.fft.rfft(windows, NUM_POINTS))) / NUM_POINTS
    bands = np.log(_above_zero(powers @ _filters().T))
    coefficients: np.ndarray = dct(bands, type=2, axis=1, norm="ortho")[:, :NUM_COEFFICIENTS]
    coefficients *= 1 + LIFTER / 2 * np.sin(np.pi * np.arange(NUM_COEFFICIENTS) / LIFTER)
    coefficients[:, 0] = np.log(_above_zero(powers.sum(1)))
    return coefficients


def _emphasized(sound: Sound, start: int, stop: int) -> np.ndarray:
    """The samples of rows start..stop as 16-bit numbers, high frequencies raised; zeros behind the end."""
    first, last = start * STEP, (stop - 1) * STEP + WINDOW
    samples = sound.read(max(first - 1, 0), min(last, sound.num_samples)).astype(np.float64)
    samples = np.clip(np.round(samples * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)
    samples = samples if first else np.concatenate([[0.0], samples])
    raised = samples[1:] - EMPHASIS * samples[:-1]
    return np.pad(raised, (0, last - first - len(raised)))


def _filters() -> np.ndarray:
    """[26, 257]: triangles that are as wide as the ear tells frequencies apart, from 0 to 8 kHz."""
    most = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, most, NUM_FILTERS + 2) / 2595) - 1)
    bins = np.floor((NUM_POINTS + 1) * corners / SAMPLE_RATE)[:, None]
    left, middle, right = bins[:-2], bins[1:-1], bins[2:]
    points = np.arange(NUM_POINTS // 2 + 1)
    filters: np.ndarray = np.minimum((points - left) / (middle - left), (right - points) / (right - middle))
    return filters.clip(0)


def _above_zero(energies: np.ndarray) -> np.ndarray:
    return np.where(energies == 0, LEAST, energies)
