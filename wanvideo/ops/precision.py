"""Dtypes by the names users know, and how matrix products are computed on the GPU: process-wide settings, put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


Setting = tuple[Any, str, object]  # whose, its name, its value


@contextlib.contextmanager
def matmul_modes(tf32: bool = False, fp16_accumulation: bool = False) -> Iterator[None]:
    """Within the block: float32 products in TF32, and float16 products summed in float16 (faster, less exact).

    Without `tf32` products and convolutions are float32, whatever other code in this process told PyTorch, which
    computes convolutions in TF32 unless it is told not to: frames would depend on how many GPUs there are, since other
    shapes are computed by other kernels. Attention without a fused kernel sums half precision in float32 in any case:
    ComfyUI tells PyTorch otherwise, and a graph's frames would not be those of the command.
    """
    products, settings = torch.backends.cuda.matmul, [_products(tf32), _convolutions(tf32)]
    if fp16_accumulation and hasattr(products, "allow_fp16_accumulation"):
        settings.append((products, "allow_fp16_accumulation", True))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    reduced = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    try:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)
        _set(settings)
        yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(reduced)
        _set(before)


def _set(settings: list[Setting]) -> None:
    for owner, name, value in settings:
        setattr(owner, name, value)


def _products(tf32: bool) -> Setting:
    """By the name that compilers read too, which PyTorch refuses where other code used the new one for TF32."""
    owner = torch.backends.cuda.matmul
    try:
        _ = owner.allow_tf32
    except RuntimeError:
        return owner, "fp32_precision", _precision(tf32)
    return owner, "allow_tf32", tf32


def _convolutions(tf32: bool) -> Setting:
    """By the new name where there is one: the old one cannot be read where other code used that, and then does less."""
    owner = torch.backends.cudnn
    return (owner.conv, "fp32_precision", _precision(tf32)) if hasattr(owner, "conv") else (owner, "allow_tf32", tf32)


def _precision(tf32: bool) -> str:
    return "tf32" if tf32 else "ieee"
