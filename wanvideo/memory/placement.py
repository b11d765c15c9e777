"""The parameter invariant: after any load, quantization, LoRA change or move, every parameter and buffer is
materialized, on the device it is used on, contiguous and 16-byte aligned. One function checks it, on every path.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

ALIGNMENT = 16  # bytes; what vectorized loads of the kernels need


class PlacementError(RuntimeError):
    """A tensor of a model is not where or how the kernels need it: a defect of this library, not of its input."""


def check_parameters(module: nn.Module, device: torch.device | str | None = None) -> None:
    """Check the invariant.

    Args: device: where every tensor must be; None: anywhere.
    Raises: PlacementError naming the first tensor that breaks it, and how.
    """
    wanted = None if device is None else torch.device(device)
    for name, tensor in _tensors(module):
        reason = _fault(tensor, wanted)
        if reason:
            raise PlacementError(f"{type(module).__name__}.{name} {list(tensor.shape)} {reason}")


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _fault(tensor: Tensor, wanted: torch.device | None) -> str | None:
    if tensor.is_meta:
        return "was never loaded (it is on the meta device)"
    if wanted is not None and not _same_device(tensor.device, wanted):
        return f"is on {tensor.device}, the model runs on {wanted}"
    if not _is_dense(tensor):
        return f"is not contiguous (strides {tensor.stride()})"
    if not _is_aligned(tensor):
        return f"is not aligned to {ALIGNMENT} bytes (address {tensor.data_ptr():#x})"
    return None


def _same_device(device: torch.device, wanted: torch.device) -> bool:
    return device.type == wanted.type and (wanted.index is None or device.index == wanted.index)


def _is_dense(tensor: Tensor) -> bool:
    """Contiguous as it is, or in the channels-last order that convolutions like."""
    if tensor.is_contiguous():
        return True
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    return channels_last is not None and tensor.is_contiguous(memory_format=channels_last)


def _is_aligned(tensor: Tensor) -> bool:
    return tensor.numel() == 0 or tensor.data_ptr() % ALIGNMENT == 0
