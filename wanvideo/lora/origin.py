"""Which model a LoRA was made for, and whether it is one for few steps: from keys, shapes, names and metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

# (what the names of its layers have, dots as underscores; the model). The first that fits counts.
FOREIGN: tuple[tuple[str, str], ...] = (
    (r"single_transformer_blocks_\d", "Flux"),
    (r"(double|single)_blocks_\d", "Flux or HunyuanVideo"),
    (r"joint_blocks_\d", "Stable Diffusion 3"),
    (r"(down|up|input|output|middle|mid)_blocks?_\d", "Stable Diffusion or SDXL"),
    (r"transformer_blocks_\d+_(attn_add|img_mlp|txt_mlp)", "Qwen-Image or Stable Diffusion 3"),
    (r"transformer_blocks_\d", "LTX-Video or CogVideoX"),
    (r"(^|_)te[12]?_|text_model_encoder_layers", "a text encoder of Stable Diffusion or Flux"),
    (r"layers_\d+_(attention|adaLN)", "Lumina or Z-Image"),
    (r"blocks_\d+_adaln_modulation|blocks_block\d", "Cosmos"),
    (r"vace_blocks_\d", "Wan VACE"),
    (r"audio_injector_", "Wan2.2 S2V"),
    (r"face_adapter_|pose_patch_embedding", "Wan2.2 Animate"),
    (r"self_attn_[qkv]_loras", "Stand-In"),
)
WIDTHS = {1536: "Wan2.1 1.3B", 3072: "Wan2.2 TI2V 5B", 4096: "LongCat-Video"}
OF_A_BLOCK = re.compile(r"(^|[._])blocks[._]\d+[._](self_attn|cross_attn)[._][qko]$")
# (what names of few-step LoRAs have, how many steps it is made for)
FEW_STEPS: tuple[tuple[str, int], ...] = (
    (r"(light(x2v|ning)|step.?distill|self.?forcing|\bdmd2?\b)", 4),
    (r"(\brcm\b|turbodiffusion|turbowan)", 4),
    (r"(fusion.?x|phantom.?fusion)", 8),
    (r"(causvid|accvid(eo)?)", 8),
    (r"fast.?wan", 4),
)
_COUNTED = re.compile(r"(?<![a-z0-9])(\d{1,2})[ ._-]?steps?(?![a-z])")
_TITLES = ("ss_output_name", "modelspec.title", "ss_training_comment", "name", "title")


def foreign_model(names: Iterable[str], width: int | None) -> str | None:
    """The model that a LoRA was made for if it is another than the one here; None if it may be for this one.

    Args: names: of the layers that it changes, without prefixes. width: of the attention layers that it changes.
    """
    flat = [name.replace(".", "_") for name in names]
    for pattern, model in FOREIGN:
        search = re.compile(pattern).search
        if any(search(name) for name in flat):
            return model
    return WIDTHS.get(width) if width is not None else None


def few_steps(path: str | Path, metadata: Mapping[str, str]) -> int | None:
    """How many steps a LoRA is made for, where its name or its metadata tells that they are few."""
    texts = [Path(path).name, *(metadata[title] for title in _TITLES if title in metadata)]
    for text in texts:
        spelled = re.sub(r"[_\s]+", " ", text.lower())
        known = next((steps for pattern, steps in FEW_STEPS if re.search(pattern, spelled)), None)
        counted = _COUNTED.search(spelled)
        if counted and 1 <= int(counted[1]) <= 12:
            return int(counted[1])
        if known is not None:
            return known
    return None
