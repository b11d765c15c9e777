"""Sound files to samples: any container, one channel, one rate.

Legend: C channels, N samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spool import Spool
from .decode import SoundFile, check_format, check_values
from .resample import resampled

SAMPLE_RATE = 16000  # of the audio encoder
SILENCE_DBFS = -60.0
BLOCK = 2**18  # samples that are decoded and treated at once
IN_MEMORY = 2**21  # samples (8 MB, two minutes); longer sound is in a file


@dataclass(frozen=True, eq=False)
class Sound:
    """Someone's sound: one channel, float32 at 16 kHz, about -1..1, read in parts.

    Args:
        spool: the samples before the gain. num_samples: of them that are used, from the first on.
        name: of the file, for messages. gain: factor on the samples.
    """

    spool: Spool
    num_samples: int
    name: str = "the sound"
    gain: float = 1.0

    @classmethod
    def of(cls, blocks: Iterable[np.ndarray], name: str) -> Sound:
        """A sound of blocks [N] at 16 kHz, which follow one another."""
        spool, length = Spool(f"The sound of {name}", in_memory=IN_MEMORY), 0
        for block in blocks:
            spool.write(length, block)
            length += len(block)
        return cls(spool, length, name)

    @property
    def duration_s(self) -> float:
        return self.num_samples / SAMPLE_RATE

    @property
    def level_dbfs(self) -> float:
        """Root mean square, in decibels below full scale; -inf for digital silence."""
        energy = sum(float(np.sum(np.square(block, dtype=np.float64))) for block in self.blocks())
        return 10 * math.log10(energy / self.num_samples) if energy else -math.inf

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples start..stop, 0 <= start <= stop <= num_samples."""
        return self.spool.read(start, stop) * self.gain

    def blocks(self) -> Iterator[np.ndarray]:
        """All samples in their order, BLOCK at once."""
        for start in range(0, self.num_samples, BLOCK):
            yield self.read(start, min(start + BLOCK, self.num_samples))

    def cut(self, duration_s: float) -> Sound:
        """The first `duration_s` seconds."""
        return replace(self, num_samples=min(self.num_samples, round(duration_s * SAMPLE_RATE)))

    def delayed(self, duration_s: float) -> Sound:
        """The sound so much later, after silence; below 0 so much earlier, without its beginning."""
        count = round(duration_s * SAMPLE_RATE)
        silence = np.zeros(max(count, 0), np.float32)
        starts = range(max(-count, 0), self.num_samples, BLOCK)
        rest = (self.read(start, min(start + BLOCK, self.num_samples)) for start in starts)
        return Sound.of(itertools.chain([silence], rest), self.name) if count else self


def load_audio(path: str | Path) -> Sound:
    """The sound of a sound or video file: the mean of its channels, at 16 kHz.

    Raises: InputError when the file is missing, is no sound, holds none, or holds values that are no numbers.
    """
    file = SoundFile(path)
    return _sound_of(_joined(file.pieces()), file.rate, str(path))


def from_array(samples: np.ndarray, rate: int, name: str = "the sound") -> Sound:
    """Sound from float samples [C, N] at `rate` Hz."""
    samples = np.atleast_2d(np.asarray(samples, np.float32))
    check_format(rate, samples.shape[0], name)
    starts = range(0, samples.shape[-1], BLOCK)
    return _sound_of((samples[:, start : start + BLOCK].T for start in starts), rate, name)


def check_speech(sound: Sound, who: str) -> None:
    """Raises: InputError when a speaker's sound is silent, since that speaker would never move."""
    level_dbfs = sound.level_dbfs
    if level_dbfs < SILENCE_DBFS:
        level = "digital silence" if math.isinf(level_dbfs) else f"{level_dbfs:.0f} dBFS"
        raise InputError(
            f"The sound of {who}, {sound.name}, is silent ({level}), so nobody would speak. "
            "Give a file with speech; for a person who only listens give none."
        )


def _sound_of(blocks: Iterable[np.ndarray], rate: int, name: str) -> Sound:
    """Blocks [N, C] at `rate` Hz, checked and brought to one channel at 16 kHz."""
    sound = Sound.of(resampled((block.mean(1) for block in _checked(blocks, name)), rate, SAMPLE_RATE), name)
    if not sound.num_samples:
        raise InputError(f"{name} is empty: it has no samples. Give another sound.")
    return sound


def _joined(pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The small frames [n, C] of a codec as blocks of about BLOCK samples."""
    held: list[np.ndarray] = []
    num_held = 0
    for piece in pieces:
        held.append(piece)
        num_held += len(piece)
        if num_held >= BLOCK:
            yield np.concatenate(held)
            held, num_held = [], 0
    if held:
        yield np.concatenate(held)


def _checked(blocks: Iterable[np.ndarray], name: str) -> Iterator[np.ndarray]:
    for block in blocks:
        check_values(block, name)
        yield block
