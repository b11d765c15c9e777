"""Whether an error says that memory ran out, whoever says it. Importing this needs no torch."""

from __future__ import annotations

DEVICE = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
HOST = ("DefaultCPUAllocator", "Cannot allocate memory", "os error 1455", "WinError 1455")


def is_of_device(error: BaseException) -> bool:
    """PyTorch says so, or a library that takes device memory of its own."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in DEVICE)


def is_of_host(error: BaseException) -> bool:
    """Python says so, PyTorch, or a system (1455: the page file of Windows is too small)."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in HOST)
