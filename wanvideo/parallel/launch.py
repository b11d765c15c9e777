"""The start of a rank: what torchrun says of it, its device, its groups, and what watches over the others.

torchrun, or anything else that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, starts one a GPU.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from ..errors import InputError, UnsupportedError
from .layout import Layout
from .mesh import Mesh
from .team import Team
from .watchdog import Watchdog, own_store

logger = logging.getLogger("wanvideo")
EXCHANGE_TIMEOUT = timedelta(minutes=30)
MEETING_TIMEOUT = timedelta(minutes=5)
LOOPBACK = "127.0.0.1"  # where ranks meet that are all on one machine


@dataclass(frozen=True)
class Place:
    """Which process this is. local_rank: on its machine, which is also its GPU there."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> Place:
        """Raises: InputError for numbers that no launcher sets."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        texts = [os.environ.get(name, default) for name, default in zip(names, ("0", "1", "0"), strict=True)]
        if not all(text.isdigit() for text in texts):
            raise InputError(
                f"{', '.join(names)} are {', '.join(texts)}. Start the program with torchrun, or unset them."
            )
        return cls(*map(int, texts))

    def environment(self, address: str, port: int) -> dict[str, str]:
        """What `of_environment` and the ranks' meeting read; rank 0 is at this address."""
        return {
            "RANK": str(self.rank), "WORLD_SIZE": str(self.world), "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": address, "MASTER_PORT": str(port),
        }  # fmt: skip

    def device(self, name: str | None) -> str:
        """The device of this rank, where `name` is what the user asks for."""
        if name is not None and not name.startswith("cuda"):
            return name
        if name is None and not torch.cuda.is_available():
            return "cpu"
        if name is not None and ":" in name:
            raise InputError(f"device {name} is one GPU, and {self.world} ranks were started. Leave the number out.")
        count = torch.cuda.device_count()
        if self.local_rank >= count:
            raise InputError(
                f"Rank {self.rank} is number {self.local_rank} on its machine, which has {count} GPUs. "
                f"Start at most {count} processes there: --nproc_per_node={count}."
            )
        return f"cuda:{self.local_rank}"


def _meet(backend: str) -> None:
    """Make the default process group.

    torchrun's agent keeps one store for all its restarts, and some versions of PyTorch do not tell them apart in it:
    ranks would look for those that died.
    """
    store, place = None, Place.of_environment()
    host, port = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        agent = dist.TCPStore(host, port, is_master=False, timeout=MEETING_TIMEOUT)
        store = dist.PrefixStore(f"wanvideo/ranks/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", agent)
    elif host == LOOPBACK and os.name == "posix":
        store = dist.PrefixStore("wanvideo/ranks", _store_of_this_machine(place, port))
    dist.init_process_group(
        backend, store=store, timeout=EXCHANGE_TIMEOUT, rank=place.rank, world_size=place.world
    )  # fmt: skip


def _store_of_this_machine(place: Place, port: int) -> dist.Store:
    """The store of ranks on one machine, which no other machine reaches: PyTorch by itself listens everywhere, and who
    can write into a store can become one of the ranks."""
    listener = None
    if place.rank == 0:
        with socket.create_server((LOOPBACK, port)) as server:
            listener = server.detach()
    return dist.TCPStore(
        LOOPBACK, port, place.world, is_master=place.rank == 0, timeout=MEETING_TIMEOUT, master_listen_fd=listener
    )  # fmt: skip


@contextmanager
def joined(layout: Layout, device: torch.device) -> Iterator[Team]:
    """This process as a rank of the job that the launcher started, for as long as the context is open."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Multicast over NVLink is a resource of the host, and hosts are shared.
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    check_exchange(device.type == "cuda")
    _meet("nccl" if device.type == "cuda" else "gloo")
    watchdog = None
    try:
        team = Team(Mesh(layout, device))
        if team.index == 0:
            logger.info("%d ranks: %s.", team.size, layout.describe())
        generation = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = own_store(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), generation)
        watchdog = Watchdog(store, team.index, team.size, team.mesh.counter)
        watchdog.start()
        yield team
        team.barrier()  # who leaves early takes the store with it
    finally:
        if watchdog is not None:
            watchdog.close()
        dist.destroy_process_group()


def check_exchange(on_gpus: bool) -> None:
    """Raises: UnsupportedError where GPUs cannot exchange tensors, as PyTorch for Windows has no NCCL."""
    if on_gpus and not (dist.is_available() and dist.is_nccl_available()):
        raise UnsupportedError(
            "GPUs cannot share a video here: this PyTorch has no NCCL, which is for Linux. Use one GPU for each video."
        )


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as place:
        place.bind((LOOPBACK, 0))
        return int(place.getsockname()[1])
