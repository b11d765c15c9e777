"""The GGUF format: a header of settings and tensor descriptions, then the tensors, quantized in small blocks or not.

Read here rather than through the library because only a few settings are wanted (a text encoder's file has its whole
vocabulary among them), and because what is cut short should be named in a plain sentence.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, UnsupportedError
from ..ops.linear.gguf import LAYOUTS

DENSE = {
    0: torch.float32, 1: torch.float16, 24: torch.int8, 25: torch.int16, 26: torch.int32, 27: torch.int64,
    28: torch.float64, 30: torch.bfloat16,
}  # fmt: skip
PACKED = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
}  # fmt: skip
UNREAD = {
    15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # what the shape was before it was brought to four sides at most
LARGEST_COUNT, MOST_SIDES = 1 << 24, 8
PAGE = mmap.ALLOCATIONGRANULARITY
# llama.cpp's names of a T5 encoder, as those of transformers.
T5_NAMES = (
    (r"token_embd\.", "shared."),
    (r"enc\.output_norm\.", "encoder.final_layer_norm."),
    (r"enc\.blk\.(\d+)\.attn_norm\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"enc\.blk\.(\d+)\.attn_rel_b\.", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (r"enc\.blk\.(\d+)\.attn_([qkvo])\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (r"enc\.blk\.(\d+)\.ffn_norm\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"enc\.blk\.(\d+)\.ffn_gate\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"enc\.blk\.(\d+)\.ffn_up\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"enc\.blk\.(\d+)\.ffn_down\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)


@dataclass(frozen=True)
class GGUFPlace:
    """Where one tensor lies: bytes [start, stop) of the file. format: a block format, or None for plain numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    format: str | None
    start: int
    stop: int


class GGUFFile:
    """A memory-mapped GGUF file; it stays mapped as long as a tensor of it is in use.

    Raises: CheckpointError when the header does not fit the file, UnsupportedError for formats that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.size = path.name, path.stat().st_size
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 4
        try:
            self.places = self._read_header()
        except (struct.error, UnicodeDecodeError, OverflowError):
            raise self._damaged("an unreadable header") from None
        end = max((place.stop for place in self.places.values()), default=0)
        if end > self.size:
            raise CheckpointError(
                f"{self.name} is cut short: its header promises {end} bytes, the file has {self.size}. "
                "Download it again."
            )

    def _read_header(self) -> dict[str, GGUFPlace]:
        version = self._number("I")
        if version not in (2, 3):
            raise UnsupportedError(f"{self.name} is GGUF version {version}; versions 2 and 3 can be read.")
        num_tensors, num_settings = self._count(), self._count()
        settings = {self._string(): self._value(self._number("I")) for _ in range(num_settings)}
        found = [self._description() for _ in range(num_tensors)]
        alignment = settings.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._damaged(f"an alignment of {alignment!r}")
        data_start = -(-self._at // alignment) * alignment
        places = {}
        for key, shape, kind, offset in found:
            original = settings.get(ORIGINAL_SHAPE + key)
            place = self._place(key, shape, kind, data_start + offset, original)
            if _t5_name(key) in places:
                raise self._damaged(f"two tensors called {key!r}")
            places[_t5_name(key)] = place
        return places

    def _description(self) -> tuple[str, tuple[int, ...], int, int]:
        key = self._string()
        num_sides = self._number("I")
        if num_sides > MOST_SIDES:
            raise self._damaged(f"{num_sides} sides for the tensor {key!r}")
        sides = [self._number("Q") for _ in range(num_sides)]
        return key, tuple(reversed(sides)), self._number("I"), self._number("Q")

    def _place(self, key: str, shape: tuple[int, ...], kind: int, start: int, original: Any) -> GGUFPlace:
        if kind not in DENSE and kind not in PACKED:
            raise UnsupportedError(
                f"{self.name} stores {key!r} as {UNREAD.get(kind, f'type {kind}')}, which cannot be read. "
                f"Use a file in one of {', '.join(PACKED.values())}, BF16 or F16."
            )
        count, columns = math.prod(shape), shape[-1] if shape else 1
        if original is not None:
            if not isinstance(original, list) or math.prod(original) != count:
                raise self._damaged(f"{count} numbers for {key!r} of shape {original}")
            shape = tuple(map(int, original))
        if kind in DENSE:
            return GGUFPlace(shape, DENSE[kind], None, start, start + count * DENSE[kind].itemsize)
        layout = LAYOUTS[PACKED[kind]]
        if columns % layout.block_size:
            raise self._damaged(f"rows of {columns} numbers in {key!r}, in blocks of {layout.block_size}")
        size = count // layout.block_size * layout.block_bytes
        return GGUFPlace(shape, torch.uint8, PACKED[kind], start, start + size)

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._map, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def _count(self) -> int:
        count = self._number("Q")
        if count > LARGEST_COUNT:
            raise self._damaged(f"{count} entries announced")
        return count

    def _string(self) -> str:
        length = self._number("Q")
        if self._at + length > self.size:
            raise struct.error
        self._at += length
        return self._map[self._at - length : self._at].decode()

    def _value(self, kind: int) -> Any:
        """A setting; of lists of text, which nothing needs, only that they are there."""
        if kind == STRING:
            return self._string()
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind != ARRAY:
            raise self._damaged(f"a setting of type {kind}")
        kind, count = self._number("I"), self._count()
        if kind == STRING:
            for _ in range(count):
                length = self._number("Q")
                self._at += length
            return None
        if kind == ARRAY:
            return [self._value(ARRAY) for _ in range(count)]
        if kind not in SCALARS:
            raise self._damaged(f"a list of type {kind}")
        values = struct.unpack_from(f"<{count}{SCALARS[kind]}", self._map, self._at)
        self._at += struct.calcsize(f"<{count}{SCALARS[kind]}")
        return list(values)

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.name} is damaged: it has {what}. Download it again.")

    def bytes(self, place: GGUFPlace) -> Tensor:
        """The stored bytes as a read-only view [n] uint8 of the mapped file."""
        if place.start == place.stop:
            return torch.empty(0, dtype=torch.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the buffer is read-only, and nobody writes to it
            return torch.frombuffer(self._map, dtype=torch.uint8, count=place.stop - place.start, offset=place.start)

    def tensor(self, place: GGUFPlace) -> Tensor:
        """A tensor of plain numbers."""
        data = self.bytes(place)
        if place.start % place.dtype.itemsize:
            data = data.clone()
        return data.view(place.dtype).view(place.shape)

    def release(self, place: GGUFPlace) -> None:
        """Let go of the pages of a tensor that has been copied; reading it again only reads the file again."""
        start, stop = -(-place.start // PAGE) * PAGE, place.stop // PAGE * PAGE
        if stop > start and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _t5_name(key: str) -> str:
    for pattern, name in T5_NAMES:
        renamed, count = re.subn("^" + pattern, name, key)
        if count:
            return renamed
    return key
