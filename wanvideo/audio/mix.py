"""Speakers' original sound together, for whoever wants it as samples; the video's own soundtrack is made from files.

Legend: C channels, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .resample import resampled

PEAK = 0.95


def mix(waves: Sequence[tuple[np.ndarray, int]], placement: str, duration_s: float) -> tuple[np.ndarray, int]:
    """One waveform at the rate and with the channels of the first.

    Args:
        waves: (samples float32 [C, N], rate) of each speaker. placement: para, all at once, or add, one after another.
        duration_s: of the result; cut, or filled with silence.
    Returns: (samples [C, N], rate), made quieter only where the sum would clip.
    """
    first, rate = waves[0]
    channels, length = first.shape[0], round(duration_s * rate)
    out, start = np.zeros((channels, length), np.float32), 0
    for samples, own_rate in waves:
        if own_rate != rate:
            samples = np.stack([np.concatenate([*resampled((channel,), own_rate, rate)]) for channel in samples])
        if samples.shape[0] != channels:
            samples = np.broadcast_to(samples.mean(0), (channels, samples.shape[1]))
        stop = min(length, start + samples.shape[1])
        out[:, start:stop] += samples[:, : max(0, stop - start)]
        start += samples.shape[1] if placement == "add" else 0
    peak = float(np.abs(out).max(initial=0.0))
    return (out * (PEAK / peak) if peak > 1 and len(waves) > 1 else out), rate
