"""Models from files: recognized, renamed, and filled one tensor at a time.

A model is built without memory, then every tensor goes from its mapped file straight to the wanted dtype and device;
matrices of blocks keep the format they are stored in, or get one on the way. So the peak of a load is the model itself
and one tensor. Parameters always own their memory: none is a view of a file,
which may be changed or deleted while the model is in use, nor of a caller's state dict.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError
from ..memory.placement import check_parameters
from ..ops.linear.formats import FORMATS, QUANTIZERS, SealedLinear
from ..ops.linear.layer import Linear
from ..untrusted import answered
from .checkpoint import Checkpoint, Tensors, recognize, with_adapter
from .detect import DTYPE_NAMES, check_kind
from .dialects import Kind
from .fit import check_finite, check_tensors
from .folders import file_for
from .quantize import BLOCKS, can_quantize, quantized
from .reader import PackedTensor, TensorSource

if TYPE_CHECKING:
    from ..models.clip_vision import ClipVisionEncoder
    from ..models.syncnet import SyncNet
    from ..models.text_encoder import TextEncoder
    from ..models.tiny_vae import TinyVAE
    from ..models.transformer import WanTransformer
    from ..models.vae import WanVAE
    from ..models.wav2vec2 import AudioEncoder

Weights = Tensors | Checkpoint
Device = torch.device | str
OnlyBlocks = Callable[[int], bool]
Model = TypeVar("Model", bound=nn.Module)
logger = logging.getLogger("wanvideo")


def load_transformer(
    base: Weights,
    adapter: Weights | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: Device = "cpu",
    quantize: str | None = None,
    only_blocks: OnlyBlocks | None = None,
) -> WanTransformer:
    """The transformer, with its audio adapter if there is one.

    Args:
        base: Wan2.1-I2V-14B: a file, its shards, an official folder, a state dict or a `Checkpoint`; the adapter may
            be merged into it.
        adapter: MultiTalk or InfiniteTalk, single or multi, where it is a file of its own.
        dtype: of all weights but quantized ones and the few small ones that stay in float32.
        quantize: "fp8", "int8" or "fp4" for the matrices of the blocks that are stored as plain numbers; None for none.
            Matrices that are quantized in their file keep that format.
        only_blocks: says of a block's number whether it is read; the others stay on the meta device.
    Raises: CheckpointError before anything is read if a file is of another kind or the two do not fit each other.
    """
    from ..models.transformer import TransformerConfig, WanTransformer

    _check_quantize(quantize)
    checkpoint = open_checkpoint(base, Kind.TRANSFORMER)
    extra = None if adapter is None else open_checkpoint(adapter, Kind.ADAPTER)
    source, family = with_adapter(checkpoint, extra), checkpoint.identity.family
    if extra is not None:
        if checkpoint.identity.has_audio:
            logger.warning("%s has an audio adapter already; that of %s takes its place.", checkpoint.name, extra.name)
        family = family.removesuffix(" with an audio adapter") + " with an audio adapter"
    chosen = _quantized(source, Kind.TRANSFORMER, quantize, device)
    model = _build(TransformerConfig, WanTransformer, chosen, Kind.TRANSFORMER, family, dtype, device, only_blocks)
    if not (checkpoint.is_borrowed or (extra is not None and extra.is_borrowed)):
        model.source = source
    return model


def load_vae(source: Weights, *, dtype: torch.dtype = torch.bfloat16, device: Device = "cpu") -> WanVAE:
    """The Wan2.1 VAE from a file, an official folder or a state dict."""
    from ..models.vae import VAEConfig, WanVAE

    return _load(VAEConfig, WanVAE, source, Kind.VAE, dtype, device)


def load_tiny_vae(source: Weights, *, dtype: torch.dtype = torch.float16, device: Device = "cpu") -> TinyVAE:
    """The decoder of a tiny VAE of Wan2.1 (taew2_1) from a file or a state dict, for previews."""
    from ..models.tiny_vae import TinyVAE, TinyVAEConfig

    return _load(TinyVAEConfig, TinyVAE, source, Kind.TINY_VAE, dtype, device)


def load_text_encoder(
    source: Weights,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: Device = "cpu",
    quantize: str | None = None,
    only_blocks: OnlyBlocks | None = None,
) -> TextEncoder:
    """The UMT5 text encoder from a file, an official folder or a state dict; arguments as in `load_transformer`."""
    from ..models.text_encoder import TextEncoder, TextEncoderConfig

    _check_quantize(quantize)
    checkpoint = open_checkpoint(source, Kind.TEXT_ENCODER)
    tensors, family = _quantized(checkpoint.canonical, Kind.TEXT_ENCODER, quantize, device), checkpoint.identity.family
    model = _build(TextEncoderConfig, TextEncoder, tensors, Kind.TEXT_ENCODER, family, dtype, device, only_blocks)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear):
            _replace(model, name, SealedLinear(layer))
    return model


def load_clip_vision(
    source: Weights, *, dtype: torch.dtype = torch.bfloat16, device: Device = "cpu"
) -> ClipVisionEncoder:
    """The CLIP image encoder from a file, an official folder or a state dict."""
    from ..models.clip_vision import ClipVisionConfig, ClipVisionEncoder

    return _load(ClipVisionConfig, ClipVisionEncoder, source, Kind.CLIP_VISION, dtype, device)


def load_audio_encoder(source: Weights, *, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> AudioEncoder:
    """The wav2vec2 encoder from a file, a Hugging Face folder or a state dict."""
    from ..models.wav2vec2 import AudioEncoder, AudioEncoderConfig

    return _load(AudioEncoderConfig, AudioEncoder, source, Kind.AUDIO_ENCODER, dtype, device)


def load_syncnet(source: Weights, *, device: Device = "cpu") -> SyncNet:
    """SyncNet from a file or a state dict, in float32."""
    from ..models.syncnet import SyncNet, SyncNetConfig

    return _load(SyncNetConfig, SyncNet, source, Kind.SYNCNET, torch.float32, device)


def open_checkpoint(weights: Weights, kind: Kind) -> Checkpoint:
    """Files, a folder that has them, or a state dict, recognized as a model of a kind; no tensor is read.

    Every `load_*` takes a checkpoint in place of what it was opened from, and reads no header again.
    Raises: CheckpointError with what it is in truth, what is wanted, and a file that fits.
    """
    if isinstance(weights, Checkpoint):
        checkpoint = weights
    elif isinstance(weights, str | Path) and Path(weights).expanduser().is_dir():
        return file_for(weights, kind)
    else:
        checkpoint = recognize(weights)
    check_kind(checkpoint.identity, checkpoint.name, kind)
    return checkpoint


def _load(config: type, model: type[Model], weights: Weights, kind: Kind, dtype: torch.dtype, device: Device) -> Model:
    checkpoint = open_checkpoint(weights, kind)
    return _build(config, model, checkpoint.canonical, kind, checkpoint.identity.family, dtype, device)


def _check_quantize(quantize: str | None) -> None:
    if quantize is not None and quantize not in QUANTIZERS:
        raise InputError(f"Weights cannot be quantized to {quantize!r}. Use {', '.join(QUANTIZERS)}, or None.")


def _quantized(source: TensorSource, kind: Kind, quantize: str | None, device: Device) -> TensorSource:
    """The matrices of the blocks in the format that is asked for, but for those that have one."""
    if quantize is None:
        return source
    tensors, kept = dict(source), Counter[str]()
    for name, tensor in source.items():
        if not can_quantize(name, tensor, kind):
            continue
        if not isinstance(tensor, PackedTensor):
            tensors[name] = quantized(f"{source.name}: {name}", tensor, quantize, device)
        elif tensor.format != quantize:
            kept[tensor.format] += 1
    for stored, count in kept.items():
        logger.info("%s: %d matrices are stored as %s and stay so, not %s.", source.name, count, stored, quantize)
    return source.replaced(tensors)


@torch.inference_mode(False)  # tensors made in it could never be streamed or changed outside
@torch.no_grad()
def _build(
    config: Any, model: Callable[[Any], Model], source: TensorSource, kind: Kind, family: str,
    dtype: torch.dtype, device: Device, only_blocks: OnlyBlocks | None = None,
) -> Model:  # fmt: skip
    start = time.perf_counter()
    with answered(source.name, CheckpointError):
        try:
            sizes = config.from_shapes(source.shapes)
        except CheckpointError as error:
            raise CheckpointError(f"{source.name}: {error}") from None
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=True), answered(source.name, CheckpointError):
        empty = model(sizes)
    filled = fill(empty, source, kind, dtype=dtype, device=device, only_blocks=only_blocks)
    tensors = [tensor for tensor in (*filled.parameters(), *filled.buffers()) if not tensor.is_meta]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    formats = Counter(stored.format for stored in packed_layers(source, kind).values())
    numbers = " + ".join([DTYPE_NAMES.get(dtype, str(dtype)), *(f"{n} x {item}" for item, n in formats.items())])
    logger.info(
        "Loaded %s from %s: %d tensors, %.0f MB %s on %s, %.1f s.", family, source.name, len(tensors), size / 1e6,
        numbers, torch.device(device), time.perf_counter() - start,
    )  # fmt: skip
    return filled


def packed_layers(source: TensorSource, kind: Kind) -> dict[str, PackedTensor]:
    """The layers of the blocks whose weights are quantized, and these weights."""
    start = BLOCKS.get(kind)
    return {
        name.removesuffix(".weight"): tensor
        for name, tensor in source.items()
        if start and name.startswith(start) and isinstance(tensor, PackedTensor)
    }


def fill(
    model: Model, source: TensorSource, kind: Kind, *, dtype: torch.dtype, device: Device,
    only_blocks: OnlyBlocks | None = None,
) -> Model:  # fmt: skip
    """Give a model that was built on the meta device its weights.

    Args:
        source: canonical names. kind: says which tensors do no harm when they are too many or missing.
        dtype: what floating-point tensors become, but for those of which `model.keep_float32(name)` says otherwise and
            the quantized matrices of blocks, whose layers take the format of their weights.
        only_blocks: as in `load_transformer`.
    Returns: the model in eval mode, without gradients, on `device`.
    Raises: CheckpointError naming what is missing, left over or of another shape.
    """
    wanted = model.state_dict(keep_vars=True)
    check_tensors(source, wanted, kind)
    keep_float32: Callable[[str], bool] = getattr(model, "keep_float32", lambda name: False)
    packed_names = set()
    where: Callable[[str], Device] = partial(_device_of, kind=kind, device=device, only_blocks=only_blocks)
    for name, stored in packed_layers(source, kind).items():
        dense = model.get_submodule(name)
        if isinstance(dense, nn.Linear):
            _replace(model, name, _packed_layer(dense, stored, where(name)))
            packed_names.add(f"{name}.weight")
    placed: dict[int, Tensor] = {}  # tensors that have two names stay one
    for name, empty in wanted.items():
        if name in packed_names:
            continue
        if id(empty) not in placed:
            target = empty.dtype
            if target.is_floating_point:
                target = torch.float32 if keep_float32(name) else dtype
            tensor = _owned(source, name, empty, target, where(name))
            placed[id(empty)] = nn.Parameter(tensor, False) if isinstance(empty, nn.Parameter) else tensor
        _assign(model, name, placed[id(empty)])
    for name, buffer in model.named_buffers():
        if name not in wanted and where(name) != "meta":
            _assign(model, name, _unsaved(name, buffer).to(device))
    model.eval().requires_grad_(False)
    if only_blocks is None:
        check_parameters(model, device)
    return model


def _device_of(name: str, kind: Kind, device: Device, only_blocks: OnlyBlocks | None) -> Device:
    """Where a tensor goes: to the meta device if it belongs to a block that is not read."""
    start = BLOCKS.get(kind)
    if only_blocks is None or start is None or not name.startswith(start):
        return device
    return device if only_blocks(int(name.removeprefix(start).partition(".")[0])) else "meta"


def _packed_layer(dense: nn.Linear, stored: PackedTensor, device: Device) -> nn.Linear:
    """The layer in the format of its weight, filled, its bias still empty."""
    layer = FORMATS[stored.format].empty((dense.out_features, dense.in_features), dense.bias is not None)
    if device == "meta":
        return layer
    for name, tensor in stored.read_parts().items():
        wanted = getattr(layer, name)
        own = tensor
        # A second copy of every matrix costs time, and host allocators keep the gaps that the first ones leave.
        if not stored.is_computed or tensor.dtype != wanted.dtype or tensor.shape != wanted.shape:
            own = torch.empty_like(wanted, device=device, requires_grad=False).copy_(tensor)
        setattr(layer, name, nn.Parameter(own, False) if name in layer._parameters else own)
    stored.release()
    return layer


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def _owned(source: TensorSource, name: str, empty: Tensor, dtype: torch.dtype, device: Device) -> Tensor:
    """The stored numbers in memory of their own; zeros where a file lacks what nothing depends on."""
    if device == "meta":
        return torch.empty_like(empty, dtype=dtype, device=device, requires_grad=False)
    stored = source.get(name)
    if isinstance(stored, PackedTensor):
        tensor = stored.dense(dtype).to(device)
    else:
        tensor = torch.empty_like(empty, dtype=dtype, device=device, requires_grad=False)
        tensor.zero_() if stored is None else tensor.copy_(check_finite(source.name, name, stored.read()))
    if stored is not None:
        stored.release()
    return tensor


def _unsaved(name: str, buffer: Tensor) -> Tensor:
    """A buffer that no file holds: transformers 4 leaves the positions 0, 1, 2, ... on the meta device."""
    if buffer.is_meta and name.endswith("position_ids"):
        return torch.arange(buffer.shape[-1])[None]
    return buffer


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    setattr(owner, leaf, tensor)
