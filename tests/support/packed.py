"""Transformers whose blocks are quantized, and the same numbers in dense layers."""

import gguf
import torch
from support.quantized_files import gguf_data
from support.tiny import tiny_transformer

from wanvideo.ops.linear.formats import FORMATS
from wanvideo.ops.linear.gguf import LAYOUTS
from wanvideo.ops.linear.layer import Linear


def _quantized(weight, name):
    if FORMATS[name].quantize:
        return FORMATS[name].quantize(weight)
    if name == "fp8_e5m2":
        return {"weight": weight.to(torch.float8_e5m2), "weight_scale": torch.ones(weight.shape[0], 1)}
    return {"weight": torch.from_numpy(gguf_data(weight.numpy(), gguf.GGMLQuantizationType[name]))}


def _fits(layer, name):
    return layer.in_features % (LAYOUTS[name].block_size if name in LAYOUTS else 32) == 0


def packed_transformer(name, dense=False):
    """A tiny transformer with its blocks' matrices in a format of `FORMATS`; dense: in plain numbers again."""
    model = tiny_transformer()
    for parent in list(model.blocks.modules()):
        for attribute, layer in list(parent.named_children()):
            if type(layer) is Linear and _fits(layer, name):
                shape = layer.out_features, layer.in_features
                packed = FORMATS[name].layer(shape, _quantized(layer.weight.data, name))
                if dense:
                    layer.weight.data = packed.dense_weight(torch.float32)
                else:
                    packed.bias = layer.bias
                    setattr(parent, attribute, packed)
    return model.requires_grad_(False)
