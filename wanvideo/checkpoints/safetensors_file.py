"""The safetensors format: an 8-byte length, a JSON header of names, dtypes, shapes and byte ranges, then the bytes.

Read here rather than through the library because a loader of tens of gigabytes wants two things of it: views on mapped
pages that it can let go of one tensor at a time, and a plain sentence when a download was cut short.
"""

from __future__ import annotations

import json
import math
import mmap
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
if hasattr(torch, "float8_e8m0fnu"):
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000
PAGE = mmap.ALLOCATIONGRANULARITY


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with these bytes is meant to be one."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES


@dataclass(frozen=True)
class Place:
    """Where one tensor lies: bytes [start, stop) of the file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    stop: int


class SafetensorsFile:
    """A memory-mapped safetensors file; it stays mapped as long as a tensor of it is in use.

    Raises: CheckpointError when the header does not fit the file.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.size = path.name, path.stat().st_size
        with path.open("rb") as file:
            header, data_start = self._read_header(file)
            self.metadata = {str(key): str(value) for key, value in (header.pop("__metadata__", None) or {}).items()}
            self.places = {key: self._place(key, item, data_start) for key, item in header.items()}
            end = max((place.stop for place in self.places.values()), default=data_start)
            if end > self.size:
                raise CheckpointError(
                    f"{self.name} is cut short: its header promises {_gigabytes(end)}, "
                    f"the file has {_gigabytes(self.size)}. Download it again."
                )
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _read_header(self, file: Any) -> tuple[dict[str, Any], int]:
        length = int.from_bytes(file.read(8), "little")
        if length + 8 > self.size:
            raise CheckpointError(f"{self.name} is cut short inside its header ({self.size} bytes). Download it again.")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise self._damaged("an unreadable header") from None
        if not isinstance(header, dict):
            raise self._damaged("a header that names no tensors")
        return header, 8 + length

    def _place(self, key: str, item: Any, data_start: int) -> Place:
        try:
            name, shape, (start, stop) = item["dtype"], tuple(map(int, item["shape"])), item["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise self._damaged(f"no description of the tensor {key!r}") from None
        if name not in DTYPES:
            raise CheckpointError(
                f"{self.name} stores {key!r} as {name}, which this version cannot read. Use a bf16, fp16 or fp8 file."
            )
        dtype = DTYPES[name]
        if min(shape, default=1) < 0 or start < 0 or stop - start != math.prod(shape) * dtype.itemsize:
            raise self._damaged(f"{stop - start} bytes for the tensor {key!r} of shape {list(shape)}")
        return Place(shape, dtype, data_start + start, data_start + stop)

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.name} is damaged: it has {what}. Download it again.")

    def tensor(self, place: Place) -> Tensor:
        """A read-only view of the mapped file."""
        if place.start == place.stop:
            return torch.empty(place.shape, dtype=place.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the buffer is read-only, and nobody writes to it
            data = torch.frombuffer(self._map, dtype=torch.uint8, count=place.stop - place.start, offset=place.start)
        if place.start % place.dtype.itemsize:
            data = data.clone()
        return data.view(place.dtype).view(place.shape)

    def release(self, place: Place) -> None:
        """Let go of the pages of a tensor that has been copied; reading it again only reads the file again."""
        start, stop = -(-place.start // PAGE) * PAGE, place.stop // PAGE * PAGE
        if stop > start and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)


def write_safetensors(
    path: Path,
    tensors: Iterable[tuple[str, tuple[int, ...], torch.dtype, Callable[[], Tensor]]],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write (key, shape, dtype, read) one tensor after another, so that only one is ever in memory."""
    tensors = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for key, shape, dtype, _ in tensors:
        size = math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key, shape, dtype, read in tensors:
            tensor = read().to(dtype).contiguous()
            assert tuple(tensor.shape) == tuple(shape), key
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size} bytes"
