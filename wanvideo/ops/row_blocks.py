"""Rows of a matrix a block at a time, so that what is made of them in float32 stays small."""

from __future__ import annotations

from collections.abc import Iterator

ELEMENTS = 1 << 24  # 64 MB in float32


def row_blocks(rows: int, columns: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of at most `ELEMENTS` numbers; starts are multiples of `multiple`."""
    step = max(ELEMENTS // max(columns, 1) // multiple, 1) * multiple
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
