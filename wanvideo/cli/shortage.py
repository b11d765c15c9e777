"""What to say where memory ran out outside of windows, in the flags of commands."""

from __future__ import annotations

from ..memory.shortage import is_of_device, is_of_host


def describe_shortage(error: BaseException) -> str | None:
    """What happened and what helps; None for any other error."""
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
