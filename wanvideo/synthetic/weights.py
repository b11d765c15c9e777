"""Random weights of any size under canonical names: drawn by name, so that one seed gives one model in every layout.

A source made here holds nothing: each tensor is drawn when it is read, in bf16, and drawn again when it is read again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoints.checkpoint import is_audio_key
from ..checkpoints.dialects import Kind
from ..checkpoints.reader import StoredTensor, TensorSource
from ..memory.budget import IMAGE_TOKENS
from ..models.audio_adapter import AudioConfig
from ..models.transformer import TransformerConfig, WanTransformer

Shapes = Mapping[str, tuple[int, ...]]
CHUNK = 1 << 24  # elements drawn at a time
IMAGE_PATCH, IMAGE_DIM, IMAGE_EMBED = 14, 1280, 1024
SPEECH_KERNELS = (10, 3, 3, 3, 3, 2, 2)
SPEECH_STRIDES = (5, 2, 2, 2, 2, 2, 2)
POSITION_KERNEL, POSITION_GROUPS = 128, 16


@dataclass(frozen=True)
class Sizes:
    """Sizes of a whole set of models that fit each other."""

    dim: int
    ffn_dim: int
    num_layers: int
    audio_hidden: int
    audio_tokens: int
    audio_dim: int
    vae_dim: int
    vocab: int
    text_dim: int
    text_ffn: int
    text_heads: int
    text_layers: int
    clip_ffn: int
    clip_layers: int
    speech_conv: int
    speech_dim: int
    speech_ffn: int
    speech_layers: int
    lora_rank: int

    @property
    def transformer(self) -> TransformerConfig:
        """The transformer with its adapter."""
        audio = AudioConfig(
            self.speech_layers * self.speech_dim, 5, self.audio_hidden, self.audio_tokens, self.audio_dim
        )
        return TransformerConfig(
            dim=self.dim, ffn_dim=self.ffn_dim, num_layers=self.num_layers, in_dim=36, out_dim=16,
            text_dim=self.text_dim, freq_dim=256, image_dim=IMAGE_DIM, audio=audio,
        )  # fmt: skip


SIZES = {
    "tiny": Sizes(
        dim=256, ffn_dim=384, num_layers=2, audio_hidden=64, audio_tokens=8, audio_dim=64, vae_dim=8, vocab=2048,
        text_dim=64, text_ffn=128, text_heads=1, text_layers=2, clip_ffn=64, clip_layers=2, speech_conv=32,
        speech_dim=64, speech_ffn=128, speech_layers=4, lora_rank=4,
    ),
    "small": Sizes(
        dim=1024, ffn_dim=2816, num_layers=12, audio_hidden=256, audio_tokens=32, audio_dim=256, vae_dim=32,
        vocab=8192, text_dim=1024, text_ffn=2560, text_heads=16, text_layers=4, clip_ffn=5120, clip_layers=4,
        speech_conv=512, speech_dim=256, speech_ffn=1024, speech_layers=12, lora_rank=16,
    ),
    "full": Sizes(
        dim=5120, ffn_dim=13824, num_layers=40, audio_hidden=512, audio_tokens=32, audio_dim=768, vae_dim=96,
        vocab=256384, text_dim=4096, text_ffn=10240, text_heads=64, text_layers=24, clip_ffn=5120, clip_layers=32,
        speech_conv=512, speech_dim=768, speech_ffn=3072, speech_layers=12, lora_rank=64,
    ),
}  # fmt: skip


def shapes_of(kind: Kind, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Canonical key -> shape of one model of a set."""
    return _SHAPES[kind](sizes)


def random_source(shapes: Shapes, seed: int, name: str) -> TensorSource:
    """Tensors of these shapes; the numbers depend on seed, name, key and shape only."""

    def stored(key: str, shape: tuple[int, ...]) -> StoredTensor:
        return StoredTensor(shape, torch.bfloat16, lambda: draw(key, shape, f"{seed} {name}"))

    return TensorSource({key: stored(key, tuple(shape)) for key, shape in shapes.items()}, name)


def draw(key: str, shape: tuple[int, ...], seed: str) -> Tensor:
    """One random tensor in bf16, of a size that keeps activations near 1."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    mean, scale = _distribution(key, shape)
    tensor = torch.empty(shape, dtype=torch.bfloat16)
    for part in tensor.view(-1).split(CHUNK):
        part.copy_(torch.randn(part.numel(), generator=generator).mul_(scale).add_(mean))
    return tensor


def _distribution(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation. Norms scale by about 1, biases are small, matrices keep the size of their input."""
    leaf = key.rpartition(".")[2]
    if leaf in ("gamma", "original0") or (leaf == "weight" and len(shape) == 1):
        return 1.0, 0.1
    if leaf == "bias" or key.endswith("diff_b"):
        return 0.0, 0.05
    if key in ("shared.weight", "masked_spec_embed"):
        return 0.0, 1.0
    if "embeddings.class" in key or "position_embedding" in key or "relative_attention_bias" in key:
        return 0.0, 0.5
    gain = 0.7
    if key.startswith(("encoder.downsamples", "decoder.upsamples", "feature_extractor")) or ".residual." in key:
        gain = 1.4  # convolutions whose activation halves what it is given
    elif key == "decoder.head.2.weight":
        gain = 0.3  # pixels stay inside -1..1
    elif leaf == "diff" or ".lora_up." in key:
        gain = 0.05
    return 0.0, gain / math.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 0.05


def _dense(names: Iterable[str], out: int, into: int) -> dict[str, tuple[int, ...]]:
    table: dict[str, tuple[int, ...]] = {}
    for name in names:
        table |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    return table


def _norms(names: Iterable[str], width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{leaf}": (width,) for name in names for leaf in ("weight", "bias")}


def _meta_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def _whole_transformer(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return _meta_shapes(WanTransformer(sizes.transformer))


def _transformer(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in _whole_transformer(sizes).items() if not is_audio_key(key)}


def _adapter(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in _whole_transformer(sizes).items() if is_audio_key(key)}


def _vae(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    from ..models.vae import VAEConfig, WanVAE

    with torch.device("meta"):
        return _meta_shapes(WanVAE(VAEConfig(sizes.vae_dim)))


def _text_encoder(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    dim, ffn = sizes.text_dim, sizes.text_ffn
    table = {"shared.weight": (sizes.vocab, dim), "encoder.final_layer_norm.weight": (dim,)}
    for i in range(sizes.text_layers):
        attention, feed_forward = (f"encoder.block.{i}.layer.{n}" for n in range(2))
        table |= {f"{attention}.SelfAttention.{name}.weight": (dim, dim) for name in "qkvo"}
        table[f"{attention}.SelfAttention.relative_attention_bias.weight"] = (32, sizes.text_heads)
        table |= {f"{feed_forward}.DenseReluDense.{name}.weight": (ffn, dim) for name in ("wi_0", "wi_1")}
        table[f"{feed_forward}.DenseReluDense.wo.weight"] = (dim, ffn)
        table |= {f"{part}.layer_norm.weight": (dim,) for part in (attention, feed_forward)}
    return table


def _clip_vision(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    dim, root = IMAGE_DIM, "vision_model"
    table: dict[str, tuple[int, ...]] = {
        f"{root}.embeddings.class_embedding": (dim,),
        f"{root}.embeddings.position_embedding.weight": (IMAGE_TOKENS, dim),
        f"{root}.embeddings.patch_embedding.weight": (dim, 3, IMAGE_PATCH, IMAGE_PATCH),
        "visual_projection.weight": (IMAGE_EMBED if sizes.clip_layers == 32 else 16, dim),
    }
    table |= _norms((f"{root}.pre_layrnorm", f"{root}.post_layernorm"), dim)
    for i in range(sizes.clip_layers):
        layer = f"{root}.encoder.layers.{i}"
        table |= _dense((f"{layer}.self_attn.{name}_proj" for name in ("q", "k", "v", "out")), dim, dim)
        table |= _dense([f"{layer}.mlp.fc1"], sizes.clip_ffn, dim) | _dense([f"{layer}.mlp.fc2"], dim, sizes.clip_ffn)
        table |= _norms((f"{layer}.layer_norm1", f"{layer}.layer_norm2"), dim)
    return table


def _audio_encoder(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    conv, dim, convolutions = sizes.speech_conv, sizes.speech_dim, "feature_extractor.conv_layers"
    position = "encoder.pos_conv_embed.conv"
    table: dict[str, tuple[int, ...]] = {"masked_spec_embed": (dim,)}
    for i, kernel in enumerate(SPEECH_KERNELS):
        table[f"{convolutions}.{i}.conv.weight"] = (conv, conv if i else 1, kernel)
    table |= _norms((f"{convolutions}.0.layer_norm", "feature_projection.layer_norm"), conv)
    table |= _dense(["feature_projection.projection"], dim, conv) | _norms(["encoder.layer_norm"], dim)
    table[f"{position}.bias"] = (dim,)
    table[f"{position}.parametrizations.weight.original0"] = (1, 1, POSITION_KERNEL)
    table[f"{position}.parametrizations.weight.original1"] = (dim, dim // POSITION_GROUPS, POSITION_KERNEL)
    for i in range(sizes.speech_layers):
        layer = f"encoder.layers.{i}"
        table |= _dense((f"{layer}.attention.{name}_proj" for name in ("q", "k", "v", "out")), dim, dim)
        table |= _dense([f"{layer}.feed_forward.intermediate_dense"], sizes.speech_ffn, dim)
        table |= _dense([f"{layer}.feed_forward.output_dense"], dim, sizes.speech_ffn)
        table |= _norms((f"{layer}.layer_norm", f"{layer}.final_layer_norm"), dim)
    return table


def _lora(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """What the lightx2v distillation has: low-rank pairs and bias changes of linear layers, plain changes of norms."""
    table: dict[str, tuple[int, ...]] = {}
    for key, shape in _transformer(sizes).items():
        layer, _, leaf = key.rpartition(".")
        name = f"diffusion_model.{layer}"
        if leaf == "weight" and len(shape) == 2:
            table[f"{name}.lora_down.weight"] = (sizes.lora_rank, shape[1])
            table[f"{name}.lora_up.weight"] = (shape[0], sizes.lora_rank)
        elif leaf == "weight" and len(shape) == 1:
            table[f"{name}.diff"] = shape
        elif leaf == "bias":
            table[f"{name}.diff_b"] = shape
    return table


_SHAPES = {
    Kind.TRANSFORMER: _transformer,
    Kind.ADAPTER: _adapter,
    Kind.VAE: _vae,
    Kind.TEXT_ENCODER: _text_encoder,
    Kind.CLIP_VISION: _clip_vision,
    Kind.AUDIO_ENCODER: _audio_encoder,
    Kind.LORA: _lora,
}
