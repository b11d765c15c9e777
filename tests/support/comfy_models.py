"""Tiny models in a ComfyUI's models folder, under the names that templates and users' graphs give."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import safetensors.torch
import torch

from wanvideo.checkpoints.dialects import Kind
from wanvideo.checkpoints.synthetic import make_models
from wanvideo.checkpoints.synthetic_weights import SIZES, shapes_of

ASSETS = Path(__file__).resolve().parents[2] / "wanvideo" / "assets"
BASE = "diffusion_models/wan2.1_i2v_480p_14B_bf16.safetensors"
SINGLE = "diffusion_models/Wan2_1-InfiniteTalk-Single_bf16.safetensors"
MULTI = "model_patches/wan2.1_infiniteTalk_multi_bf16.safetensors"
# What a template names -> which of the tiny files stands for it; files are recognised by content, never by name.
ALIASES = {
    "diffusion_models/wan2.1_i2v_480p_14B_fp8_scaled.safetensors": BASE,
    "diffusion_models/wan2.1_i2v_480p_14B_fp16.safetensors": BASE,
    "diffusion_models/Wan2_1-InfiniTetalk-Single_fp16.safetensors": SINGLE,
    "diffusion_models/Wan2_1-InfiniteTalk-Multi_fp16.safetensors": MULTI,
    "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors": "text_encoders/umt5_xxl_bf16.safetensors",
    "vae/Wan2_1_VAE_bf16.safetensors": "vae/wan_2.1_vae.safetensors",
    "wav2vec2/wav2vec2-chinese-base_fp16.safetensors": "wav2vec2/wav2vec2-chinese-base_bf16.safetensors",
}


def put_models(models: Path) -> None:
    """Everything that the templates need; ComfyUI's own CLIPVisionLoader knows only the full ViT-H."""
    make_models(models, "tiny", "comfy")
    for name, source in ALIASES.items():
        shutil.copyfile(models / source, models / name)
    write_clip(models / "clip_vision" / "clip_vision_h.safetensors")


def write_clip(path: Path) -> None:
    """A ViT-H whose first two layers are random and whose others do nothing, which is written in a second."""
    sizes = dataclasses.replace(SIZES["tiny"], clip_ffn=5120, clip_layers=32)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes_of(Kind.CLIP_VISION, sizes).items():
        is_idle = ".layers." in name and int(name.split(".layers.")[1].split(".")[0]) > 1
        tensors[name] = torch.zeros(shape, dtype=torch.float16)
        if not is_idle:
            tensors[name].normal_(std=0.02, generator=generator)
    safetensors.torch.save_file(tensors, path)


def put_inputs(folder: Path) -> None:
    """The pictures and sounds that the templates name."""
    for file in ASSETS.iterdir():
        shutil.copyfile(file, folder / file.name)
