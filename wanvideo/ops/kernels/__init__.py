"""Fused Triton kernels. Each has an eager reference beside its caller in `ops/`.

The kernel modules are imported when a tensor on a GPU first needs them, so that nothing here needs Triton to be there.
"""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    """Generation of an NVIDIA GPU; for other makers none, since the kernels hold lines of NVIDIA's assembly."""
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return torch.cuda.get_device_capability(device) if is_nvidia else (0, 0)


@cache
def _run_on(device: torch.device) -> bool:
    """Ampere GPUs and later; Triton compiles for no older ones."""
    return importlib.util.find_spec("triton") is not None and _capability(device) >= (8, 0)


def usable(x: Tensor) -> bool:
    """Whether the kernels can run on this tensor; in compiled code the compiler fuses their eager references itself."""
    return x.is_cuda and not torch.compiler.is_compiling() and _run_on(x.device)


@cache
def has_copy_engine(device: torch.device) -> bool:
    """Whether kernels that read whole tiles through descriptors run here, and fast: Hopper GPUs and later."""
    known = importlib.util.find_spec("triton.tools.tensor_descriptor") is not None
    return known and _capability(device) >= (9, 0)


@cache
def has_large_tiles(device: torch.device) -> bool:
    """Whether a program has 160 KB for its tiles, as on GPUs for data centers; on others it has 99 KB."""
    return _capability(device) in ((8, 0), (9, 0), (10, 0), (10, 3))


def dot_precision(x: Tensor) -> str:
    """How `tl.dot` is to multiply numbers of this dtype: float32 as such, not rounded to TF32."""
    return "ieee" if x.dtype == torch.float32 else "tf32"


def softmax_scale(width: int) -> float:
    """What scores of heads of this width are multiplied by for a softmax of powers of two."""
    return width**-0.5 / math.log(2)


@cache
def row_kernels() -> ModuleType:
    return import_module(".rows", __name__)


@cache
def attention_kernels() -> ModuleType:
    return import_module(".attention", __name__)


@cache
def hopper_kernels() -> ModuleType:
    return import_module(".hopper_attention", __name__)


@cache
def value_kernels() -> ModuleType:
    return import_module(".hopper_values", __name__)


@cache
def conv_kernels() -> ModuleType:
    return import_module(".conv", __name__)


@cache
def absorbed_kernels() -> ModuleType:
    return import_module(".absorbed", __name__)
