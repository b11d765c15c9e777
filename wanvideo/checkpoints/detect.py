"""What a file of weights is, told from its keys and shapes alone; file names are never trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..errors import CheckpointError
from ..ops.linear.formats import FORMATS
from .dialects import SCALES, Found, Kind, find_dialect, to_canonical
from .reader import PackedTensor, TensorSource, few

Shapes = Mapping[str, tuple[int, ...]]

DTYPE_NAMES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64",
    torch.float8_e4m3fn: "fp8_e4m3fn", torch.float8_e5m2: "fp8_e5m2", torch.int8: "int8", torch.uint8: "uint8",
}  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """What a file holds.

    family: in words, with an article. storage: the dtype or packed format that most of its bytes have, with `scaled` or
    `quanto` where scales lie beside the weights. found: how its tensors are named, where we can read it. has_audio: a
    transformer with the adapter merged in. dim, num_layers, channels: width, depth and input (or latent) channels where
    they are known.
    """

    kind: Kind
    family: str
    storage: str = ""
    found: Found | None = None
    dim: int | None = None
    num_layers: int | None = None
    channels: int | None = None
    has_audio: bool = False

    @property
    def dialect(self) -> str:
        """How its tensors are named; empty where we cannot read it."""
        return self.found.dialect.name if self.found else ""


@dataclass(frozen=True)
class Slot:
    """What belongs into a slot: in words, and as the name, the folder and the source of a file that users have."""

    wanted: str
    example: str
    folder: str
    link: str


HUB = "https://huggingface.co"
REPACKED = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/tree/main/split_files"
SLOTS = {
    Kind.TRANSFORMER: Slot(
        "a Wan2.1 image-to-video transformer (36 channels)", "wan2.1_i2v_480p_14B_fp16.safetensors", "diffusion_models",
        f"{REPACKED}/diffusion_models",
    ),
    Kind.ADAPTER: Slot(
        "a MultiTalk or InfiniteTalk audio adapter", "Wan2_1-InfiniTetalk-Single_fp16.safetensors", "diffusion_models",
        f"{HUB}/Kijai/WanVideo_comfy/tree/main/InfiniteTalk",
    ),
    Kind.VAE: Slot(
        "a Wan2.1 VAE (16 channels)", "Wan2_1_VAE_bf16.safetensors", "vae", f"{HUB}/Kijai/WanVideo_comfy/tree/main"
    ),
    Kind.TEXT_ENCODER: Slot(
        "a UMT5-XXL text encoder", "umt5-xxl-enc-bf16.safetensors", "text_encoders",
        f"{HUB}/Kijai/WanVideo_comfy/tree/main",
    ),
    Kind.CLIP_VISION: Slot(
        "a CLIP ViT-H/14 vision encoder", "clip_vision_h.safetensors", "clip_vision", f"{REPACKED}/clip_vision"
    ),
    Kind.AUDIO_ENCODER: Slot(
        "a wav2vec2 audio encoder", "wav2vec2-chinese-base_fp16.safetensors", "wav2vec2",
        f"{HUB}/Kijai/wav2vec2_safetensors/tree/main",
    ),
    Kind.LORA: Slot(
        "a LoRA", "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors", "loras",
        f"{HUB}/Kijai/WanVideo_comfy/tree/main/Lightx2v",
    ),
}  # fmt: skip

LORA_MARKERS = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.down.", ".lora.up.", ".hada_w1", ".lokr_w1")
LORA_ENDS = (".diff", ".diff_b", ".diff_m", ".w_norm", ".b_norm")
BASES = {
    16: "a Wan2.1 text-to-video transformer (16 channels)",
    36: "a Wan2.1 image-to-video transformer (36 channels)",
    48: "a Wan2.2 TI2V transformer (48 channels)",
}
VARIANTS = {
    "vace_blocks.": "a VACE transformer",
    "face_adapter.": "a Wan2.2 Animate transformer",
    "casual_audio_encoder.": "a Wan2.2 S2V transformer",
    "control_adapter.": "a Wan Fun camera transformer",
    "audio_model.": "an Ovi transformer",
}
# What nobody can use here but is easily put into a slot: (keys that it has, what it is).
OTHERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("vace_blocks.0.", "vace_patch_embedding."), "a VACE module without its transformer"),
    (("vision_model.embeddings.position_embedding.weight", "vision_model.head.probe"), "a SigLIP vision encoder"),
    (("text_model.embeddings.token_embedding.weight",), "a CLIP text encoder"),
    (("visual.transformer.resblocks.0.",), "a CLIP in OpenCLIP's naming"),
    (("decoder.mid.block_1.norm1.weight",), "a Stable Diffusion or Flux VAE"),
    (("decoder.mid_block.resnets.0.norm1.weight",), "a Stable Diffusion or Flux VAE"),
    (("decoder.1.weight", "decoder.3.conv.0.weight"), "a tiny preview VAE (TAE)"),
    (("hubert.feature_extractor.",), "a HuBERT audio encoder"),
    (("feature_extractor.conv_layers.0.0.weight",), "a wav2vec2 in fairseq's naming (use pytorch_model.bin)"),
    (("model.encoder.embed_positions.weight", "model.encoder.conv1.weight"), "a Whisper audio encoder"),
    (("encoder.blocks.0.attn.query.weight",), "a Whisper audio encoder"),
    (("encoder.embed_positions.weight", "encoder.conv1.weight"), "a Whisper audio encoder"),
    (("double_blocks.0.",), "a Flux or Hunyuan transformer"),
    (("model.diffusion_model.input_blocks.",), "a Stable Diffusion checkpoint"),
    (("model.embed_tokens.weight", "model.layers.0."), "a language model"),
)


def identify(source: TensorSource) -> Identity:
    """Tell what a source holds from its keys and shapes, whatever the dialect."""
    storage = storage_of(source)
    if any(marker in key for key in source for marker in LORA_MARKERS) or any(
        key.endswith(LORA_ENDS) for key in source
    ):
        return Identity(Kind.LORA, "a LoRA", storage)
    z_dim = _wan22_vae_channels(source)
    if z_dim:
        return Identity(Kind.OTHER, f"a Wan2.2 VAE with {z_dim} latent channels", storage, channels=z_dim)
    found = find_dialect(source)
    if found is None:
        return _other(source, storage)
    shapes = to_canonical(source, found).shapes
    return _DESCRIBE[found.dialect.kind](shapes, storage, found)


def _other(source: TensorSource, storage: str) -> Identity:
    for markers, family in OTHERS:
        if all(any(key.startswith(marker) for key in source) for marker in markers):
            return Identity(Kind.OTHER, family, storage)
    return Identity(Kind.UNKNOWN, f"of no kind that is known here (its tensors: {few(source)})", storage)


def _wan22_vae_channels(source: TensorSource) -> int | None:
    """The Wan2.2 VAE nests its stages one level deeper; in diffusers' names only its 48 latent channels tell it."""
    for prefix in ("", "model.", "vae."):
        nested = f"{prefix}decoder.upsamples.0.upsamples.0.residual.0.gamma" in source
        for key in (f"{prefix}conv2.weight", f"{prefix}post_quant_conv.weight"):
            if key in source and len(source.shape(key)) == 5 and (nested or source.shape(key)[0] == 48):
                return source.shape(key)[0]
    return None


def _transformer(shapes: Shapes, storage: str, found: Found) -> Identity:
    patch = shapes.get("patch_embedding.weight", (0, 0))
    dim, channels = patch[0], patch[1]
    family = BASES.get(channels, f"a Wan transformer with {channels} input channels")
    if channels == 36 and not any(key.startswith("img_emb.") for key in shapes):
        family = "a Wan2.2 image-to-video transformer (36 channels, no CLIP input)"
    has_audio = any(key.startswith("audio_proj.") for key in shapes)
    if has_audio:
        family += " with an audio adapter"
    kind = Kind.TRANSFORMER
    for start, name in VARIANTS.items():
        if any(key.startswith(start) for key in shapes):
            kind, family = Kind.OTHER, name
    if channels == 48:
        kind = Kind.OTHER
    return Identity(kind, family, storage, found, dim, _layers(shapes, "blocks."), channels, has_audio)


def _adapter(shapes: Shapes, storage: str, found: Found) -> Identity:
    dim = next((shape[0] for key, shape in shapes.items() if key.endswith("norm_x.weight")), None)
    family = SLOTS[Kind.ADAPTER].wanted
    return Identity(Kind.ADAPTER, family, storage, found, dim, _layers(shapes, "blocks."), has_audio=True)


def _vae(shapes: Shapes, storage: str, found: Found) -> Identity:
    channels = shapes["conv2.weight"][0]
    family = f"a Wan2.1 VAE ({channels} channels)"
    return Identity(Kind.VAE, family, storage, found, shapes["encoder.conv1.weight"][0], channels=channels)


def _text_encoder(shapes: Shapes, storage: str, found: Found) -> Identity:
    rows, dim = shapes["shared.weight"]
    layers = _layers(shapes, "encoder.block.")
    per_layer = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in shapes
    if layers > 1 and not per_layer:
        return Identity(Kind.OTHER, f"a T5 text encoder with {rows} tokens, as of Flux or SD3", storage, found, dim)
    return Identity(Kind.TEXT_ENCODER, f"a UMT5 text encoder ({dim} wide)", storage, found, dim, layers)


def _clip_vision(shapes: Shapes, storage: str, found: Found) -> Identity:
    dim = shapes["vision_model.embeddings.class_embedding"][-1]
    layers = _layers(shapes, "vision_model.encoder.layers.")
    return Identity(Kind.CLIP_VISION, f"a CLIP vision encoder ({dim} wide)", storage, found, dim, layers)


def _audio_encoder(shapes: Shapes, storage: str, found: Found) -> Identity:
    dim = shapes["encoder.layer_norm.weight"][0] if "encoder.layer_norm.weight" in shapes else None
    layers = _layers(shapes, "encoder.layers.")
    return Identity(Kind.AUDIO_ENCODER, f"a wav2vec2 audio encoder ({dim} wide)", storage, found, dim, layers)


_DESCRIBE: dict[Kind, Callable[[Shapes, str, Found], Identity]] = {
    Kind.TRANSFORMER: _transformer,
    Kind.ADAPTER: _adapter,
    Kind.VAE: _vae,
    Kind.TEXT_ENCODER: _text_encoder,
    Kind.CLIP_VISION: _clip_vision,
    Kind.AUDIO_ENCODER: _audio_encoder,
}


def _layers(shapes: Shapes, start: str) -> int:
    depth = start.count(".")
    return 1 + max((int(key.split(".")[depth]) for key in shapes if key.startswith(start)), default=-1)


def storage_of(source: TensorSource) -> str:
    """How the bulk of the weights is stored, e.g. `bf16`, `fp8_e4m3fn scaled`, `int8 quanto`, `Q4_K`."""
    sizes: dict[str, float] = {}
    for tensor in source.values():
        if isinstance(tensor, PackedTensor):
            name, size = tensor.format, FORMATS[tensor.format].bits / 8
        else:
            name = DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
            size = tensor.dtype.itemsize
        sizes[name] = sizes.get(name, 0) + math.prod(tensor.shape) * size
    name = max(sizes, key=lambda item: sizes[item])
    if any(key.endswith("._scale") for key in source):
        return f"{name} quanto"
    return f"{name} scaled" if any(key.endswith(SCALES) for key in source) else name


def describe(identity: Identity, name: str) -> str:
    """One sentence without its full stop: what the file `name` is."""
    return f"{name} is {identity.family}"


def require(source: TensorSource, kind: Kind, slot: str | None = None) -> Identity:
    """Identify a source and refuse it when it is of another kind.

    Args: slot: what the user calls the place, by default the kind's own name.
    Raises: CheckpointError with what the file is, what is wanted, and a file that fits.
    """
    identity = identify(source)
    check_kind(identity, source.name, kind, slot)
    return identity


def check_kind(identity: Identity, name: str, kind: Kind, slot: str | None = None) -> None:
    """Refuse what is of another kind, as `require` does, where it is recognized already."""
    if identity.kind is kind:
        return
    wanted = SLOTS[kind]
    raise CheckpointError(
        f"{describe(identity, name)}; the {slot or kind.value} slot needs {wanted.wanted}, "
        f"e.g. {wanted.example} in models/{wanted.folder}."
    )


def canonical(source: TensorSource, identity: Identity) -> TensorSource:
    """The tensors of a source under our names. Raises: CheckpointError where its own names are not known."""
    if identity.found is None:
        raise CheckpointError(f"{describe(identity, source.name)}, whose tensors have names that are not known.")
    return to_canonical(source, identity.found)


def check_fit(base: str, one: Identity, adapter: str, other: Identity) -> None:
    """Raises: CheckpointError when an adapter was made for a transformer of another size or kind."""
    if (one.dim, one.num_layers) != (other.dim, other.num_layers):
        raise CheckpointError(
            f"{adapter} is an adapter for {other.num_layers} blocks of width {other.dim}; {base} has "
            f"{one.num_layers} of width {one.dim}. It needs Wan2.1-I2V-14B (40 blocks of width 5120)."
        )
    if one.channels != 36:
        raise CheckpointError(
            f"{base} is {one.family}; an audio adapter needs a Wan2.1 image-to-video transformer (36 channels), "
            "e.g. wan2.1_i2v_480p_14B_fp16.safetensors."
        )
