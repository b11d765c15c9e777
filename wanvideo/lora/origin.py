"""Which model a LoRA was made for, told from its keys and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable

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
