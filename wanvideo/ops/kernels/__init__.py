"""Fused Triton kernels. Each has a plain-PyTorch twin beside its caller in `ops/`.

The kernel modules are imported when a tensor on a GPU first needs them, so that nothing here needs Triton to be there.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib import import_module
from types import ModuleType

from torch import Tensor


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def usable(x: Tensor) -> bool:
    """Whether the kernels can run on this tensor."""
    return x.is_cuda and _has_triton()


@cache
def row_kernels() -> ModuleType:
    return import_module(".rows", __name__)


@cache
def attention_kernels() -> ModuleType:
    return import_module(".attention", __name__)


@cache
def conv_kernels() -> ModuleType:
    return import_module(".conv", __name__)
