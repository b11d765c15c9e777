"""Host memory on Windows, which has no /proc: the system's own functions."""

from __future__ import annotations

import ctypes
from typing import Any


class _MemoryStatus(ctypes.Structure):  # MEMORYSTATUSEX
    _fields_ = [
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *(
            (f"{what}_{kind}", ctypes.c_uint64)
            for kind in ("physical", "page_file", "virtual") for what in ("total", "free")
        ),
        ("free_extended", ctypes.c_uint64),
    ]  # fmt: skip


class _ProcessMemory(ctypes.Structure):  # PROCESS_MEMORY_COUNTERS
    _fields_ = [
        ("length", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        *(
            (name, ctypes.c_size_t)
            for name in (
                "peak_working_set", "working_set", "peak_paged_pool", "paged_pool", "peak_nonpaged_pool",
                "nonpaged_pool", "page_file", "peak_page_file",
            )
        ),
    ]  # fmt: skip


def physical_bytes() -> tuple[int, int]:
    """Memory of the machine, in all and free; the page file is not counted, since what is in it is slow."""
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if not _kernel32().GlobalMemoryStatusEx(ctypes.byref(status)):
        return 0, 2**62
    return status.total_physical, status.free_physical


def own_bytes() -> int:
    """Memory that this process has for itself; 0 where the system does not say."""
    kernel32, counters = _kernel32(), _ProcessMemory(length=ctypes.sizeof(_ProcessMemory))
    kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    kernel32.K32GetProcessMemoryInfo.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
    process = kernel32.GetCurrentProcess()
    found = kernel32.K32GetProcessMemoryInfo(process, ctypes.byref(counters), ctypes.sizeof(counters))
    return min(counters.page_file, counters.working_set) if found else 0


def _kernel32() -> Any:
    return ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]  # there is none elsewhere
