"""Whether an error says that memory ran out, whoever says it, and what helps then. Importing this needs no torch."""

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


def describe_shortage(error: BaseException) -> str | None:
    """For the user of a command or the app, where memory ran out outside of windows; None for any other error."""
    reason = (str(error) or "no more is given").partition("\n")[0].partition(" If reserved")[0][:300]
    if is_of_device(error):
        return (
            f"The device ran out of memory outside of a window, as while models are loaded: {reason}\n"
            "Close other programs that use it (nvidia-smi lists them), or let more be elsewhere: "
            "--preset 05_low_vram, --quant fp8, --num_persistent_param_in_dit 0, --t5_cpu true."
        )
    if is_of_host(error):
        return (
            f"Host memory ran out: {reason}\n"
            "Close other programs, use weights of fewer bits (--quant fp8, or a GGUF file), or make the system's swap "
            "or page file larger."
        )
    return None
