"""Transformers whose blocks are quantised, and the same numbers in dense layers."""

import gguf
import torch
from support.tiny import tiny_transformer

from wanvideo.ops.formats import FORMATS
from wanvideo.ops.linear import Linear


def _quantised(weight, name):
    if FORMATS[name].quantise:
        return FORMATS[name].quantise(weight)
    return {"weight": torch.from_numpy(gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[name]))}


def packed_transformer(name, dense=False):
    """A tiny transformer with its blocks' matrices in a format of `FORMATS`; dense: in plain numbers again."""
    model = tiny_transformer()
    for parent in list(model.blocks.modules()):
        for attribute, layer in list(parent.named_children()):
            if type(layer) is Linear and layer.in_features % 32 == 0:
                shape = layer.out_features, layer.in_features
                packed = FORMATS[name].layer(shape, _quantised(layer.weight.data, name))
                if dense:
                    layer.weight.data = packed.dense_weight(torch.float32)
                else:
                    packed.bias = layer.bias
                    setattr(parent, attribute, packed)
    return model.requires_grad_(False)
