"""Fused Triton kernels. Each has a plain-PyTorch twin beside its caller in `ops/`.

The kernel modules are imported when a tensor on a GPU first needs them, so that nothing here needs Triton to be there.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def usable(x: Tensor) -> bool:
    """Whether the kernels can run on this tensor; in compiled code the compiler fuses their plain twins itself."""
    return x.is_cuda and not torch.compiler.is_compiling() and _has_triton()


@cache
def has_copy_engine(device: torch.device) -> bool:
    """Whether kernels that read whole tiles through descriptors run here, and fast: Hopper GPUs and later."""
    known = importlib.util.find_spec("triton.tools.tensor_descriptor") is not None
    return known and torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def row_kernels() -> ModuleType:
    return import_module(".rows", __name__)


@cache
def attention_kernels() -> ModuleType:
    return import_module(".attention", __name__)


@cache
def conv_kernels() -> ModuleType:
    return import_module(".conv", __name__)


@cache
def folded_kernels() -> ModuleType:
    return import_module(".folded", __name__)
