"""Sound at another rate, by soxr in its high quality.

Legend: N samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np


def resampled(blocks: Iterable[np.ndarray], rate: int, wanted: int) -> Iterator[np.ndarray]:
    """Blocks [N] float32 that follow one another, at `wanted` Hz; to the bit what the whole at once would give."""
    if rate == wanted:
        yield from blocks
        return
    import soxr

    stream = soxr.ResampleStream(rate, wanted, 1, dtype="float32", quality="HQ")
    num_given = num_made = 0
    for block in blocks:
        num_given += len(block)
        piece = stream.resample_chunk(np.ascontiguousarray(block, np.float32))
        num_made += len(piece)
        yield piece
    if num_given:
        last = stream.resample_chunk(np.zeros(0, np.float32), last=True)
        missing = math.ceil(num_given * (wanted / rate)) - num_made
        yield np.pad(last, (0, max(0, missing - len(last))))[:missing]
