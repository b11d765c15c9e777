"""A file's bytes as memory-mapped pages, which are read when they are touched and can be let go of again."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

PAGE = mmap.ALLOCATIONGRANULARITY
MAX_RANK = 8  # of tensors in files
MAX_SIDE = 1 << 40
MAX_NAME = 1000  # characters of a tensor's name, which is taken apart again and again


class MappedFile:
    """A read-only map of a whole file; it stays mapped as long as a tensor of it is in use."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.size = len(self.data)

    def bytes(self, start: int, stop: int) -> Tensor:
        """The bytes [start, stop) as a read-only view [n] uint8."""
        if start == stop:
            return torch.empty(0, dtype=torch.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the buffer is read-only, and nobody writes to it
            return torch.frombuffer(self.data, dtype=torch.uint8, count=stop - start, offset=start)

    def numbers(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """The bytes as numbers [n], a read-only view where they are aligned."""
        data = self.bytes(start, stop)
        return (data.clone() if start % dtype.itemsize else data).view(dtype)

    def release(self, start: int, stop: int) -> None:
        """Let go of the pages of bytes that have been copied; reading them again only reads the file again."""
        start, stop = -(-start // PAGE) * PAGE, stop // PAGE * PAGE
        if stop > start and hasattr(self.data, "madvise"):
            self.data.madvise(mmap.MADV_DONTNEED, start, stop - start)


@dataclass(frozen=True)
class Span:
    """The bytes [start, stop) of a file that a tensor says are its own."""

    key: str
    start: int
    stop: int


def first_overlap(spans: Iterable[Span]) -> tuple[str, str] | None:
    """Two tensors that share bytes, if any do."""
    ordered = sorted((span for span in spans if span.start < span.stop), key=lambda span: (span.start, span.stop))
    for one, two in zip(ordered, ordered[1:], strict=False):
        if two.start < one.stop:
            return one.key, two.key
    return None


def is_shape(value: object) -> bool:
    """Whether a value from a file is a list of sizes that a tensor can have."""
    return (
        isinstance(value, list | tuple)
        and len(value) <= MAX_RANK
        and all(type(side) is int and 0 <= side <= MAX_SIDE for side in value)
    )


def readable_size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size} bytes"
