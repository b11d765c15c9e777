"""The GGUF format: a header of settings and tensor descriptions, then the tensors, quantized in small blocks or not.

Read here rather than through the library because only a few settings are wanted (a text encoder's file has its whole
vocabulary among them), and because what is cut short should be named in a plain sentence.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, UnsupportedError
from ..ops.linear.gguf import LAYOUTS
from .mapped import MAX_RANK, MappedFile, Span, first_overlap, is_shape, readable_size

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
ALIGNMENT, MAX_ALIGNMENT = "general.alignment", 1 << 20
MAX_ENTRIES = 1 << 22  # of tensors, settings and lists together; the vocabulary of UMT5 has 256,000 words
MAX_NAME_BYTES = 1 << 12
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
        self._file = MappedFile(path)
        self.name, self.size = self._file.name, self._file.size
        self._at, self._entries = 4, 0
        try:
            self.places = self._read_header()
        except (struct.error, UnicodeDecodeError, OverflowError):
            raise self._damaged("an unreadable header") from None
        end = max((place.stop for place in self.places.values()), default=0)
        if end > self.size:
            raise CheckpointError(
                f"{self.name} is cut short: its header promises {readable_size(end)}, the file has "
                f"{readable_size(self.size)}. Download it again."
            )
        shared = first_overlap(Span(key, place.start, place.stop) for key, place in self.places.items())
        if shared:
            raise self._damaged(f"bytes that the tensors {shared[0]!r} and {shared[1]!r} share")

    def _read_header(self) -> dict[str, GGUFPlace]:
        version = self._number("I")
        if version not in (2, 3):
            raise UnsupportedError(f"{self.name} is GGUF version {version}; versions 2 and 3 can be read.")
        num_tensors, num_settings = self._count(), self._count()
        settings: dict[str, Any] = {}
        for _ in range(num_settings):
            key = self._string()
            if key in settings:
                raise self._damaged(f"the setting {key!r} twice")
            settings[key] = self._setting(key)
        found = [self._description() for _ in range(num_tensors)]
        alignment = settings.get(ALIGNMENT, 32)
        if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT:
            raise self._damaged("an alignment that cannot be one")
        data_start = -(-self._at // alignment) * alignment
        places: dict[str, GGUFPlace] = {}
        for key, shape, kind, offset in found:
            name = _t5_name(key)
            if name in places:
                raise self._damaged(f"two tensors called {key!r}")
            places[name] = self._place(key, shape, kind, data_start + offset, settings.get(ORIGINAL_SHAPE + key))
        return places

    def _description(self) -> tuple[str, tuple[int, ...], int, int]:
        key = self._string()
        num_sides = self._number("I")
        sides = [self._number("Q") for _ in range(min(num_sides, MAX_RANK + 1))]
        if not is_shape(sides):
            raise self._damaged(f"a shape for the tensor {key!r} that no tensor can have")
        return key, tuple(reversed(sides)), self._number("I"), self._number("Q")

    def _place(self, key: str, shape: tuple[int, ...], kind: int, start: int, original: Any) -> GGUFPlace:
        if kind not in DENSE and kind not in PACKED:
            raise UnsupportedError(
                f"{self.name} stores {key!r} as {UNREAD.get(kind, f'type {kind}')}, which cannot be read. "
                f"Use a file in one of {', '.join(PACKED.values())}, BF16 or F16."
            )
        count, columns = math.prod(shape), shape[-1] if shape else 1
        if original is not None:
            if not is_shape(original) or math.prod(original) != count:
                raise self._damaged(f"{count} numbers for {key!r}, whose original shape has another count")
            shape = tuple(original)
        if kind in DENSE:
            return GGUFPlace(shape, DENSE[kind], None, start, start + count * DENSE[kind].itemsize)
        layout = LAYOUTS[PACKED[kind]]
        if columns % layout.block_size:
            raise self._damaged(f"rows of {columns} numbers in {key!r}, in blocks of {layout.block_size}")
        if not count:
            raise self._damaged(f"no numbers in {key!r}")
        size = count // layout.block_size * layout.block_bytes
        return GGUFPlace(shape, torch.uint8, PACKED[kind], start, start + size)

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._file.data, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def _count(self) -> int:
        """How many of something follow; all of them together are few enough to be read in a few seconds."""
        count: int = self._number("Q")
        self._entries += count
        if self._entries > MAX_ENTRIES:
            raise self._damaged(f"{self._entries} entries announced in its header")
        return count

    def _string(self) -> str:
        length = self._number("Q")
        if length > MAX_NAME_BYTES:
            raise self._damaged(f"a name of {length} bytes")
        start = self._at
        self._skip(length)
        return self._file.data[start : self._at].decode()

    def _skip(self, num_bytes: int) -> None:
        if self._at + num_bytes > self.size:
            raise struct.error
        self._at += num_bytes

    def _setting(self, key: str) -> Any:
        """The value of a setting that tensors depend on; of others only that it is there."""
        kind = self._number("I")
        if kind == STRING:
            self._skip(self._number("Q"))
            return ""
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind != ARRAY:
            raise self._damaged(f"a setting of type {kind}")
        kind, count = self._number("I"), self._count()
        if kind == STRING:
            for _ in range(count):
                self._skip(self._number("Q"))
            return ""
        if kind not in SCALARS:
            raise self._damaged(f"a list of type {kind}, where only numbers and text are read")
        if key.startswith(ORIGINAL_SHAPE) and count <= MAX_RANK:
            return [self._number(SCALARS[kind]) for _ in range(count)]
        self._skip(count * struct.calcsize(f"<{SCALARS[kind]}"))
        return ()

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.name} is damaged: it has {what}. Download it again.")

    def bytes(self, place: GGUFPlace) -> Tensor:
        """The stored bytes as a read-only view [n] uint8 of the mapped file."""
        return self._file.bytes(place.start, place.stop)

    def tensor(self, place: GGUFPlace) -> Tensor:
        """A tensor of plain numbers."""
        return self._file.numbers(place.start, place.stop, place.dtype).view(place.shape)

    def release(self, place: GGUFPlace) -> None:
        """Let go of the pages of a tensor that has been copied; reading it again only reads the file again."""
        self._file.release(place.start, place.stop)


def _t5_name(key: str) -> str:
    for pattern, name in T5_NAMES:
        renamed, count = re.subn("^" + pattern, name, key)
        if count:
            return renamed
    return key
