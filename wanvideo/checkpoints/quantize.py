"""Quantized weights in files, whoever wrote them, and dense ones quantized on the way into a model.

Each matrix becomes one `PackedTensor` under the name of its weight, whatever scales and markers lie beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, UnsupportedError
from ..ops.linear.formats import FORMATS, quantizer
from ..ops.linear.fp4 import padded_sizes
from ..ops.linear.layer import Linear
from ..untrusted import parse_json, read_json
from .dialects import COMFY_PREFIXES, Kind
from .reader import PackedTensor, StoredTensor, TensorSource, few

ROW_FORMATS = {torch.float8_e4m3fn: "fp8", torch.float8_e5m2: "fp8_e5m2", torch.int8: "int8"}
# Names that ComfyUI gives formats, and the dtype of their weights; older files hold either as plain bytes.
COMFY_FORMATS = {
    "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2, "int8_tensorwise": torch.int8,
    "nvfp4": torch.uint8,
}  # fmt: skip
QUANTO_TYPES = {
    "qfloat8": torch.float8_e4m3fn, "qfloat8_e4m3fn": torch.float8_e4m3fn, "qfloat8_e5m2": torch.float8_e5m2,
    "qint8": torch.int8,
}  # fmt: skip
SCALES = (".weight_scale", ".scale_weight")
# Scales of activations are left out: every row of activations gets a scale of its own when it is multiplied.
UNUSED = (".input_scale", ".scale_input", ".output_scale")
BLOCKS = {Kind.TRANSFORMER: "blocks.", Kind.ADAPTER: "blocks.", Kind.TEXT_ENCODER: "encoder.block."}
TEXT_ENCODER_FORMATS = {"fp4": "fp8"}  # what text encoders take instead: prompts suffer from 4 bits
MAX_MARKER_BYTES = 1 << 16
MULTIPLE = 16  # sizes of matrices that are quantized are multiples of it, as the kernels that multiply them need


@dataclass(frozen=True)
class Layer:
    """A linear layer of a file by the names of its tensors. name: as messages call it, with its file."""

    name: str
    weight: StoredTensor
    scale: StoredTensor | None = None
    scale_2: StoredTensor | None = None
    rows: int | None = None  # from the bias; packed rows may be padded

    def stored(
        self, tensors: Mapping[str, StoredTensor], make: Callable[..., dict[str, Tensor]]
    ) -> tuple[Callable[[], dict[str, Tensor]], Callable[[], None]]:
        """(read_parts, release) of a `PackedTensor` that is made of these tensors."""

        def read_parts() -> dict[str, Tensor]:
            parts = make(**{name: tensor.read() for name, tensor in tensors.items()})
            check_scales(self.name, parts)
            return parts

        def release() -> None:
            for tensor in tensors.values():
                tensor.release()

        return read_parts, release


def with_markers(source: TensorSource) -> TensorSource:
    """The formats that the file's header lists, as the marker tensors `LAYER.comfy_quant` that other files carry."""
    text = source.metadata.get("_quantization_metadata")
    if text is None:
        return source
    data = parse_json(text, f"{source.name} has unreadable _quantization_metadata (download it again)", CheckpointError)
    listed = data.get("layers") if isinstance(data, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(item, dict) for item in listed.values()):
        raise CheckpointError(f"{source.name} has unreadable _quantization_metadata. Download it again.")
    layers = {name: json.dumps(item).encode() for name, item in listed.items()}
    tensors = dict(source)
    for name, content in layers.items():
        full = next((p + name for p in ("", *COMFY_PREFIXES) if f"{p}{name}.weight" in source), name)
        marker = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        tensors[f"{full}.comfy_quant"] = StoredTensor.in_memory(marker)
    return source.replaced(tensors)


def packed(source: TensorSource) -> TensorSource:
    """Weights with their scales as `PackedTensor`s; everything else as it is.

    Raises: CheckpointError where scales are missing or do not fit, UnsupportedError for formats that cannot be read.
    Source: `weight` + `scale_weight` / `weight_scale` (+ `weight_scale_2`, `comfy_quant`) of ComfyUI, and
    `weight._data` + `weight._scale` of optimum-quanto.
    """
    tensors: dict[str, StoredTensor] = {}
    for key, tensor in source.items():
        layer, _, leaf = key.rpartition(".")
        if leaf == "scaled_fp8" or key.endswith(UNUSED):
            continue
        if leaf == "_data":
            tensors[layer] = _quanto(source, layer, tensor)
        elif leaf == "_scale" and f"{layer}._data" in source:
            continue
        elif leaf == "weight":
            tensors[key] = _weight(source, layer, tensor)
        elif leaf in ("weight_scale", "scale_weight", "weight_scale_2", "comfy_quant") and f"{layer}.weight" in source:
            continue
        else:
            tensors[key] = tensor
    return source.replaced(tensors)


def _weight(source: TensorSource, name: str, weight: StoredTensor) -> StoredTensor:
    label = f"{source.name}: {name}"
    wanted = _comfy_format(source, name, label)
    scale = next((source[name + end] for end in SCALES if name + end in source), None)
    if isinstance(weight, PackedTensor):
        return weight
    if f"{name}.pre_quant_scale" in source:
        raise UnsupportedError(f"{label} scales its inputs (pre_quant_scale), which cannot be read. Use another file.")
    bias = source.get(f"{name}.bias")
    rows = bias.shape[0] if bias is not None and len(bias.shape) == 1 else None
    layer = Layer(label, weight, scale, source.get(f"{name}.weight_scale_2"), rows)
    if wanted is torch.uint8 or (wanted is None and layer.scale_2 is not None):
        return _fp4(layer)
    dtype = weight.dtype
    if wanted is not None and dtype == torch.uint8 != wanted:
        dtype = wanted
    if wanted not in (None, dtype):
        raise CheckpointError(
            f"{label} is marked as {wanted} but stored as {dtype}. The file is damaged: download it again."
        )
    if dtype in ROW_FORMATS and len(weight.shape) == 2:
        if scale is None and dtype == torch.int8:
            raise CheckpointError(f"{label} is int8 without a scale. The file is incomplete; download it again.")
        return _by_rows(layer, dtype)
    return weight if scale is None else _multiplied_out(layer, scale)


def _comfy_format(source: TensorSource, name: str, label: str) -> torch.dtype | None:
    """The dtype that a layer's marker announces; None without a marker."""
    marker = source.get(f"{name}.comfy_quant")
    if marker is None:
        return None
    settings = None
    if marker.dtype in (torch.uint8, torch.int8) and 0 < _count(marker) <= MAX_MARKER_BYTES:
        text = bytes(marker.read().flatten().view(torch.uint8).tolist())
        settings = parse_json(
            text, f"{label} has an unreadable comfy_quant marker (download it again)", CheckpointError
        )
    found = settings.get("format") if isinstance(settings, dict) else None
    if not isinstance(settings, dict) or not isinstance(found, str):
        raise CheckpointError(f"{label} has an unreadable comfy_quant marker. Download the file again.")
    inner = settings.get("params")
    parameters = inner if isinstance(inner, dict) else {}
    if found not in COMFY_FORMATS or settings.get("convrot") or parameters.get("convrot"):
        what = found[:40] if found not in COMFY_FORMATS else f"{found} with rotated weights"
        raise UnsupportedError(f"{label} is stored as {what}; {', '.join(COMFY_FORMATS)} can be read.")
    return COMFY_FORMATS[found]


def _quanto(source: TensorSource, key: str, data: StoredTensor) -> StoredTensor:
    label, scale = f"{source.name}: {key.removesuffix('.weight')}", source.get(f"{key}._scale")
    if data.dtype not in ROW_FORMATS or f"{key}._shift" in source or len(data.shape) != 2:
        raise UnsupportedError(
            f"{label} is a quanto tensor of {data.dtype}; float8 and int8 ones can be read. Use a file in one of these."
        )
    if scale is None:
        raise CheckpointError(f"{label} has {key}._data without {key}._scale. Download the file again.")
    return _by_rows(Layer(label, data, scale), data.dtype)


def _by_rows(layer: Layer, dtype: torch.dtype) -> PackedTensor:
    rows, tensors = layer.weight.shape[0], {"weight": layer.weight}
    if layer.scale is not None:
        _check_row_scale(layer, layer.scale)
        tensors["scale"] = layer.scale

    def make(weight: Tensor, scale: Tensor | None = None) -> dict[str, Tensor]:
        scale = torch.ones(1) if scale is None else scale.float()
        return {"weight": weight.view(dtype), "weight_scale": scale.reshape(-1, 1).expand(rows, 1)}

    return PackedTensor.of(ROW_FORMATS[dtype], layer.weight.shape, *layer.stored(tensors, make))


def _check_row_scale(layer: Layer, scale: StoredTensor) -> None:
    rows = layer.weight.shape[0] if layer.weight.shape else 1
    if scale.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UnsupportedError(f"{layer.name} has scales of {scale.dtype} (mxfp8?), which cannot be read.")
    if scale.shape not in ((), (1,), (1, 1), (rows,), (rows, 1)):
        raise CheckpointError(
            f"{layer.name} has scales of shape {list(scale.shape)} for a weight of shape {list(layer.weight.shape)}; "
            "one for the tensor or one a row can be read."
        )


def _fp4(layer: Layer) -> PackedTensor:
    weight, scale, scale_2 = layer.weight, layer.scale, layer.scale_2
    if scale is None or scale_2 is None:
        missing = "weight_scale" if scale is None else "weight_scale_2"
        raise CheckpointError(f"{layer.name} is stored as nvfp4 without {missing}. Download the file again.")
    if weight.dtype != torch.uint8 or len(weight.shape) != 2:
        raise CheckpointError(
            f"{layer.name} is marked as nvfp4 but stored as {weight.dtype}. The file is damaged: download it again."
        )
    if 0 in weight.shape:
        raise CheckpointError(f"{layer.name} is empty ({list(weight.shape)}). The file is damaged: download it again.")
    shape = layer.rows or weight.shape[0], weight.shape[1] * 2
    packed_shape, scale_shape = padded_sizes(*shape)
    found = weight.shape, (_count(scale), scale.dtype.itemsize), _count(scale_2)
    if found != (packed_shape, (scale_shape[0] * scale_shape[1], 1), 1):
        raise CheckpointError(
            f"{layer.name} has fp4 weights of shape {list(weight.shape)} and scales of {list(scale.shape)}; for "
            f"{shape[0]} x {shape[1]} weights they are {list(packed_shape)} and {list(scale_shape)}. "
            "The file is damaged: download it again."
        )

    def make(weight: Tensor, scale: Tensor, scale_2: Tensor) -> dict[str, Tensor]:
        scale = scale.view(torch.float8_e4m3fn).view(scale_shape)
        return {"weight": weight, "weight_scale": scale, "weight_scale_2": scale_2.float().view(1)}

    tensors = {"weight": weight, "scale": scale, "scale_2": scale_2}
    return PackedTensor.of("fp4", shape, *layer.stored(tensors, make))


def _count(tensor: StoredTensor) -> int:
    return torch.Size(tensor.shape).numel()


def _multiplied_out(layer: Layer, scale: StoredTensor) -> StoredTensor:
    """A scaled weight that is no matrix in 8 bits: its numbers."""
    _check_row_scale(layer, scale)

    def multiply(weight: Tensor, scale: Tensor) -> Tensor:
        sides = (-1, *(1 for _ in weight.shape[1:])) if scale.numel() > 1 else ()
        return weight.float() * scale.float().reshape(sides)

    return StoredTensor.derived([layer.weight, scale], multiply)


def check_scales(name: str, parts: Mapping[str, Tensor]) -> None:
    """Raises: CheckpointError when a scale is not a finite number."""
    for part, tensor in parts.items():
        if part != "weight" and not tensor.float().isfinite().all():
            raise CheckpointError(
                f"{name} has scales that are not finite ({part}). The file is damaged: download it again."
            )


def can_quantize(name: str, tensor: StoredTensor, kind: Kind) -> bool:
    """Whether a tensor of canonical name is a matrix of a block. Everything else stays in high precision."""
    if kind not in BLOCKS or not name.startswith(BLOCKS[kind]) or not name.endswith(".weight"):
        return False
    is_table = name.endswith("relative_attention_bias.weight")
    return len(tensor.shape) == 2 and not is_table and not any(side % MULTIPLE for side in tensor.shape)


def quantized(name: str, tensor: StoredTensor, to: str, device: torch.device | str) -> PackedTensor:
    """A dense matrix that is quantized, on `device`, when it is read."""

    def read_parts() -> dict[str, Tensor]:
        parts = quantizer(to)(tensor.read().to(device))
        check_scales(name, parts)
        return parts

    return replace(PackedTensor.of(to, tensor.shape, read_parts, tensor.release), is_computed=True)


def pack_linears(module: nn.Module, to: str) -> None:
    """Replace the dense linear layers of a module by ones in a format of `ops.linear.formats.QUANTIZERS`."""
    for name, child in list(module.named_children()):
        if type(child) is Linear:
            shape = child.out_features, child.in_features
            layer = FORMATS[to].layer(shape, quantizer(to)(child.weight.data))
            layer.bias = child.bias
            setattr(module, name, layer)
        else:
            pack_linears(child, to)


def check_quanto_map(path: Path, source: TensorSource) -> None:
    """The JSON map that lies beside a quanto file must be of this file: it lists its layers and their types.

    Raises: CheckpointError naming what differs. Without a map the tensors speak for themselves.
    """
    layers = {key.removesuffix(".weight._data"): key for key in source if key.endswith(".weight._data")}
    map_path = next((item for item in _map_paths(path) if item.is_file()), None)
    if not layers or map_path is None:
        return
    listed = read_json(map_path, f"the map of {path.name}", CheckpointError)
    if not isinstance(listed, dict) or not all(isinstance(item, dict) for item in listed.values()):
        raise CheckpointError(f"{map_path.name}, the map of {path.name}, is unreadable. Download it again.")
    types = {name: str(item["weights"]) for name, item in listed.items() if item.get("weights", "none") != "none"}
    wrong = [n for n, key in layers.items() if QUANTO_TYPES.get(types.get(n, "")) != source[key].dtype]
    wrong += [name for name in types if name not in layers]
    if wrong:
        raise CheckpointError(
            f"{map_path.name} is not the map of {path.name}: they differ in {few(wrong)}. "
            "Put the two files of one download beside each other."
        )


def _map_paths(path: Path) -> tuple[Path, ...]:
    """t5_fp8.safetensors has its map in t5_map_fp8.json, others under their own name."""
    return path.with_suffix(".json"), path.with_name(path.stem.replace("t5_", "t5_map_", 1) + ".json")
