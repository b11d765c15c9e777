"""A model file in another precision, written one tensor after another under the names of the file it is made from."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..durable import written_aside
from ..errors import CheckpointError, InputError, OutputError
from ..memory.machine import check_disk
from ..models.transformer import WanTransformer
from ..ops.linear.formats import FORMATS
from ..request import CONVERSIONS
from .detect import identify
from .dialects import Kind, to_canonical
from .quantize import BLOCKS, can_quantize, check_quanto_map, packed, quantized, with_markers
from .reader import PackedTensor, StoredTensor, TensorSource, open_tensors
from .safetensors_file import write_safetensors

MARKERS = {"fp8": "float8_e4m3fn", "int8": "int8_tensorwise", "fp4": "nvfp4"}  # ComfyUI's names of the formats
Entry = tuple[str, tuple[int, ...], torch.dtype, "Reader"]
logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class Reader:
    """Gives a tensor when it is its turn to be written."""

    stored: StoredTensor
    part: str = ""

    def __call__(self) -> Tensor:
        if self.part:
            return _parts(self.stored)[self.part]
        return self.stored.dense(torch.bfloat16) if isinstance(self.stored, PackedTensor) else self.stored.read()


@lru_cache(maxsize=1)
def _parts(stored: PackedTensor) -> dict[str, Tensor]:
    """The tensors of one weight are written one after another, so only the last one's are kept."""
    parts = stored.read_parts()
    stored.release()
    return parts


@dataclass(frozen=True)
class Conversion:
    """What `convert` did. quantized: matrices that are in the new format now, of `tensors` in all."""

    path: Path
    size_bytes: int
    tensors: int
    quantized: int


def convert(source: str | Path, target: str | Path, to: str) -> Conversion:
    """Write a model file in another precision.

    Args:
        source: a transformer, audio adapter or text encoder, in any format that can be read; for bf16 any model.
        target: the .safetensors file to write, which must not exist.
        to: "fp8", "int8", "fp4" (the matrices of the blocks; the rest stays as it is, in 16 bits where it is a matrix)
            or "bf16".
    Raises: InputError or CheckpointError before anything is written, OutputError when it cannot be or has no room.
    """
    target = Path(target).expanduser()
    if to not in CONVERSIONS:
        raise InputError(f"A model cannot be converted to {to!r}. Use one of {', '.join(CONVERSIONS)}.")
    if target.suffix != ".safetensors":
        raise InputError(f"The converted model is a .safetensors file, not {target.name}. Choose such a name.")
    if target.exists():
        raise InputError(f"{target} exists already. Choose another name, or delete it first.")
    entries, layers = _plan(_open(Path(source).expanduser(), to), to)
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})} if layers else None
    try:
        check_disk(target.parent, sum(math.prod(shape) * dtype.itemsize for _, shape, dtype, _ in entries))
        with written_aside(target) as scratch:
            write_safetensors(scratch, _released(entries), metadata)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error.strerror}). Choose another folder.") from None
    finally:
        _parts.cache_clear()
    return Conversion(target, target.stat().st_size, len(entries), len(layers))


@dataclass(frozen=True)
class _Opened:
    """The source under its own names, its kind, and our names of its tensors."""

    source: TensorSource
    kind: Kind
    names: dict[int, str]


def _open(path: Path, to: str) -> _Opened:
    source = with_markers(open_tensors(path))
    identity = identify(source)
    if identity.found is None or (to != "bf16" and identity.kind not in BLOCKS):
        raise CheckpointError(
            f"{source.name} is {identity.family}, which is not quantized. Name a transformer, an audio "
            "adapter or a text encoder."
        )
    if path.is_file():
        check_quanto_map(path, source)
    own = packed(source)
    canonical = to_canonical(own, identity.found)
    return _Opened(own, identity.kind, {id(tensor): name for name, tensor in canonical.items()})


def _plan(opened: _Opened, to: str) -> tuple[list[Entry], dict[str, dict[str, str]]]:
    """What is written, and the marker of every quantized layer."""
    entries: list[Entry] = []
    layers: dict[str, dict[str, str]] = {}
    twice = 0
    for key, tensor in opened.source.items():
        name = opened.names.get(id(tensor), key)
        if to == "bf16" or not can_quantize(name, tensor, opened.kind):
            entries.append((key, tensor.shape, _plain_dtype(name, tensor, to), Reader(tensor)))
            continue
        if isinstance(tensor, PackedTensor):
            twice += tensor.format != to
        same = isinstance(tensor, PackedTensor) and tensor.format == to
        stored = tensor if same else quantized(f"{opened.source.name}: {name}", tensor, to, "cpu")
        layer = key.removesuffix(".weight")
        layers[layer] = {"format": MARKERS[to]}
        entries += [
            (f"{layer}.{part}", tuple(empty.shape), empty.dtype, Reader(stored, part))
            for part, empty in FORMATS[to].parts(tensor.shape).items()
        ]
    if twice:
        logger.warning(
            "%s: %d matrices are quantized already; quantizing them to %s loses precision a second time.",
            opened.source.name, twice, to,
        )  # fmt: skip
    if to == "fp8" and layers:
        marker = StoredTensor((0,), torch.float8_e4m3fn, lambda: torch.empty(0, dtype=torch.float8_e4m3fn))
        entries.append((_marker_name(layers), marker.shape, marker.dtype, Reader(marker)))
    return entries, layers


def _marker_name(layers: Iterable[str]) -> str:
    """`scaled_fp8`, behind the prefix that all names have."""
    first = next(iter(layers))
    start = min((first.find(word) for word in ("blocks.", "encoder.block.") if word in first), default=0)
    return first[:start] + "scaled_fp8"


def _plain_dtype(name: str, tensor: StoredTensor, to: str) -> torch.dtype:
    """Numbers that are not quantized keep their dtype, but for float32 matrices, which take 16 bits."""
    if not tensor.dtype.is_floating_point:
        return tensor.dtype
    is_packed = isinstance(tensor, PackedTensor) or tensor.dtype.itemsize == 1
    is_matrix = len(tensor.shape) > 1 and not WanTransformer.keep_float32(name)
    if is_packed or (is_matrix and (to == "bf16" or tensor.dtype.itemsize > 2)):
        return torch.bfloat16
    return tensor.dtype


def _released(entries: list[Entry]) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, Callable[[], Tensor]]]:
    """The entries, each letting go of its file pages once it was read in full."""
    for key, shape, dtype, reader in entries:

        def read(reader: Reader = reader, dtype: torch.dtype = dtype) -> Tensor:
            tensor = reader()
            if not reader.part:
                tensor = tensor.to(dtype, copy=True)
                reader.stored.release()
            return tensor

        yield key, shape, dtype, read
