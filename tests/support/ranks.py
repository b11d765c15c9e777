"""Ranks of a job as processes on this machine's CPU, which talk over gloo."""

import os
import socket
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

from wanvideo.parallel.mesh import Mesh

CPU = torch.device("cpu")


def run_ranks(layout, work, *args):
    """`work(mesh, *args)` on as many ranks as the layout has, forked from here: what each of them returns."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            _rank, (layout, work, args, folder), nprocs=layout.world, start_method="fork"
        )  # fmt: skip
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(layout.world)]


def _rank(rank, layout, work, args, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=layout.world)
    with torch.no_grad():
        result = work(Mesh(layout, CPU), *args)
    torch.save(result, Path(folder) / str(rank))
    dist.barrier()
    dist.destroy_process_group()


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def environment(rank, world, port):
    """What torchrun sets for a rank on this machine."""
    return {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
