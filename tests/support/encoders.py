"""Tiny encoders whose weights are drawn by name, renamed here by the table that comes with the reference vectors."""

import json
from pathlib import Path

import torch
from support import recipes

from wanvideo.models.clip_vision import ClipVisionConfig, ClipVisionEncoder
from wanvideo.models.text_encoder import TextEncoder, TextEncoderConfig
from wanvideo.models.wav2vec2 import AudioEncoder, AudioEncoderConfig

DATA = Path(__file__).parents[1] / "numerics" / "data"


def fill(model_class, config_class, state):
    with torch.device("meta"):
        model = model_class(config_class.from_shapes({key: tuple(value.shape) for key, value in state.items()}))
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _rename(official, table):
    renamed = {}
    for key, value in official.items():
        parts = key.split(".")
        number = next((part for part in parts if part.isdigit() and f"{{i}}.{key.split(f'{part}.', 1)[1]}"), None)
        pattern = key if key in table else key.replace(f".{number}.", ".{i}.", 1)
        renamed[table[pattern].split(" ")[0].replace("{i}", str(number))] = value
    return renamed


def tiny_text_encoder(seed):
    table = json.loads((DATA / "encoder_keys.json").read_text())["text_encoder"]
    return fill(TextEncoder, TextEncoderConfig, _rename(recipes.t5_state_dict(seed), table))


def clip_state(seed):
    table = json.loads((DATA / "encoder_keys.json").read_text())["clip_vision"]
    official, state = recipes.clip_state_dict(seed), {}
    for key, value in official.items():
        if ".to_qkv." in key:
            layer, kind = key.split(".")[2], key.rsplit(".", 1)[1]
            for name, part in zip("qkv", value.chunk(3), strict=True):
                state[f"vision_model.encoder.layers.{layer}.self_attn.{name}_proj.{kind}"] = part
        elif key == "visual.cls_embedding":
            state["vision_model.embeddings.class_embedding"] = value.flatten()
        elif key == "visual.pos_embedding":
            state["vision_model.embeddings.position_embedding.weight"] = value[0]
        elif key != "visual.head":
            state |= _rename({key: value}, table)
    return state


def tiny_clip(seed):
    return fill(ClipVisionEncoder, ClipVisionConfig, clip_state(seed))


def tiny_audio_encoder(seed=51):
    state = recipes.wav2vec_state_dict(seed)
    conv = "encoder.pos_conv_embed.conv"
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        state[f"{conv}.parametrizations.weight.{new}"] = state.pop(f"{conv}.{old}")
    return fill(AudioEncoder, AudioEncoderConfig, state)
