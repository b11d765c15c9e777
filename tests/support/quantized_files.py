"""Checkpoints as others quantize them, made from dense state dicts: one function a format."""

import json

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from wanvideo.ops.linear.fp4 import quantize_fp4

GGUF_TYPES = {
    name: gguf.GGMLQuantizationType[name]
    for name in ("Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q5_1", "Q4_K", "Q4_0", "Q4_1", "Q3_K", "Q2_K", "BF16", "F16", "F32")
}
SUPER_BLOCK = 256


def is_matrix(key, value):
    """What quantizers take: the matrices of blocks whose sides suit every format."""
    return ".weight" in key and "block" in key and value.ndim == 2 and not any(side % 16 for side in value.shape)


def _split(state):
    matrices = {key: value for key, value in state.items() if is_matrix(key, value)}
    return matrices, {key: value for key, value in state.items() if key not in matrices}


def fp8_plain(state, dtype=torch.float8_e4m3fn):
    matrices, rest = _split(state)
    return rest | {key: value.to(dtype) for key, value in matrices.items()}


def fp8_scaled(state, scale_name="scale_weight", by_rows=False, dtype=torch.float8_e4m3fn):
    """One scale a tensor or a row, a marker, and input scales that nobody needs."""
    matrices, result = _split(state)
    result["scaled_fp8"] = torch.zeros(0, dtype=dtype)
    for key, value in matrices.items():
        peak = value.abs().amax(1, keepdim=True) if by_rows else value.abs().max()
        scale = peak / torch.finfo(dtype).max
        layer = key.removesuffix(".weight")
        result[key] = (value / scale).to(dtype)
        result[f"{layer}.{scale_name}"] = scale
        result[f"{layer}.{'scale_input' if scale_name == 'scale_weight' else 'input_scale'}"] = torch.ones(())
    return result


def marker(settings):
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def comfy_fp8(state, marked=True):
    """(state dict, metadata): each layer's format in a tensor beside it, or all in the header."""
    result, settings = fp8_scaled(state, "weight_scale"), {"format": "float8_e4m3fn"}
    del result["scaled_fp8"]
    layers = [key.removesuffix(".weight_scale") for key in result if key.endswith(".weight_scale")]
    if marked:
        return result | {f"{layer}.comfy_quant": marker(settings) for layer in layers}, None
    return result, {"_quantization_metadata": json.dumps({"layers": dict.fromkeys(layers, settings)})}


def int8_rows(state, marked=True):
    matrices, result = _split(state)
    for key, value in matrices.items():
        layer = key.removesuffix(".weight")
        scale = value.abs().amax(1, keepdim=True) / 127
        result |= {key: (value / scale).round().to(torch.int8), f"{layer}.weight_scale": scale}
        if marked:
            result[f"{layer}.comfy_quant"] = marker({"format": "int8_tensorwise"})
    return result


def quanto(state, dtype):
    """(state dict, map): weights and scales in bf16, one a row, and what the JSON file beside it says."""
    matrices, result = _split(state)
    listed, largest = {}, 127 if dtype == torch.int8 else 448
    for key, value in matrices.items():
        layer = key.removesuffix(".weight")
        scale = (value.abs().amax(1, keepdim=True) / largest).bfloat16()
        data = value / scale.float()
        data = data.round() if dtype == torch.int8 else data
        result |= {f"{key}._data": data.clamp(-largest, largest).to(dtype), f"{key}._scale": scale}
        result |= {f"{layer}.input_scale": torch.ones(()), f"{layer}.output_scale": torch.ones(())}
        listed[layer] = {"weights": "qint8" if dtype == torch.int8 else "qfloat8", "activations": "none"}
    return result, listed


def nvfp4(state):
    matrices, result = _split(state)
    for key, value in matrices.items():
        layer = key.removesuffix(".weight")
        parts = quantize_fp4(value)
        result |= {f"{layer}.{name}": tensor for name, tensor in parts.items()}
        result[f"{layer}.weight_scale_2"] = parts["weight_scale_2"][0]
        result[f"{layer}.comfy_quant"] = marker({"format": "nvfp4"})
    return result


def write_gguf(path, state, kind, rename=lambda key: key):
    """Matrices of blocks in one of `GGUF_TYPES` (Q8_0 where rows are too short), the rest in F32, as ComfyUI's are."""
    writer = gguf.GGUFWriter(path, "wan")
    writer.add_array("tokenizer.ggml.tokens", ["<pad>", "</s>", "\u2581a"])
    writer.add_array("tokenizer.ggml.scores", [0.0, 0.5, 1.0])
    for key, value in state.items():
        data = value.float().contiguous().numpy()
        if value.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{key}", list(value.shape))
            data = data.reshape(value.shape[0], -1)
        type_ = gguf.GGMLQuantizationType.F32
        if is_matrix(key, value):
            type_ = GGUF_TYPES[kind]
            block = gguf.GGML_QUANT_SIZES[type_][0]
            if value.shape[1] % block:
                type_ = gguf.GGMLQuantizationType.Q8_0 if value.shape[1] % 32 == 0 else gguf.GGMLQuantizationType.F16
        writer.add_tensor(rename(key), gguf_data(data, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_data(data, type_):
    """The package quantizes to most types; of the K types it only reads, blocks are drawn with scales that fit."""
    try:
        return gguf.quants.quantize(data, type_)
    except NotImplementedError:
        return _k_blocks(data, type_)


def _k_blocks(data, type_):
    """Any bytes are valid blocks once their float16 scales are small: good for comparing what is read, not for size."""
    size, num_bytes = gguf.GGML_QUANT_SIZES[type_]
    draw = np.random.default_rng(data.size)
    blocks = draw.integers(0, 256, (data.size // size, num_bytes), dtype=np.uint8)
    scales = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[type_.name]
    for at in scales:
        blocks[:, at : at + 2] = np.full((len(blocks), 1), 2e-5 * 256 / num_bytes, dtype=np.float16).view(np.uint8)
    return blocks.reshape(data.shape[0], -1)


def write(path, state, metadata=None, quanto_map=None):
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata=metadata)
    if quanto_map is not None:
        path.with_suffix(".json").write_text(json.dumps(quanto_map))
    return path
