"""What NVIDIA's management library says of the driver, the GPUs and how they are joined; none of it needs CUDA.

Legend: a link is NVLink between two GPUs, or between a GPU and a switch that all of them share.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_LINKS = 18
P2P_NVLINK = 2  # nvmlGpuP2PCapsIndex_t
BUFFER = 96
# nvmlGpuTopologyLevel_t, as `nvidia-smi topo -m` abbreviates them.
LEVELS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}


@dataclass(frozen=True)
class NvmlGpu:
    """One GPU. Sizes in bytes; links: NVLinks that are up. pcie: generation and lanes, now and at most."""

    name: str
    total_bytes: int
    free_bytes: int
    links: int
    pcie: str


@dataclass(frozen=True)
class Nvml:
    """All GPUs of the machine. topology[i][j]: how i and j are joined, as `nvidia-smi topo -m` writes it."""

    driver: str
    cuda: str
    gpus: tuple[NvmlGpu, ...]
    topology: tuple[tuple[str, ...], ...]


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class _Pci(ctypes.Structure):
    _fields_ = [
        ("bus_id_legacy", ctypes.c_char * 16),
        *((name, ctypes.c_uint) for name in ("domain", "bus", "device", "device_id", "subsystem_id")),
        ("bus_id", ctypes.c_char * 32),
    ]


def read_nvml() -> Nvml | str:
    """What the library says, or why it cannot be asked."""
    name = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return f"there is no {name}: no NVIDIA driver is installed here"
    if code := library.nvmlInit_v2():
        return f"{name} does not start (error {code})"
    try:
        return _Reader(library).all()
    finally:
        library.nvmlShutdown()


class _Reader:
    """Asks one question after another; what a driver does not know stays empty."""

    def __init__(self, library: Any) -> None:
        self.library = library

    def call(self, name: str, *arguments: Any) -> bool:
        """Whether a function is there and answered."""
        function: Callable[..., int] | None = getattr(self.library, name, None)
        return function is not None and function(*arguments) == 0

    def all(self) -> Nvml:
        handles = [handle for index in range(self.number("nvmlDeviceGetCount_v2")) if (handle := self.handle(index))]
        version = self.number("nvmlSystemGetCudaDriverVersion_v2")
        return Nvml(
            self.text("nvmlSystemGetDriverVersion"), f"{version // 1000}.{version % 1000 // 10}" if version else "",
            tuple(self.gpu(handle) for handle in handles),
            tuple(tuple(self.joined(one, other) for other in handles) for one in handles),
        )  # fmt: skip

    def handle(self, index: int) -> ctypes.c_void_p | None:
        handle = ctypes.c_void_p()
        return handle if self.call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle)) else None

    def number(self, name: str, *arguments: Any) -> int:
        value = ctypes.c_uint()
        return value.value if self.call(name, *arguments, ctypes.byref(value)) else 0

    def text(self, name: str, *arguments: Any) -> str:
        buffer = ctypes.create_string_buffer(BUFFER)
        return buffer.value.decode(errors="replace") if self.call(name, *arguments, buffer, BUFFER) else ""

    def gpu(self, handle: ctypes.c_void_p) -> NvmlGpu:
        memory = _Memory()
        self.call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
        now = [self.number(f"nvmlDeviceGetCurrPcieLink{what}", handle) for what in ("Generation", "Width")]
        most = [self.number(f"nvmlDeviceGetMaxPcieLink{what}", handle) for what in ("Generation", "Width")]
        pcie = f"{now[0]}.0 x{now[1]} of {most[0]}.0 x{most[1]}" if all(most) else ""
        return NvmlGpu(self.text("nvmlDeviceGetName", handle), memory.total, memory.free, len(self.links(handle)), pcie)

    def links(self, handle: ctypes.c_void_p) -> list[int]:
        return [link for link in range(MAX_LINKS) if self.number("nvmlDeviceGetNvLinkState", handle, link) == 1]

    def bus(self, name: str, *arguments: Any) -> bytes:
        pci = _Pci()
        return pci.bus_id if self.call(name, *arguments, ctypes.byref(pci)) else b""

    def joined(self, one: ctypes.c_void_p, other: ctypes.c_void_p) -> str:
        if one.value == other.value:
            return "X"
        up, here = self.links(one), self.bus("nvmlDeviceGetPciInfo_v3", other)
        direct = [link for link in up if here and self.bus("nvmlDeviceGetNvLinkRemotePciInfo_v2", one, link) == here]
        status = ctypes.c_int(1)
        if direct:
            return f"NV{len(direct)}"
        if (
            self.call("nvmlDeviceGetP2PStatus", one, other, P2P_NVLINK, ctypes.byref(status))
            and status.value == 0
            and up
        ):
            return f"NV{min(len(up), len(self.links(other)))}"  # through a switch
        level = ctypes.c_int(-1)
        self.call("nvmlDeviceGetTopologyCommonAncestor", one, other, ctypes.byref(level))
        return LEVELS.get(level.value, "?")
