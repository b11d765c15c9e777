"""What may be done to speech so that faint sounds, hisses and clicks move the mouth less."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from ..spool import Spool
from .load import BLOCK, IN_MEMORY, SAMPLE_RATE, Sound

FLOOR_DBFS = -45.0
CUTOFF_HZ = 3000.0
SHORTEST = 64  # samples; what is shorter has no room for the filter's ends


def with_noise_floor(sound: Sound, level_dbfs: float = FLOOR_DBFS) -> Sound:
    """The sound over steady white noise, always the same: faint sounds in it do not make a mouth twitch."""
    generator, level = np.random.default_rng(0), 10 ** (level_dbfs / 20)

    def blocks() -> Iterator[np.ndarray]:
        for block in sound.blocks():
            yield block + generator.standard_normal(block.shape).astype(np.float32) * level

    return Sound.of(blocks(), sound.name)


def without_transients(sound: Sound, cutoff_hz: float = CUTOFF_HZ) -> Sound:
    """The sound below `cutoff_hz` without a delay; to the bit scipy.signal.sosfiltfilt of the whole."""
    from scipy.signal import butter, sosfilt, sosfilt_zi

    length = sound.num_samples
    if length < SHORTEST:
        return sound
    sections = butter(3, cutoff_hz, fs=SAMPLE_RATE, output="sos")
    settled = sosfilt_zi(sections)
    edge = 3 * (2 * len(sections) + 1 - min((sections[:, 2] == 0).sum(), (sections[:, 5] == 0).sum()))
    # Before its start and behind its end the sound goes on as its image, turned about the first and last sample.
    head, tail = sound.read(0, edge + 1), sound.read(length - edge - 1, length)
    head, tail = 2 * head[0] - head[:0:-1], 2 * tail[-1] - tail[-2::-1]
    forward, end = Spool(f"The sound of {sound.name}", np.float64, in_memory=IN_MEMORY), 0
    state = settled * head[0]
    for block in itertools.chain([head], sound.blocks(), [tail]):
        filtered, state = sosfilt(sections, block, zi=state)
        forward.write(end, filtered)
        end += len(filtered)
    last = forward.read(end - edge, end)
    _, state = sosfilt(sections, last[::-1], zi=settled * last[-1])
    smooth = Spool(f"The sound of {sound.name}", in_memory=IN_MEMORY)
    for stop in range(length, 0, -BLOCK):
        start = max(0, stop - BLOCK)
        filtered, state = sosfilt(sections, forward.read(edge + start, edge + stop)[::-1], zi=state)
        smooth.write(start, filtered[::-1])
    return Sound(smooth, length, sound.name)
