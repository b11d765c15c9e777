"""The text encoder's tokenizer, from whatever lies next to the weights; never from the network."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..checkpoints.folders import find_tokenizer
from ..checkpoints.reader import open_tensors
from ..errors import CheckpointError
from ..untrusted import answered, read_json, regular_file
from .tokenizer_steps import is_bounded_table, wrong_step

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
WANTED = "a UMT5 tokenizer: the folder google/umt5-xxl, its tokenizer.json or its spiece.model"
MAX_MODEL_BYTES = 64 * 2**20
EMBEDDED = "spiece_model"  # the key under which ComfyUI's text encoder files carry the tokenizer


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the text encoder.

    Args:
        source: tokenizer.json, spiece.model, a folder with one of them (or a model folder with google/umt5-xxl in it),
            or a text encoder's .safetensors file that carries its tokenizer.
    Raises: CheckpointError when there is none, or it is another model's.
    Source: the tokenizer's own file decides how text is cut; transformers' per-model classes are not used, since what
        they add differs between its versions.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    with answered(str(source)[:200], CheckpointError):
        path = _tokenizer_file(Path(source).expanduser())
    if path.suffix == ".json":
        if not isinstance(data := read_json(path, WANTED, CheckpointError), dict):
            raise CheckpointError(f"{path} is no tokenizer. Use {WANTED}.")
        if (what := wrong_step(data)) is not None:
            raise CheckpointError(f"{path.name} is no tokenizer that is used here: it has {what}. Use {WANTED}.")
        with _library(path.name):
            inner = Tokenizer.from_file(str(path))
    elif path.suffix == ".model":
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise CheckpointError(f"{path.name} has {size / 1e6:.0f} MB, more than any tokenizer. Use {WANTED}.")
        inner = from_sentencepiece(path.read_bytes(), path.name)
    else:
        inner = from_sentencepiece(_embedded(path), path.name)
    if any(inner.token_to_id(token) is None for token in (PAD, END, UNKNOWN)):
        raise _another_model(path.name)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, padding_side="right"
    )


@contextmanager
def _library(name: str) -> Iterator[None]:
    """Around the tokenizers library, which raises bare exceptions, and of Rust's kind that are none of Python's."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, CheckpointError):
        raise
    except BaseException:  # noqa: BLE001
        raise CheckpointError(f"{name} is no tokenizer, or is damaged. Use {WANTED}.") from None


def _another_model(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is the tokenizer of another model: it lacks {PAD}, {END} or {UNKNOWN}. Use {WANTED}."
    )


def _tokenizer_file(path: Path) -> Path:
    if not path.exists():
        raise CheckpointError(f"There is no tokenizer {path}. Use {WANTED}.")
    if not path.is_dir():
        return regular_file(path, WANTED, CheckpointError)
    found = find_tokenizer(path)
    if found is None:
        raise CheckpointError(f"The folder {path} has no tokenizer. Use {WANTED}.")
    return found


def _embedded(path: Path) -> bytes:
    source = open_tensors(path)
    if EMBEDDED not in source:
        raise CheckpointError(f"{path.name} carries no tokenizer. Use {WANTED}.")
    stored = source[EMBEDDED]
    if stored.dtype not in (torch.uint8, torch.int8) or len(stored.shape) != 1 or stored.shape[0] > MAX_MODEL_BYTES:
        raise CheckpointError(f"{path.name} carries a tokenizer that is damaged. Use {WANTED}.")
    return stored.read().numpy().tobytes()


Value = bytes | int | float


@dataclass(frozen=True)
class _Piece:
    text: str
    score: float
    kind: int


_NORMAL, _UNKNOWN_KIND, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)


def from_sentencepiece(data: bytes, name: str) -> Tokenizer:
    """A fast tokenizer from a SentencePiece unigram model.

    Source: sentencepiece_model.proto; T5 ends every text with </s>.
    """
    try:
        pieces, charsmap, collapses = _parse(data)
    except (ValueError, IndexError, KeyError, struct.error):
        raise CheckpointError(f"{name} is no SentencePiece model. Use {WANTED}.") from None
    if not is_bounded_table(charsmap):
        raise CheckpointError(f"{name} puts texts in place of letters that could fill the memory. Use {WANTED}.")
    names = [piece.text for piece in pieces]
    unknown = next((n for n, piece in enumerate(pieces) if piece.kind == _UNKNOWN_KIND), None)
    if unknown is None or END not in names:
        raise _another_model(name)
    with _library(name):
        return _built(pieces, unknown, charsmap, collapses)


def _built(pieces: list[_Piece], unknown: int, charsmap: bytes, collapses: bool) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    names = [piece.text for piece in pieces]
    has_bytes = any(piece.kind == _BYTE for piece in pieces)
    tokenizer = Tokenizer(Unigram([(piece.text, piece.score) for piece in pieces], unknown, has_bytes))
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if collapses:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback()] * has_bytes + [decoders.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, names.index(END))]
    )
    special = [piece.text for piece in pieces if piece.kind in (_CONTROL, _UNKNOWN_KIND)]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    return tokenizer


def _parse(data: bytes) -> tuple[list[_Piece], bytes, bool]:
    """The pieces, the normalizer's character map, and whether runs of spaces become one."""
    pieces, charsmap, collapses = list[_Piece](), b"", True
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(dict(_fields(_bytes(value)))))
        elif number == 3:
            inner = dict(_fields(_bytes(value)))
            charsmap, collapses = _bytes(inner.get(2, b"")), bool(inner.get(4, 1))
    return pieces, charsmap, collapses


def _piece(fields: dict[int, Value]) -> _Piece:
    text, score, kind = _bytes(fields[1]).decode(), fields.get(2, 0.0), fields.get(3, _NORMAL)
    if not isinstance(score, float) or not isinstance(kind, int) or not math.isfinite(score):
        raise ValueError("a piece that is none")
    return _Piece(text, score, kind)


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where bytes belong")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """(number, value) of each field of a protobuf message; only the wire types that the format uses."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        value: Value
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 1:
            value, at = struct.unpack_from("<d", data, at)[0], at + 8
        elif wire == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("cut short")
            value, at = data[at : at + size], at + size
        elif wire == 5:
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        else:
            raise ValueError(f"wire type {wire}")
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if shift > 63:
            raise ValueError("a number without end")
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
