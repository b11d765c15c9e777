"""Dtypes by the names users know, and how matrix products are computed on the GPU: process-wide settings, put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@contextlib.contextmanager
def matmul_modes(tf32: bool = False, fp16_accumulation: bool = False) -> Iterator[None]:
    """Within the block: float32 products in TF32, and float16 products summed in float16 (faster, less exact)."""
    settings = torch.backends.cuda.matmul
    names = {"allow_tf32": tf32, "allow_fp16_accumulation": fp16_accumulation}
    wanted = {name for name, on in names.items() if on and hasattr(settings, name)}
    before = {name: getattr(settings, name) for name in wanted}
    try:
        for name in wanted:
            setattr(settings, name, True)
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)
