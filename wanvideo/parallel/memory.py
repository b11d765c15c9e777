"""Memory of one GPU that the others of its host read and write: what kernels send, they write there themselves.

No collective runs beside the kernels and takes their multiprocessors, nothing is packed before it is sent and nothing
unpacked after; what is left of an exchange is where ranks meet, 12 us on two H200.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import zlib
from functools import cache
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from ..memory.shortage import is_of_device
from .groups import Group

logger = logging.getLogger("wanvideo")
ALIGNMENT = 1024  # bytes, of each part


class SharedMemory(Protocol):
    """Bytes of this rank, and those of the others of its group, which are as many."""

    own: Tensor
    offsets: list[int]  # from the own bytes to those of each rank, in bytes
    addresses: list[int]

    def meet(self) -> None:
        """What the device does from here on comes after what all others were asked for before they met."""


class PeerMemory:
    """`SharedMemory` of the GPUs of one host; made by all ranks of a group together.

    Raises: on all ranks alike, torch.cuda.OutOfMemoryError where one has no room for it, RuntimeError where it cannot.
    """

    def __init__(self, group: Group, num_bytes: int, device: torch.device) -> None:
        symmetric = _symmetric_memory()
        assert group.handle is not None, "a group of one rank shares nothing"
        self._group = group
        problem: RuntimeError | None = None
        try:
            self.own = symmetric.empty(num_bytes, dtype=torch.uint8, device=device)
        except RuntimeError as error:
            problem = error
        _check_all(group, problem, device)
        self._handle = symmetric.rendezvous(self.own, group.handle.group_name)
        self.addresses = [int(address) for address in self._handle.buffer_ptrs]
        self.offsets = [address - self.addresses[group.index] for address in self.addresses]

    def meet(self) -> None:
        self._group.count()
        self._handle.barrier(0)


def _check_all(group: Group, problem: RuntimeError | None, device: torch.device) -> None:
    """Before ranks meet, where those who had no problem would wait for the others. The driver has no error of its own
    for memory that runs out."""
    kind = 0.0 if problem is None else 2.0 if is_of_device(problem) else 1.0
    worst = group.reduce_(torch.tensor([kind], device=device), "max").item()
    if worst:
        reason = "on another GPU" if problem is None else str(problem).partition("\n")[0]
        said = f"no memory can be shared ({reason})"
        raise torch.cuda.OutOfMemoryError(said) if worst == 2 else RuntimeError(said)


def _symmetric_memory() -> ModuleType:
    # Multicast over NVLink is a resource of the host, and hosts are shared.
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    import torch.distributed._symmetric_memory as symmetric

    return symmetric


@cache
def can_share(group: Group, device: torch.device) -> bool:
    """Whether all GPUs of a group write each other's memory; asked by all of its ranks together."""
    host = zlib.crc32(socket.gethostname().encode())
    facts = torch.tensor([float(host), -float(host), float(not _may_share(device))], dtype=torch.float64, device=device)
    highest, lowest, refused = group.reduce_(facts, "max").tolist()
    if refused or highest != -lowest:
        return False
    problem = ""
    try:
        PeerMemory(group, ALIGNMENT, device)
    except RuntimeError as error:  # of drivers and containers that do not pass handles on
        problem = str(error).splitlines()[0]
    failed = torch.tensor([float(bool(problem))], device=device)
    if not group.reduce_(failed, "max").item():
        return True
    logger.warning("GPUs of this host do not share memory (%s). They exchange through NCCL.", problem or "another one")
    return False


def _may_share(device: torch.device) -> bool:
    if device.type != "cuda" or importlib.util.find_spec("torch.distributed._symmetric_memory") is None:
        return False
    others = (index for index in range(torch.cuda.device_count()) if index != device.index)
    return all(torch.cuda.can_device_access_peer(device.index, index) for index in others)
