"""Names of self-attention that users may give. Read without PyTorch, so that flags are judged before it is loaded."""

from __future__ import annotations

from ... import checks

ATTENTION_MODES = (
    "auto", "sdpa", "flash_attn_2", "flash_attn_3", "hopper", "fp8", "sageattn", "sageattn_3",
)  # fmt: skip
"""auto, and the backends of `backends.BACKENDS`."""
# Names that users' graphs hold for backends that are not offered, and what is used in their place.
STAND_INS = {
    "comfy": "auto",
    "flash_attn_3_fp8": "fp8",
    "radial_sage_attention": "sageattn",
    "sageattn_compiled": "sageattn",
    "sageattn_ultravico": "sageattn",
    "xformers": "sdpa",
}


def known(name: str) -> str:
    """The mode that a name of ATTENTION_MODES or STAND_INS stands for. Raises: InputError for any other name."""
    wanted = STAND_INS.get(name, name)
    checks.choice("attention_mode", wanted, ATTENTION_MODES)
    return wanted
