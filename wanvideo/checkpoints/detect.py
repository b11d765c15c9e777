"""What a file of weights is, told from its keys and shapes alone; file names are never trusted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import CheckpointError
from ..ops.linear.formats import FORMATS
from .dialects import SCALES, Found, Kind, find_dialect, to_canonical
from .reader import PackedTensor, TensorSource, few
from .tables import Shapes, block_count, rank_checked
from .variants import base_of, variant_of

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
    they are known. instead: what to use in its place, a sentence, where that is not what the slot needs anyway.
    """

    kind: Kind
    family: str
    storage: str = ""
    found: Found | None = None
    dim: int | None = None
    num_layers: int | None = None
    channels: int | None = None
    has_audio: bool = False
    instead: str = ""

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
    Kind.TINY_VAE: Slot(
        "a tiny VAE of Wan2.1 (16 channels)", "taew2_1.safetensors", "vae_approx",
        f"{HUB}/Kijai/WanVideo_comfy/tree/main",
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
    Kind.SYNCNET: Slot(
        "SyncNet as its authors published it", "syncnet_v2.model", "syncnet",
        "https://www.robots.ox.ac.uk/~vgg/software/lipsync",
    ),
}  # fmt: skip

LORA_MARKERS = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.down.", ".lora.up.", ".hada_w1", ".lokr_w1")
LORA_ENDS = (".diff", ".diff_b", ".diff_m", ".w_norm", ".b_norm")
# What nobody can use here but is easily put into a slot: (keys that it has, what it is).
OTHERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("vace_blocks.0.", "vace_patch_embedding."), "a VACE module without its transformer"),
    (("proj_model.proj.", "blocks.0.cross_attn.k_proj."), "a FantasyTalking audio module"),
    (("proj_model.proj.", "blocks.0.cross_attn.processor.k_proj."), "a FantasyTalking audio module"),
    (("proj_model.", "ip_adapter.blocks.0.cross_attn."), "a FantasyPortrait module"),
    (("controlnet_patch_embedding.", "controlnet_blocks.0."), "a Uni3C ControlNet"),
    (("audio_model.patch_embedding.0.", "audio_model.blocks.0."), "an Ovi audio transformer"),
    (("blocks.0.attn.qkv.", "blocks.0.ffn.w1."), "a LongCat transformer"),
    (("vision_model.embeddings.position_embedding.weight", "vision_model.head.probe"), "a SigLIP vision encoder"),
    (("text_model.embeddings.token_embedding.weight",), "a CLIP text encoder"),
    (("visual.transformer.resblocks.0.",), "a CLIP in OpenCLIP's naming"),
    (("decoder.1.weight", "decoder.3.conv.0.weight"), "a tiny VAE (TAESD) of an image model"),
    (("taesd_decoder.1.weight", "taesd_decoder.3.conv.0.weight"), "a tiny VAE (TAESD) of an image model"),
    (("decoder.mid.block_1.norm1.weight",), "a Stable Diffusion or Flux VAE"),
    (("decoder.mid_block.resnets.0.norm1.weight",), "a Stable Diffusion or Flux VAE"),
    (("face_encoder.0.conv_block.0.", "audio_encoder.0.conv_block.0."), "the SyncNet of Wav2Lip, another network"),
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
    return _DESCRIBE[found.dialect.kind](source.name, shapes, storage, found)


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


def _transformer(name: str, shapes: Shapes, storage: str, found: Found) -> Identity:
    variant = variant_of(shapes)
    layers = block_count(shapes, "blocks.")
    if variant is not None and variant.is_other:
        return Identity(Kind.OTHER, variant.family, storage, found, num_layers=layers, instead=variant.instead)
    dim, channels = rank_checked(name, Kind.TRANSFORMER, shapes, "patch_embedding.weight")[:2]
    has_image = any(key.startswith("img_emb.") for key in shapes)
    base = base_of(dim, channels, has_image)
    family = base.family
    has_audio = any(key.startswith("audio_proj.") for key in shapes)
    if has_audio:
        family += " with an audio adapter"
    kind = Kind.OTHER if base.is_other else Kind.TRANSFORMER
    return Identity(kind, family, storage, found, dim, layers, channels, has_audio, base.instead)


def _adapter(name: str, shapes: Shapes, storage: str, found: Found) -> Identity:
    dim = rank_checked(name, Kind.ADAPTER, shapes, "blocks.0.norm_x.weight")[0]
    layers = block_count(shapes, "blocks.")
    return Identity(Kind.ADAPTER, SLOTS[Kind.ADAPTER].wanted, storage, found, dim, layers, has_audio=True)


def _vae(name: str, shapes: Shapes, storage: str, found: Found) -> Identity:
    channels = rank_checked(name, Kind.VAE, shapes, "conv2.weight")[0]
    width = rank_checked(name, Kind.VAE, shapes, "encoder.conv1.weight")[0]
    return Identity(Kind.VAE, f"a Wan2.1 VAE ({channels} channels)", storage, found, width, channels=channels)


def _tiny_vae(name: str, shapes: Shapes, storage: str, found: Found) -> Identity:
    """taew2_1 for Wan2.1, with the tensors of HunyuanVideo's taehv; taew2_2 for Wan2.2."""
    width, channels = rank_checked(name, Kind.TINY_VAE, shapes, "decoder.1.weight")[:2]
    of = {16: "of Wan2.1 (taew2_1)", 48: "of Wan2.2 (taew2_2)"}.get(channels, f"of {channels} channels")
    family = f"a tiny VAE (TAE) {of}, which shows latents quickly and roughly"
    kind = Kind.TINY_VAE if channels == 16 else Kind.OTHER
    return Identity(kind, family, storage, found, width, channels=channels)


def _text_encoder(name: str, shapes: Shapes, storage: str, found: Found) -> Identity:
    rows, dim = rank_checked(name, Kind.TEXT_ENCODER, shapes, "shared.weight")
    layers = block_count(shapes, "encoder.block.")
    per_layer = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in shapes
    if layers > 1 and not per_layer:
        return Identity(Kind.OTHER, f"a T5 text encoder with {rows} tokens, as of Flux or SD3", storage, found, dim)
    return Identity(Kind.TEXT_ENCODER, f"a UMT5 text encoder ({dim} wide)", storage, found, dim, layers)


def _clip_vision(name: str, shapes: Shapes, storage: str, found: Found) -> Identity:
    dim = rank_checked(name, Kind.CLIP_VISION, shapes, "vision_model.embeddings.class_embedding")[-1]
    layers = block_count(shapes, "vision_model.encoder.layers.")
    return Identity(Kind.CLIP_VISION, f"a CLIP vision encoder ({dim} wide)", storage, found, dim, layers)


def _audio_encoder(name: str, shapes: Shapes, storage: str, found: Found) -> Identity:
    dim = rank_checked(name, Kind.AUDIO_ENCODER, shapes, "encoder.layer_norm.weight")[0]
    layers = block_count(shapes, "encoder.layers.")
    return Identity(Kind.AUDIO_ENCODER, f"a wav2vec2 audio encoder ({dim} wide)", storage, found, dim, layers)


def _syncnet(name: str, shapes: Shapes, storage: str, found: Found) -> Identity:
    out = rank_checked(name, Kind.SYNCNET, shapes, "netfclip.3.weight")[0]
    return Identity(Kind.SYNCNET, f"SyncNet (vectors of {out} numbers)", storage, found, out)


_DESCRIBE: dict[Kind, Callable[[str, Shapes, str, Found], Identity]] = {
    Kind.TRANSFORMER: _transformer,
    Kind.ADAPTER: _adapter,
    Kind.VAE: _vae,
    Kind.TINY_VAE: _tiny_vae,
    Kind.SYNCNET: _syncnet,
    Kind.TEXT_ENCODER: _text_encoder,
    Kind.CLIP_VISION: _clip_vision,
    Kind.AUDIO_ENCODER: _audio_encoder,
}


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
    instead = f"\n{identity.instead}" if identity.instead and kind is Kind.TRANSFORMER else " Choose one."
    raise CheckpointError(
        f"{describe(identity, name)}; the {slot or kind.value} slot needs {wanted.wanted}, "
        f"e.g. {wanted.example} in models/{wanted.folder}.{instead}"
    )


def canonical(source: TensorSource, identity: Identity) -> TensorSource:
    """The tensors of a source under our names. Raises: CheckpointError where its own names are not known."""
    if identity.found is None:
        raise CheckpointError(
            f"{describe(identity, source.name)}, whose tensors have names that are not known. Use another version."
        )
    return to_canonical(source, identity.found)


def check_fit(base: str, one: Identity, adapter: str, other: Identity) -> None:
    """Raises: CheckpointError when an adapter was made for a transformer of another size or kind."""
    if (one.dim, one.num_layers) != (other.dim, other.num_layers):
        raise CheckpointError(
            f"{adapter} is an adapter for {other.num_layers} blocks of width {other.dim}; {base} has "
            f"{one.num_layers} of width {one.dim}. Use it with Wan2.1-I2V-14B (40 blocks of width 5120)."
        )
    if one.channels != 36:
        raise CheckpointError(
            f"{base} is {one.family}; an audio adapter needs a Wan2.1 image-to-video transformer (36 channels). "
            "Use one, e.g. wan2.1_i2v_480p_14B_fp16.safetensors."
        )
