"""Loudness by ITU-R BS.1770: the audio encoder's features depend on it, and the adapter was trained at -23 LUFS."""

from __future__ import annotations

import numpy as np

TARGET_LUFS = -23.0
BLOCK_S = 0.4  # of the measurement; shorter sound is repeated to be measured
UNMEASURABLE_LUFS = 100.0  # silence measures as minus infinity


def loudness(samples: np.ndarray, sample_rate: int) -> float:
    """Integrated loudness of samples [N] in LUFS; -inf for silence."""
    import pyloudnorm

    needed = int(BLOCK_S * sample_rate) + 1
    if len(samples) < needed:
        samples = np.tile(samples, -(-needed // len(samples)))
    with np.errstate(divide="ignore"):
        return float(pyloudnorm.Meter(sample_rate).integrated_loudness(samples))


def normalise(samples: np.ndarray, sample_rate: int, target_lufs: float = TARGET_LUFS) -> np.ndarray:
    """samples [N] at `target_lufs`, float32, without a limiter; what cannot be measured stays as it is.

    Source: the loudness step of MultiTalk / InfiniteTalk, which fails for sound shorter than 0.4 s.
    """
    measured = loudness(samples, sample_rate)
    if not abs(measured) <= UNMEASURABLE_LUFS:
        return samples
    return (samples * 10 ** ((target_lufs - measured) / 20)).astype(np.float32)
