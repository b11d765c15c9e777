"""Loudness by ITU-R BS.1770: the audio encoder's features depend on it, and the adapter was trained at -23 LUFS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from .load import SAMPLE_RATE, Sound

TARGET_LUFS = -23.0
BLOCK_S = 0.4  # of the measurement; shorter sound is repeated to be measured
STEP = 0.25  # of a block from one to the next
ABSOLUTE_GATE_LUFS, RELATIVE_GATE_LU = -70.0, -10.0
UNMEASURABLE_LUFS = 100.0  # silence measures as minus infinity


def loudness(sound: Sound) -> float:
    """Integrated loudness in LUFS; -inf for silence. To the bit what pyloudnorm measures of the whole."""
    length, needed = sound.num_samples, int(BLOCK_S * SAMPLE_RATE) + 1
    blocks: Iterable[np.ndarray] = sound.blocks()
    if length < needed:
        repeated = np.tile(sound.read(0, length), -(-needed // length))
        blocks, length = [repeated], len(repeated)
    return _gated(np.array(list(_powers(_weighted(blocks), length)), np.float64))


def normalize(sound: Sound, target_lufs: float = TARGET_LUFS) -> Sound:
    """The sound at `target_lufs`, without a limiter; what cannot be measured stays as it is.

    Source: the loudness step of MultiTalk / InfiniteTalk, which fails for sound shorter than 0.4 s.
    """
    measured = loudness(sound) if sound.num_samples else -math.inf
    if not abs(measured) <= UNMEASURABLE_LUFS:
        return sound
    return replace(sound, gain=sound.gain * 10 ** ((target_lufs - measured) / 20))


def _weighted(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Blocks after K-weighting, the filters' state carried on from each to the next."""
    from pyloudnorm import IIRfilter
    from scipy.signal import lfilter

    shelf = IIRfilter(4.0, 1 / np.sqrt(2), 1500.0, SAMPLE_RATE, "high_shelf")
    high_pass = IIRfilter(0.0, 0.5, 38.0, SAMPLE_RATE, "high_pass")
    filters = [(stage.b, stage.a) for stage in (shelf, high_pass)]
    states = [np.zeros(2) for _ in filters]
    for block in blocks:
        for stage, (b, a) in enumerate(filters):
            filtered, states[stage] = lfilter(b, a, block, zi=states[stage])
            block = filtered.astype(np.float32)  # as pyloudnorm keeps what it was given in float32
        yield block


def _powers(blocks: Iterable[np.ndarray], length: int) -> Iterator[float]:
    """Mean square of every overlapping measuring block of `length` samples."""
    count = int(np.round((length / SAMPLE_RATE - BLOCK_S) / (BLOCK_S * STEP)) + 1)
    held, start, index = np.zeros(0, np.float32), 0, 0
    for block in blocks:
        held = np.concatenate((held, block))
        while index < count:
            first, last = (int(BLOCK_S * (index * STEP + end) * SAMPLE_RATE) for end in (0, 1))
            if min(last, length) > start + len(held):
                held, start = held[first - start :], first
                break
            part = held[first - start : last - start]
            yield float((1.0 / (BLOCK_S * SAMPLE_RATE)) * np.sum(np.square(part)))
            index += 1


def _gated(powers: np.ndarray) -> float:
    levels = _level(powers)
    is_loud = levels >= ABSOLUTE_GATE_LUFS
    if not is_loud.any():
        return -math.inf
    is_louder = levels > _level(np.mean(powers[is_loud])) + RELATIVE_GATE_LU
    return float(_level(np.mean(powers[is_louder & (levels > ABSOLUTE_GATE_LUFS)])))


def _level(power: np.ndarray | np.floating) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -0.691 + 10.0 * np.log10(power)
