"""The safetensors format: an 8-byte length, a JSON header of names, dtypes, shapes and byte ranges, then the bytes.

Read here rather than through the library because a loader of tens of gigabytes wants two things of it: views on mapped
pages that it can let go of one tensor at a time, and a plain sentence when a download was cut short. What the library
refuses is refused here as well: every byte behind the header belongs to exactly one tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..untrusted import parse_json
from .mapped import MAX_NAME, MappedFile, is_shape, readable_size

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
if hasattr(torch, "float8_e8m0fnu"):
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What the format knows and this version does not; any other name is damage.
UNREAD = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "U16", "U32", "U64", "C64")
MAX_HEADER_BYTES = 16 * 2**20  # 40 times that of the largest model here; JSON takes 30 times its size in memory
METADATA = "__metadata__"


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with these bytes is meant to be one."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000


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
        self._file = MappedFile(path)
        self.name = self._file.name
        header, data_start = self._read_header()
        self.metadata = self._metadata(header.pop(METADATA, None))
        self.places = {key: self._place(key, item, data_start) for key, item in header.items()}
        self._check_bytes(data_start)

    def _read_header(self) -> tuple[dict[str, Any], int]:
        length, size = int.from_bytes(self._file.data[:8], "little"), self._file.size
        if length + 8 > size:
            raise CheckpointError(f"{self.name} is cut short inside its header ({size} bytes). Download it again.")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{self.name} has a header of {length / 1e6:.0f} MB, which no model here needs; at most "
                f"{MAX_HEADER_BYTES / 1e6:.0f} MB are read. Download it again."
            )
        name = f"{self.name} is damaged, download it again: its header"
        header = parse_json(self._file.data[8 : 8 + length], name, CheckpointError)
        if not isinstance(header, dict):
            raise self._damaged("a header that names no tensors")
        return header, 8 + length

    def _metadata(self, found: Any) -> dict[str, str]:
        if found is None:
            return {}
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise self._damaged(f"{METADATA} that is not text by name")
        return found

    def _place(self, key: str, item: Any, data_start: int) -> Place:
        if not isinstance(item, dict):
            raise self._damaged(f"no description of the tensor {_named(key)}")
        if len(key) > MAX_NAME:
            raise self._damaged(f"a name of {len(key)} characters, {_named(key)}")
        name, shape, offsets = item.get("dtype"), item.get("shape"), item.get("data_offsets")
        if not isinstance(name, str) or not isinstance(shape, list) or not isinstance(offsets, list):
            raise self._damaged(f"no description of the tensor {_named(key)}")
        if name not in DTYPES:
            if name not in UNREAD:
                raise self._damaged(f"a dtype that the format does not know for the tensor {_named(key)}")
            raise CheckpointError(
                f"{self.name} stores {_named(key)} as {name}, which this version cannot read. "
                "Use a bf16, fp16 or fp8 file."
            )
        dtype = DTYPES[name]
        if not is_shape(shape):
            raise self._damaged(f"a shape for the tensor {_named(key)} that no tensor can have")
        if len(offsets) != 2 or not all(type(offset) is int and offset >= 0 for offset in offsets):
            raise self._damaged(f"data_offsets of the tensor {_named(key)} that are not two whole numbers")
        start, stop = offsets
        if stop - start != math.prod(shape) * dtype.itemsize:
            raise self._damaged(f"{stop - start} bytes for the tensor {_named(key)} of shape {shape}")
        return Place(tuple(shape), dtype, data_start + start, data_start + stop)

    def _check_bytes(self, data_start: int) -> None:
        """The tensors lie one behind the other and fill the file."""
        end, size = max((place.stop for place in self.places.values()), default=data_start), self._file.size
        if end > size:
            raise CheckpointError(
                f"{self.name} is cut short: its header promises {readable_size(end)}, "
                f"the file has {readable_size(size)}. Download it again."
            )
        at = data_start
        for key, place in sorted(self.places.items(), key=lambda item: (item[1].start, item[1].stop)):
            if place.start != at:
                what = "bytes that two tensors share" if place.start < at else "bytes of no tensor"
                raise self._damaged(f"{what} at the tensor {_named(key)}")
            at = place.stop
        if at != size:
            raise self._damaged(f"{size - at} bytes behind its last tensor")

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.name} is damaged: it has {what}. Download it again.")

    def tensor(self, place: Place) -> Tensor:
        """A read-only view of the mapped file."""
        if place.start == place.stop:
            return torch.empty(place.shape, dtype=place.dtype)
        return self._file.numbers(place.start, place.stop, place.dtype).view(place.shape)

    def release(self, place: Place) -> None:
        """Let go of the pages of a tensor that has been copied; reading it again only reads the file again."""
        self._file.release(place.start, place.stop)


def _named(key: str) -> str:
    return repr(key if len(key) <= 120 else key[:120] + "...")


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
