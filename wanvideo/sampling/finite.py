"""Windows whose results are no numbers: a run ends with the first, and says what of its models may have done it.

A whole window is looked at in one pass, after its last step and after the VAE; no step waits for a device.
Legend: T latent frames, h w latent rows and columns, F pixel frames, H W pixel rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..models.transformer import WanTransformer
from ..models.transformer_layers import SelfAttention
from ..ops.linear.formats import format_of
from ..ops.linear.layer import Linear


def is_finite(x: Tensor) -> bool:
    """Whether no number of contiguous x is NaN or infinite; takes no memory beside x, and waits for its device."""
    return bool(torch.stack(torch.aminmax(x)).isfinite().all())


def check_latents(
    latents: Tensor, window: str, transformer: WanTransformer, inputs: Mapping[str, Tensor | None]
) -> None:
    """Of latents [16, T, h, w] after a window's last step.

    Args: window: its name in messages. inputs: what the steps began with, by names in messages.
    Raises: UnsupportedError where they are not finite, with what is in use that is likely to have made them so.
    """
    if is_finite(latents):
        return
    wrong = [name for name, x in inputs.items() if x is not None and not is_finite(x)]
    if wrong:
        reason = f"Before the first step they were in the {' and the '.join(wrong)}: look for the cause there."
    else:
        reason = _likely(list(_suspects(transformer)), "transformer, adapter or LoRA")
    raise UnsupportedError(
        f"{window}: {_how_many(latents)} numbers of its latents are NaN or infinite after the last step.\n{reason}"
    )


def check_pixels(pixels: Tensor, window: str, dtype: torch.dtype) -> None:
    """Of pixels [3, F, H, W] that a VAE in `dtype` made of finite latents. Raises: UnsupportedError, as above."""
    if is_finite(pixels):
        return
    suspects = ["float16 in the VAE (use bf16 or fp32)"] if dtype == torch.float16 else []
    raise UnsupportedError(
        f"{window}: {_how_many(pixels)} numbers of its pixels are NaN or infinite, and none of its latents is.\n"
        f"{_likely(suspects, 'VAE')}"
    )


def _how_many(x: Tensor) -> str:
    count, total = x.numel() - int(x.isfinite().sum()), x.numel()
    return "all" if count == total else f"{count} of {total}"


def _likely(suspects: Sequence[str], files: str) -> str:
    """What may have done it and what to do, in at most two lines."""
    kept = "Windows before this one are kept."
    damaged = f"damaged {files} weights (compare the files with their source)"
    if not suspects:
        return f"{kept} Most likely: {damaged}."
    return f"{kept} Most likely, of what is in use: {'; '.join(suspects)}; else {damaged}.\nChange one at a time."


def _suspects(transformer: WanTransformer) -> Iterator[str]:
    """What of a transformer is known to leave the range of its numbers, the likeliest first."""
    if transformer.dtype == torch.float16:
        summed = getattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", False)
        yield f"float16{' with sums in float16' if summed else ''} (use bf16)"
    if transformer.loras is not None and (applied := transformer.loras.applied):
        yield f"LoRA {', '.join(applied)} (lower its strength)"
    attention = {module.backend.name for module in transformer.modules() if isinstance(module, SelfAttention)}
    if others := sorted(attention - {"sdpa"}):
        yield f"attention {', '.join(others)} (use sdpa)"
    formats = {format_of(module) for module in transformer.modules() if isinstance(module, Linear)}
    if quantized := sorted(name for name in formats if name is not None):
        yield f"weights in {', '.join(quantized)} (use bf16 ones)"
