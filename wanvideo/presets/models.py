"""The models that a preset needs beside its LoRAs, and the names that each is published under."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wanted:
    """A model.

    Args:
        field: of ModelFiles that it is for. what: for messages.
        names: endings of its path, best first; a folder goes by its own name, `*` stands for anything.
    """

    field: str
    what: str
    names: tuple[str, ...]


SHARD = "diffusion_pytorch_model"  # how files of an official base folder begin, which is then the model
ENCODERS = ("Wan2.1-I2V-14B-480P/Wan2.1_VAE.pth", "Wan2.1-I2V-14B-720P/Wan2.1_VAE.pth")  # in folders of either base
SPEECH = Wanted(
    "wav2vec", "the speech encoder chinese-wav2vec2-base",
    ("chinese-wav2vec2-base", "wav2vec2-chinese-base_*.safetensors"),
)  # fmt: skip
# What an official base folder has in it, and a transformer's file has not.
PARTS = (
    Wanted("vae", "the Wan2.1 VAE", ("wan_2.1_vae.safetensors", "Wan2_1_VAE_*.safetensors", "Wan2.1_VAE.pth")),
    Wanted(
        "text_encoder", "the text encoder UMT5-XXL",
        ("umt5_xxl_fp16.safetensors", "umt5_xxl_*.safetensors", "models_t5_umt5-xxl-enc-bf16.pth"),
    ),
    Wanted(
        "clip_vision", "CLIP ViT-H/14",
        ("clip_vision_h.safetensors", "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"),
    ),
)  # fmt: skip


def base(resolution: str) -> Wanted:
    """The transformer that was trained at "480" or "720"."""
    precisions = ("fp16", "bf16", "fp8_scaled", "fp8_e4m3fn", "fp8_*")
    return Wanted(
        "transformer", f"the base model Wan2.1-I2V-14B-{resolution}P",
        (
            f"Wan2.1-I2V-14B-{resolution}P/{SHARD}*.safetensors",
            *(f"wan2.1_i2v_{resolution}p_14B_{precision}.safetensors" for precision in precisions),
            *(f"Wan2_1-I2V-14B-{resolution}p_{precision}.safetensors" for precision in precisions),
            f"wan2.1-i2v-14b-{resolution}p-Q8_0.gguf", f"wan2.1-i2v-14b-{resolution}p-*.gguf",
        ),
    )  # fmt: skip


def quantized(quant: str, num_speakers: int) -> tuple[str, ...]:
    """Names of the published 480P transformer with its adapter, quantized so."""
    return (f"quant_models/infinitetalk_{_kind(num_speakers)}_{quant}.safetensors",)


def adapter(num_speakers: int) -> Wanted:
    """The InfiniteTalk adapter for so many speakers."""
    kind = _kind(num_speakers)
    names = (f"{kind}/infinitetalk.safetensors", f"Wan2_1-InfiniTetalk-{kind}_*", f"Wan2_1-InfiniteTalk-{kind}_*",
             f"wan2.1_infiniteTalk_{kind}_*")  # fmt: skip
    return Wanted("adapter", f"the InfiniteTalk adapter ({kind})", names)


def _kind(num_speakers: int) -> str:
    return "single" if num_speakers < 2 else "multi"
