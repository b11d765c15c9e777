"""Wan transformers that are not Wan2.1 image-to-video, by name: told from their keys, channels and width.

Only the first kind has the inputs that the sampler gives. The others load into the same blocks and would make noise, so
each is refused where it is recognized, with what to use instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]
I2V = "Use Wan2.1-I2V-14B (480P or 720P) and an InfiniteTalk or MultiTalk adapter."


@dataclass(frozen=True)
class Variant:
    """Args: family: what it is, with an article. instead: what to use. is_other: it cannot be run here."""

    family: str
    instead: str = I2V
    is_other: bool = True


# (parts that its keys have, what it is); the first that fits counts, so the narrower one stands first.
VARIANTS: tuple[tuple[tuple[str, ...], Variant], ...] = (
    (("vace_blocks.", "vace_patch_embedding."), Variant("a Wan VACE transformer")),
    (("vace_blocks.",), Variant("a Wan VACE transformer")),
    (
        ("audio_injector.",),
        Variant("a Wan2.2 S2V (speech to video) transformer", f"It brings its own audio path. {I2V}"),
    ),
    (("casual_audio_encoder.",), Variant("a Wan2.2 S2V (speech to video) transformer")),
    (("face_adapter.",), Variant("a Wan2.2 Animate transformer")),
    (("pose_patch_embedding.",), Variant("a Wan2.2 Animate transformer")),
    (("audio_proj.audio_proj_glob_1.",), Variant("a HuMo transformer", f"It brings its own audio path. {I2V}")),
    (("img_emb.emb_pos",), Variant("a Wan2.1 first-last-frame transformer (FLF2V)")),
    (("control_adapter.",), Variant("a Wan Fun camera transformer")),
    (("ref_conv.",), Variant("a Wan Fun control transformer")),
    (("fps_embedding.",), Variant("a SkyReels-V2 transformer (diffusion forcing)")),
    (("fps_projection.",), Variant("a SkyReels-V2 transformer (diffusion forcing)")),
    (("audio_model.",), Variant("an Ovi transformer")),
    (("proj_model.", "cross_attn.k_proj."), Variant("a Wan transformer with FantasyTalking in it")),
    (("cross_attn.ip_adapter",), Variant("a Wan transformer with an image adapter (Lynx, FantasyPortrait) in it")),
    (("self_attn.ref_adapter.",), Variant("a Wan transformer with Lynx in it")),
    (("cam_encoder.",), Variant("a ReCamMaster transformer")),
    (("motion_attn.",), Variant("an MTV-Crafter transformer")),
    (("patch_embedding_global.",), Variant("a Wan dancer transformer")),
    (("vocal_projector.",), Variant("a StableAvatar transformer", f"It brings its own audio path. {I2V}")),
    (("audio_cond_projs.",), Variant("an OmniAvatar transformer", f"It brings its own audio path. {I2V}")),
    (
        ("self_attn.memory_proj_",),
        Variant("a SoulX-LiveAct transformer", f"It makes video block by block, which is not here yet. {I2V}"),
    ),
)
CONTROL = Variant("a Wan Fun control transformer")
ONE_EXPERT = "It is one of two experts, which are trained for half of the steps each. "
WIDTHS = {1536: "1.3B", 3072: "5B"}


def variant_of(shapes: Shapes) -> Variant | None:
    """What a transformer is if its keys tell that it is not the plain one."""
    for parts, variant in VARIANTS:
        if all(any(_has(key, part) for key in shapes) for part in parts):
            return variant
    return None


def _has(key: str, part: str) -> bool:
    """Whether a key begins with a part, or a block's key has it."""
    return key.startswith(part) or (key.startswith("blocks.") and f".{part}" in key)


def base_of(dim: int, channels: int, has_image: bool) -> Variant:
    """A plain Wan transformer by its width, its input channels and whether it takes CLIP embeddings."""
    size = f" {WIDTHS[dim]}" if dim in WIDTHS else ""
    if channels == 36 and has_image:
        return Variant(f"a Wan2.1{size} image-to-video transformer (36 channels)", is_other=False)
    if channels == 36:
        return Variant(
            "a Wan2.2 image-to-video transformer (36 channels, no CLIP input)", ONE_EXPERT + I2V, is_other=True
        )
    if channels == 16:
        return Variant(f"a Wan{size} text-to-video transformer (16 channels)", is_other=False)
    if channels == 48 and not has_image:
        return Variant("a Wan2.2 TI2V transformer (48 channels)", f"It needs another VAE. {I2V}")
    if channels in (32, 48, 52, 68):
        return CONTROL
    return Variant(f"a Wan transformer with {channels} input channels", f"Here they are 36. {I2V}")
