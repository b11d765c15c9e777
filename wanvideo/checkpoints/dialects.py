"""One set of names for every model, whoever saved it.

The canonical names are those of the models in `models/`: official Wan names for the transformer, adapter and VAE,
Hugging Face names for the three encoders. A dialect is a table of (their name, our name); `{i}` stands for a number and
`{rest}` for the end of a name. To add a dialect, add a table, and the keys that only its files have, to `DIALECTS`.
"""

from __future__ import annotations

import bisect
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ..errors import CheckpointError
from .reader import StoredTensor, TensorSource


class Kind(str, Enum):
    """What a file of weights can be."""

    TRANSFORMER = "transformer"
    ADAPTER = "audio adapter"
    VAE = "VAE"
    TEXT_ENCODER = "text encoder"
    CLIP_VISION = "CLIP vision encoder"
    AUDIO_ENCODER = "audio encoder"
    LORA = "LoRA"
    TINY_VAE = "tiny VAE"
    SYNCNET = "SyncNet"
    TOKENIZER = "tokenizer"
    OTHER = "another model"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Change:
    """How one tensor of theirs becomes one or more of ours, and back. sides: how many theirs can have."""

    to_ours: tuple[Callable[[Tensor], Tensor], ...]
    to_theirs: Callable[..., Tensor]
    sides: tuple[int, ...] = ()


KEEP = Change((lambda tensor: tensor,), lambda tensor: tensor)
SPLIT_ROWS = Change(
    (lambda rows: rows.tensor_split(3)[0], lambda rows: rows.tensor_split(3)[1], lambda rows: rows.tensor_split(3)[2]),
    lambda *parts: torch.cat(parts),
    (1, 2),
)
FLATTEN = Change((lambda tensor: tensor.flatten(),), lambda tensor: tensor[None, None], (1, 2, 3))
UNBATCH = Change((lambda tensor: tensor[0],), lambda tensor: tensor[None], (3,))
TRANSPOSE = Change((lambda tensor: tensor.t(),), lambda tensor: tensor.t(), (2,))


@dataclass(frozen=True)
class Rule:
    theirs: str
    ours: tuple[str, ...]
    change: Change = KEEP


@dataclass(frozen=True)
class Dialect:
    """One way of naming a model's tensors.

    Args:
        markers: every file in this dialect has keys that begin so, after a prefix is taken off.
        absent: and none that begin so.
        rules: the names that differ from ours; the first that matches counts.
        prefixes: what may stand before every name.
    """

    kind: Kind
    name: str
    markers: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    absent: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()


def table(text: str, change: Change = KEEP) -> tuple[Rule, ...]:
    """Rules from lines of `theirs -> ours`; several names of ours are separated by commas."""
    pairs = (line.split("->") for line in text.strip().splitlines())
    return tuple(Rule(left.strip(), tuple(name.strip() for name in right.split(",")), change) for left, right in pairs)


def residual_table(theirs: str, ours: str) -> str:
    """A residual block of the VAE in diffusers' names."""
    parts = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
    parts["conv_shortcut"] = "shortcut"
    return "".join(f"{theirs}.{a}.{{rest}} -> {ours}.{b}.{{rest}}\n" for a, b in parts.items())


DIFFUSERS_TRANSFORMER = table(
    """
    condition_embedder.time_embedder.linear_1.{rest} -> time_embedding.0.{rest}
    condition_embedder.time_embedder.linear_2.{rest} -> time_embedding.2.{rest}
    condition_embedder.time_proj.{rest} -> time_projection.1.{rest}
    condition_embedder.text_embedder.linear_1.{rest} -> text_embedding.0.{rest}
    condition_embedder.text_embedder.linear_2.{rest} -> text_embedding.2.{rest}
    condition_embedder.image_embedder.norm1.{rest} -> img_emb.proj.0.{rest}
    condition_embedder.image_embedder.ff.net.0.proj.{rest} -> img_emb.proj.1.{rest}
    condition_embedder.image_embedder.ff.net.2.{rest} -> img_emb.proj.3.{rest}
    condition_embedder.image_embedder.norm2.{rest} -> img_emb.proj.4.{rest}
    scale_shift_table -> head.modulation
    proj_out.{rest} -> head.head.{rest}
    blocks.{i}.scale_shift_table -> blocks.{i}.modulation
    blocks.{i}.norm2.{rest} -> blocks.{i}.norm3.{rest}
    blocks.{i}.attn1.to_q.{rest} -> blocks.{i}.self_attn.q.{rest}
    blocks.{i}.attn1.to_k.{rest} -> blocks.{i}.self_attn.k.{rest}
    blocks.{i}.attn1.to_v.{rest} -> blocks.{i}.self_attn.v.{rest}
    blocks.{i}.attn1.to_out.0.{rest} -> blocks.{i}.self_attn.o.{rest}
    blocks.{i}.attn1.{rest} -> blocks.{i}.self_attn.{rest}
    blocks.{i}.attn2.to_q.{rest} -> blocks.{i}.cross_attn.q.{rest}
    blocks.{i}.attn2.to_k.{rest} -> blocks.{i}.cross_attn.k.{rest}
    blocks.{i}.attn2.to_v.{rest} -> blocks.{i}.cross_attn.v.{rest}
    blocks.{i}.attn2.to_out.0.{rest} -> blocks.{i}.cross_attn.o.{rest}
    blocks.{i}.attn2.add_k_proj.{rest} -> blocks.{i}.cross_attn.k_img.{rest}
    blocks.{i}.attn2.add_v_proj.{rest} -> blocks.{i}.cross_attn.v_img.{rest}
    blocks.{i}.attn2.norm_added_k.{rest} -> blocks.{i}.cross_attn.norm_k_img.{rest}
    blocks.{i}.attn2.{rest} -> blocks.{i}.cross_attn.{rest}
    blocks.{i}.ffn.net.0.proj.{rest} -> blocks.{i}.ffn.0.{rest}
    blocks.{i}.ffn.net.2.{rest} -> blocks.{i}.ffn.2.{rest}
    """
)

DIFFUSERS_VAE = table(
    """
    quant_conv.{rest} -> conv1.{rest}
    post_quant_conv.{rest} -> conv2.{rest}
    {side}.conv_in.{rest} -> {side}.conv1.{rest}
    {side}.norm_out.{rest} -> {side}.head.0.{rest}
    {side}.conv_out.{rest} -> {side}.head.2.{rest}
    {side}.mid_block.attentions.0.{rest} -> {side}.middle.1.{rest}
    """
    + residual_table("{side}.mid_block.resnets.0", "{side}.middle.0")
    + residual_table("{side}.mid_block.resnets.1", "{side}.middle.2")
    + residual_table("encoder.down_blocks.{i}", "encoder.downsamples.{i}")
    + "encoder.down_blocks.{i}.{rest} -> encoder.downsamples.{i}.{rest}\n"
    + "".join(
        residual_table(f"decoder.up_blocks.{level}.resnets.{n}", f"decoder.upsamples.{4 * level + n}")
        for level in range(4)
        for n in range(3)
    )
    + "".join(
        f"decoder.up_blocks.{level}.upsamplers.0.{{rest}} -> decoder.upsamples.{4 * level + 3}.{{rest}}\n"
        for level in range(3)
    )
)

WAN_TEXT_ENCODER = table(
    """
    token_embedding.weight -> shared.weight
    norm.weight -> encoder.final_layer_norm.weight
    blocks.{i}.norm1.weight -> encoder.block.{i}.layer.0.layer_norm.weight
    blocks.{i}.norm2.weight -> encoder.block.{i}.layer.1.layer_norm.weight
    blocks.{i}.pos_embedding.embedding.weight -> encoder.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight
    blocks.{i}.attn.{rest} -> encoder.block.{i}.layer.0.SelfAttention.{rest}
    blocks.{i}.ffn.gate.0.{rest} -> encoder.block.{i}.layer.1.DenseReluDense.wi_0.{rest}
    blocks.{i}.ffn.fc1.{rest} -> encoder.block.{i}.layer.1.DenseReluDense.wi_1.{rest}
    blocks.{i}.ffn.fc2.{rest} -> encoder.block.{i}.layer.1.DenseReluDense.wo.{rest}
    """
)

_CLIP_LAYER = "vision_model.encoder.layers.{i}"
WAN_CLIP = (
    *table("visual.cls_embedding -> vision_model.embeddings.class_embedding", FLATTEN),
    *table("visual.pos_embedding -> vision_model.embeddings.position_embedding.weight", UNBATCH),
    *table("visual.head -> visual_projection.weight", TRANSPOSE),
    *table(
        f"""
        visual.transformer.{{i}}.attn.to_qkv.{{rest}} -> {_CLIP_LAYER}.self_attn.q_proj.{{rest}}, """
        f"""{_CLIP_LAYER}.self_attn.k_proj.{{rest}}, {_CLIP_LAYER}.self_attn.v_proj.{{rest}}
        """,
        SPLIT_ROWS,
    ),
    *table(
        f"""
        visual.patch_embedding.{{rest}} -> vision_model.embeddings.patch_embedding.{{rest}}
        visual.pre_norm.{{rest}} -> vision_model.pre_layrnorm.{{rest}}
        visual.post_norm.{{rest}} -> vision_model.post_layernorm.{{rest}}
        visual.transformer.{{i}}.norm1.{{rest}} -> {_CLIP_LAYER}.layer_norm1.{{rest}}
        visual.transformer.{{i}}.norm2.{{rest}} -> {_CLIP_LAYER}.layer_norm2.{{rest}}
        visual.transformer.{{i}}.attn.proj.{{rest}} -> {_CLIP_LAYER}.self_attn.out_proj.{{rest}}
        visual.transformer.{{i}}.mlp.0.{{rest}} -> {_CLIP_LAYER}.mlp.fc1.{{rest}}
        visual.transformer.{{i}}.mlp.2.{{rest}} -> {_CLIP_LAYER}.mlp.fc2.{{rest}}
        """
    ),
)

BARE_CLIP = table(
    """
    embeddings.{rest} -> vision_model.embeddings.{rest}
    encoder.{rest} -> vision_model.encoder.{rest}
    pre_layrnorm.{rest} -> vision_model.pre_layrnorm.{rest}
    post_layernorm.{rest} -> vision_model.post_layernorm.{rest}
    """
)

# How often a norm was trained, which files of newer torches hold.
SYNCNET = table(
    "".join(
        f"{branch}.{{i}}.num_batches_tracked -> num_batches_tracked.{branch}.{{i}}\n"
        for branch in ("netcnnaud", "netcnnlip", "netfcaud", "netfclip")
    )
)

PARAMETRIZED_CONV = "encoder.pos_conv_embed.conv.parametrizations.weight."
WEIGHT_NORM = table(
    f"""
    encoder.pos_conv_embed.conv.weight_g -> {PARAMETRIZED_CONV}original0
    encoder.pos_conv_embed.conv.weight_v -> {PARAMETRIZED_CONV}original1
    """
)

COMFY_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "module.")
_BLOCK = "blocks.0.self_attn.q."
_T5_BLOCK = "encoder.block.0.layer.0.SelfAttention.q."
_CLIP_CLASS = "embeddings.class_embedding"
_SPEECH = "feature_extractor.conv_layers.0.conv.weight"
_SPEECH_PREFIXES = ("wav2vec2.", "model.wav2vec2.", "model.", "module.")
_MULTITALK = table("multitalk_audio_proj.{rest} -> audio_proj.{rest}")

DIALECTS = (
    Dialect(
        Kind.TRANSFORMER, "multitalk_audio_proj", ("patch_embedding.", _BLOCK, "multitalk_audio_proj."), _MULTITALK,
        prefixes=COMFY_PREFIXES,
    ),
    Dialect(Kind.TRANSFORMER, "official", ("patch_embedding.", _BLOCK), prefixes=COMFY_PREFIXES),
    Dialect(
        Kind.TRANSFORMER, "diffusers", ("patch_embedding.", "blocks.0.attn1.to_q."), DIFFUSERS_TRANSFORMER,
        prefixes=("transformer.", "model.", "module."),
    ),
    Dialect(
        Kind.ADAPTER, "multitalk_audio_proj", ("multitalk_audio_proj.proj1.",), _MULTITALK, prefixes=COMFY_PREFIXES
    ),
    Dialect(Kind.ADAPTER, "official", ("audio_proj.proj1.",), prefixes=COMFY_PREFIXES),
    Dialect(
        Kind.VAE, "official", ("decoder.middle.0.residual.0.gamma", "decoder.upsamples.0.residual.", "conv2.weight"),
        prefixes=("model.", "vae.", "first_stage_model.", "module."),
    ),
    Dialect(
        Kind.VAE, "diffusers", ("decoder.mid_block.resnets.0.norm1.gamma", "decoder.up_blocks.0.resnets.0."),
        DIFFUSERS_VAE, prefixes=("vae.", "model.", "module."),
    ),
    Dialect(
        Kind.TINY_VAE, "official", ("decoder.1.weight", "decoder.3.conv.0.weight", "decoder.22."),
        prefixes=("vae.", "model.", "taehv.", "module."),
    ),
    Dialect(
        Kind.TEXT_ENCODER, "official", ("token_embedding.weight", "blocks.0.attn.q.", "blocks.0.ffn.gate.0."),
        WAN_TEXT_ENCODER, prefixes=("model.", "module."),
    ),
    Dialect(
        Kind.TEXT_ENCODER, "huggingface", ("shared.weight", _T5_BLOCK),
        prefixes=("text_encoder.", "model.", "module.", "transformer."),
    ),
    Dialect(
        Kind.TEXT_ENCODER, "huggingface, tied", ("encoder.embed_tokens.weight", _T5_BLOCK),
        table("encoder.embed_tokens.weight -> shared.weight"), absent=("shared.weight",),
        prefixes=("text_encoder.", "model.", "module.", "transformer."),
    ),
    Dialect(
        Kind.CLIP_VISION, "official", ("visual.cls_embedding", "visual.transformer.0.attn.to_qkv."), WAN_CLIP,
        prefixes=("model.", "module."),
    ),
    Dialect(
        Kind.CLIP_VISION, "huggingface", ("vision_model." + _CLIP_CLASS, "vision_model.encoder.layers.0."),
        prefixes=("clip_vision.", "model.", "module."),
    ),
    Dialect(
        Kind.CLIP_VISION, "huggingface, bare", (_CLIP_CLASS, "encoder.layers.0.self_attn.q_proj."), BARE_CLIP,
        prefixes=("model.", "module."),
    ),
    Dialect(
        Kind.AUDIO_ENCODER, "weight_norm", (_SPEECH, "encoder.pos_conv_embed.conv.weight_g"), WEIGHT_NORM,
        prefixes=_SPEECH_PREFIXES,
    ),
    Dialect(Kind.AUDIO_ENCODER, "parametrized", (_SPEECH, PARAMETRIZED_CONV), prefixes=_SPEECH_PREFIXES),
    Dialect(
        Kind.SYNCNET, "official", ("netcnnaud.0.weight", "netcnnlip.0.weight", "netfcaud.0.", "netfclip.0."),
        SYNCNET, prefixes=("__S__.", "model.", "module."),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """The dialect a file speaks and the prefix before its names."""

    dialect: Dialect
    prefix: str


def find_dialect(source: TensorSource) -> Found | None:
    """Decided by all keys of the file: the first dialect whose markers are all there behind one prefix."""
    keys = sorted(source)
    for dialect in DIALECTS:
        for prefix in ("", *dialect.prefixes):
            if all(_begins(keys, prefix + marker) for marker in dialect.markers) and not any(
                _begins(keys, prefix + marker) for marker in dialect.absent
            ):
                return Found(dialect, prefix)
    return None


def _begins(keys: list[str], start: str) -> bool:
    """Whether one of the sorted keys begins so."""
    at = bisect.bisect_left(keys, start)
    return at < len(keys) and keys[at].startswith(start)


def to_canonical(source: TensorSource, found: Found) -> TensorSource:
    """The same tensors under our names; a key that no rule matches keeps its name."""
    tensors: dict[str, StoredTensor] = {}
    for key, tensor in source.items():
        name = key.removeprefix(found.prefix)
        for new, stored in _renamed(name, tensor, found.dialect.rules):
            if new in tensors:
                raise CheckpointError(
                    f"{source.name} holds {new!r} twice, under two names. The file is damaged: download it again."
                )
            tensors[new] = stored
    return source.replaced(tensors)


def _renamed(name: str, tensor: StoredTensor, rules: tuple[Rule, ...]) -> list[tuple[str, StoredTensor]]:
    for rule in rules:
        match = _pattern(rule.theirs).fullmatch(name)
        if match:
            ours = [template.format(**match.groupdict()) for template in rule.ours]
            if rule.change is KEEP:
                return [(ours[0], tensor)]
            return [
                (new, _changed(name, tensor, rule.change.sides, change))
                for new, change in zip(ours, rule.change.to_ours, strict=True)
            ]
    return [(name, tensor)]


def _changed(
    name: str, tensor: StoredTensor, sides: tuple[int, ...], change: Callable[[Tensor], Tensor]
) -> StoredTensor:
    if len(tensor.shape) not in sides or 0 in tensor.shape:
        wanted = " or ".join(map(str, sides))
        raise CheckpointError(
            f"{name} is {list(tensor.shape)}, not of {wanted} sides. The file is damaged, or made for another model; "
            "download it again."
        )
    return StoredTensor.derived([tensor], change)


def from_canonical(source: TensorSource, dialect: Dialect, prefix: str = "") -> TensorSource:
    """The way back: our names to theirs, for writing files as others write them."""
    tensors: dict[str, StoredTensor] = {}
    for key, tensor in source.items():
        found = next(
            ((match, rule) for rule in dialect.rules if (match := _pattern(rule.ours[0]).fullmatch(key))), None
        )
        if found is None:
            if not any(_pattern(ours).fullmatch(key) for rule in dialect.rules for ours in rule.ours[1:]):
                tensors[prefix + key] = tensor
            continue
        match, rule = found
        name = prefix + rule.theirs.format(**match.groupdict())
        parents = [source[ours.format(**match.groupdict())] for ours in rule.ours]
        change = rule.change
        tensors[name] = tensor if change is KEEP else StoredTensor.derived(parents, change.to_theirs)
    return source.replaced(tensors)


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """`a.{i}.b.{rest}` as a regular expression; `{side}` is the VAE's encoder or decoder."""
    kinds = {"i": r"(?P<i>\d+)", "rest": r"(?P<rest>.+)", "side": r"(?P<side>encoder|decoder)"}
    parts = re.split(r"\{(\w+)\}", template)
    return re.compile("".join(kinds[part] if n % 2 else re.escape(part) for n, part in enumerate(parts)))


def dialect(kind: Kind, name: str) -> Dialect:
    """A dialect of the table by its name."""
    return next(item for item in DIALECTS if item.kind == kind and item.name == name)


SCALES = (".scale_weight", ".weight_scale")
UNUSED_SCALES = (".scale_input", ".input_scale", ".output_scale", ".comfy_quant")


def dequantized(source: TensorSource) -> TensorSource:
    """8-bit weights with a scale, per tensor or per row, as plain numbers that are multiplied out when they are read.

    Raises: CheckpointError for scales that do not fit.
    Source: the layouts `weight` + `scale_weight` / `weight_scale` (ComfyUI) and `weight._data` + `weight._scale`
    (quanto). Scales of activations are left out: they only matter where activations are 8 bits too.
    """
    tensors: dict[str, StoredTensor] = {}
    for key, tensor in source.items():
        layer, _, leaf = key.rpartition(".")
        if key.endswith((*SCALES, *UNUSED_SCALES, "._scale")) or key == "scaled_fp8":
            continue
        if leaf == "_data":
            tensors[layer] = _multiplied(source, key, layer + "._scale")
            continue
        scale = next((layer + end for end in SCALES if leaf == "weight" and layer + end in source), None)
        tensors[key] = tensor if scale is None else _multiplied(source, key, scale)
    return source.replaced(tensors)


def _multiplied(source: TensorSource, key: str, scale: str) -> StoredTensor:
    if scale not in source:
        raise CheckpointError(f"{source.name} has {key} without {scale}. Download it again.")
    shape, found = source.shape(key), source.shape(scale)
    if math.prod(found) != 1 and (not shape or math.prod(found) != shape[0]):
        raise CheckpointError(
            f"{source.name} has {scale} of shape {list(found)} for a weight of shape {list(shape)}; one number for the "
            "tensor or one a row can be read. Download it again."
        )
    return StoredTensor.derived([source[key], source[scale]], _scaled)


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    scale = scale.float()
    rows = scale.numel() > 1
    return weight.float() * (scale.reshape(-1, *(1 for _ in weight.shape[1:])) if rows else scale.reshape(()))
