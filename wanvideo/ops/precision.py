"""Dtypes by the names users know, and how matrix products are computed on the GPU: process-wide settings, put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@contextlib.contextmanager
def matmul_modes(tf32: bool = False, fp16_accumulation: bool = False) -> Iterator[None]:
    """Within the block: float32 products in TF32, and float16 products summed in float16 (faster, less exact).

    Without `tf32` convolutions are float32 too, which PyTorch computes in TF32 unless it is told not to: frames would
    depend on how many GPUs there are, since other shapes are computed by other kernels. Attention without a fused
    kernel sums half precision in float32 in any case: ComfyUI tells PyTorch otherwise, and a graph's frames would not
    be those of the command.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    names = {"allow_tf32": tf32, "allow_fp16_accumulation": fp16_accumulation}
    wanted = {name for name, on in names.items() if on and hasattr(products, name)}
    before, convolved = {name: getattr(products, name) for name in wanted}, convolutions.allow_tf32
    reduced = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    try:
        convolutions.allow_tf32 = tf32
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)
        for name in wanted:
            setattr(products, name, True)
        yield
    finally:
        convolutions.allow_tf32 = convolved
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(reduced)
        for name, value in before.items():
            setattr(products, name, value)
