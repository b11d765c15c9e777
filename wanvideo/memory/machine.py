"""What this machine has: GPUs, memory, disk. Everything is bytes."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError
from .budget import free_device_bytes, free_host_bytes, total_host_bytes
from .container import memory_limits
from .nvml import Nvml, read_nvml

SLACK_BYTES = 2**26  # of a disk, which others write to as well


@dataclass(frozen=True)
class Gpu:
    """A GPU that this PyTorch can use. capability: its generation, as (9, 0) for Hopper."""

    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """This machine.

    Args:
        nvml: what NVIDIA's library says, or why it cannot be asked.
        gpus: those that this process may use; torch_reason: why there is none.
        host_total_bytes, host_free_bytes: memory; container_bytes: what a container limits it to, or None.
    """

    system: str
    num_cores: int
    nvml: Nvml | str
    gpus: tuple[Gpu, ...]
    torch_reason: str
    host_total_bytes: int
    host_free_bytes: int
    container_bytes: int | None


def look() -> Machine:
    """Ask the system, the driver and PyTorch; nothing is allocated."""
    gpus, reason = _gpus()
    return Machine(
        f"{platform.system()} {platform.release()} {platform.machine()}", _num_cores(), read_nvml(), gpus, reason,
        total_host_bytes(), free_host_bytes(), _container_bytes(),
    )  # fmt: skip


def free_disk_bytes(folder: Path) -> int:
    """Of the disk that a folder lies on, or would lie on."""
    place = next((part for part in (folder, *folder.absolute().parents) if part.is_dir()), Path())
    return shutil.disk_usage(place).free


def check_disk(root: Path, num_bytes: int) -> None:
    """Raises: OutputError when the disk that `root` lies on has no room for so many bytes more."""
    free = free_disk_bytes(root)
    if free < num_bytes + SLACK_BYTES:
        raise OutputError(
            f"{root} has {free / 1e9:.1f} GB free, {num_bytes / 1e9:.1f} GB are to come. "
            "Free some space, or name another folder."
        )


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    import torch  # here, since disk and downloads need none of it

    if not torch.cuda.is_available():
        built = torch.version.cuda
        return (), f"built for CUDA {built}, and no GPU answers" if built else "this PyTorch is built without CUDA"
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free = free_device_bytes(torch.device("cuda", index))
        found.append(Gpu(properties.name, properties.total_memory, free, torch.cuda.get_device_capability(index)))
    return tuple(found), ""


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _container_bytes() -> int | None:
    """The least limit of the control groups that this process is in, where it is less than the machine's memory."""
    least = min((limit.total_bytes for limit in memory_limits()), default=None)
    return least if least is not None and least < total_host_bytes() else None
