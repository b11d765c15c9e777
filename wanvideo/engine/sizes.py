"""Sizes of models from the headers of their files: what they will take once loaded, before anything is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from ..checkpoints.checkpoint import with_adapter
from ..checkpoints.dialects import Kind
from ..checkpoints.load import Weights, open_checkpoint
from ..checkpoints.quantize import BLOCKS, TEXT_ENCODER_FORMATS, can_quantize
from ..checkpoints.reader import PackedTensor, StoredTensor, TensorSource
from ..lora.file import open_lora, read_lora
from ..lora.use import LoraUse
from ..memory.planner import ModelWeights
from ..ops.linear.formats import FORMATS
from ..ops.precision import DTYPES
from .files import ResolvedFiles

if TYPE_CHECKING:
    from ..models.transformer import TransformerConfig


def model_sizes(files: ResolvedFiles, dtype: torch.dtype, quantize: str | None = None) -> ModelWeights:
    """Sizes of a run's models as they will be held: matrices in their stored or wanted format, the rest in `dtype`.

    Only headers are read, and none of a `Checkpoint`, which has its own.
    """
    from ..models.transformer import TransformerConfig, WanTransformer

    adapter = None if files.adapter is None else open_checkpoint(files.adapter, Kind.ADAPTER)
    source = with_adapter(open_checkpoint(files.transformer, Kind.TRANSFORMER), adapter)
    config = TransformerConfig.from_shapes(source.shapes)
    blocks: dict[int, int] = defaultdict(int)
    other, formats = 0, Counter[str]()
    for name, tensor in source.items():
        kept = torch.float32 if WanTransformer.keep_float32(name) else dtype
        to = quantize if quantize and can_quantize(name, tensor, Kind.TRANSFORMER) else None
        size = _bytes(name, tensor, kept, Kind.TRANSFORMER, to)
        if name.startswith("blocks."):
            blocks[int(name.split(".")[1])] += size
            if len(tensor.shape) == 2:
                formats[_format(tensor, to) or str(dtype)] += size
        else:
            other += size
    stored = formats.most_common(1)[0][0]
    for name, size in _branches(files.loras, source, dtype, quantize).items():
        if name.startswith("blocks."):
            blocks[int(name.split(".")[1])] += size
        else:
            other += size
    return ModelWeights(
        config.num_layers, max(blocks.values()), other, config.dim, config.ffn_dim, _audio_tokens(config),
        DENSE.get(stored, stored), _all_bytes(files.vae, Kind.VAE, dtype),
        text_encoder_bytes(files.text_encoder, dtype, quantize),
    )  # fmt: skip


def _branches(loras: Iterable[LoraUse], source: TensorSource, dtype: torch.dtype, quantize: str | None) -> Counter[str]:
    """Bytes of LoRAs that stay beside a matrix, by its name: one that is quantized, or whose strength changes."""
    from ..models.transformer import WanTransformer

    sizes = Counter[str]()
    for use in loras:
        entries = read_lora(open_lora(use.file), source.shapes).entries if any(use.strengths) else {}
        for name, deltas in entries.items():
            tensor = source[name]
            to = quantize if quantize and can_quantize(name, tensor, Kind.TRANSFORMER) else None
            is_dense = not name.startswith("blocks.") or _format(tensor, to) is None
            is_merged = is_dense and use.merge and len(use.strengths) == 1
            if use.changes(name) and name.endswith(".weight") and len(tensor.shape) == 2 and not is_merged:
                kept = torch.float32 if WanTransformer.keep_float32(name) else dtype
                sizes[name] += sum(delta.kept_numbers for delta in deltas) * kept.itemsize
    return sizes


DENSE = {str(dtype): name for name, dtype in DTYPES.items()}


def _audio_tokens(config: TransformerConfig) -> int:
    return config.audio.num_tokens if config.audio else 0


def _format(tensor: StoredTensor, to: str | None) -> str | None:
    return tensor.format if isinstance(tensor, PackedTensor) else to


def _bytes(name: str, tensor: StoredTensor, dtype: torch.dtype, kind: Kind, to: str | None = None) -> int:
    stored, start = _format(tensor, to), BLOCKS.get(kind)
    is_packed = stored is not None and start is not None and name.startswith(start) and len(tensor.shape) == 2
    if stored is None or not is_packed:  # outside of blocks a quantized matrix is multiplied out when it is loaded
        return _count(tensor) * dtype.itemsize
    return sum(part.numel() * part.element_size() for part in FORMATS[stored].parts(tuple(tensor.shape)).values())


def _count(tensor: StoredTensor) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def _all_bytes(weights: Weights | None, kind: Kind, dtype: torch.dtype) -> int:
    if weights is None:
        return 0
    return sum(_bytes(name, tensor, dtype, kind) for name, tensor in open_checkpoint(weights, kind).canonical.items())


def text_encoder_bytes(weights: Weights | None, dtype: torch.dtype, quantize: str | None) -> int:
    """What a text encoder takes once it is loaded, whatever the format of its file. quantize: as of the transformer."""
    if weights is None:
        return 0
    size = 0
    for name, tensor in open_checkpoint(weights, Kind.TEXT_ENCODER).canonical.items():
        to = quantize if quantize and can_quantize(name, tensor, Kind.TEXT_ENCODER) else None
        size += _bytes(name, tensor, dtype, Kind.TEXT_ENCODER, to and TEXT_ENCODER_FORMATS.get(to, to))
    return size
