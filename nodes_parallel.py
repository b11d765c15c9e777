"""The node that has several GPUs sample a video together: workers that are started once and stay warm."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from .nodes_base import Node, expect, flag, socket, whole
from .nodes_common import host, stop_if_interrupted
from .nodes_model_loading import VideoModel
from .nodes_options import OPTIONS
from .wanvideo.engine.engine import Engine
from .wanvideo.engine.host import ModelHandle
from .wanvideo.engine.recorded import Render
from .wanvideo.engine.render import render
from .wanvideo.errors import InputError, UnsupportedError
from .wanvideo.fleet.group import Group
from .wanvideo.fleet.remote import RemoteRender
from .wanvideo.parallel.launch import check_exchange
from .wanvideo.parallel.layout import WantedRanks

MOST_GPUS = 64


@dataclass(frozen=True)
class Workers:
    """How many processes share a video, and how."""

    count: int
    wanted: WantedRanks


class Warm:
    """The workers as the host sees a model: what they take of the first GPU, and an order to end them."""

    def __init__(self, group: Group, device: torch.device) -> None:
        self.model, self.device, self.group = nn.Module(), device, group
        self.num_bytes = 0

    @property
    def device_bytes(self) -> int:
        return self.num_bytes if self.group.is_warm else 0

    def place(self) -> None:
        """They start with their first task."""

    def shrink(self, num_bytes: int) -> None:
        self.offload()

    def offload(self) -> None:
        self.group.close()


@dataclass
class WarmHandle:
    """What a host places."""

    residency: Warm
    managed: Any = field(default=None)


@cache
def _handle(count: int) -> WarmHandle:
    """Of the workers, which live as long as ComfyUI does or until their memory is needed."""
    device = host().device
    devices = [str(index) for index in range(count)] if device.type == "cuda" else count
    return WarmHandle(Warm(Group(devices), device))


def check_readable(model: VideoModel, vae: ModelHandle) -> None:
    """Raises: UnsupportedError where workers would need a VAE that no file has."""
    if model.ranks is not None and not vae.checkpoint.paths:
        raise UnsupportedError(
            "The VAE was loaded by another node, and the processes of WanVideoParallel read models from files. "
            "Use WanVideoVAELoader for it."
        )


def renderer(model: VideoModel, vae: ModelHandle, engine: Engine) -> Render:
    """What renders a talking video with a model: this process, or the workers that WanVideoParallel asks for."""
    workers = model.ranks
    if workers is None:
        return render
    handle = _handle(workers.count)
    warm = handle.residency

    def begin() -> None:
        model.handle.offload()
        vae.offload()
        warm.num_bytes = engine.weights.transformer_bytes + engine.weights.vae_bytes
        host().place(handle, warm.place, warm.num_bytes)

    return RemoteRender(warm.group, workers.wanted, vae, begin, stop_if_interrupted)


class WanVideoParallel(Node):
    CATEGORY = OPTIONS
    SEARCH_ALIASES = ["multi gpu", "ulysses", "ring", "xdit", "fsdp"]
    REQUIRED = {
        "model": socket("WANVIDEOMODEL"),
        "gpus": whole(0, 0, MOST_GPUS),
        "ulysses_size": whole(0, 0, 16),
        "ring_size": whole(0, 0, MOST_GPUS),
        "shard": flag(False),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDEOMODEL",), ("model",), "share"

    def share(self, model, gpus=0, ulysses_size=0, ring_size=0, shard=False):
        model = expect(model, VideoModel, "model")
        on_gpus = host().device.type == "cuda"
        there = torch.cuda.device_count() if on_gpus else MOST_GPUS
        if gpus > there:
            raise InputError(f"gpus is {gpus} and this machine has {there}. Choose at most that, or 0 for all of them.")
        count = gpus or (there if on_gpus else 1)
        if count > 1:
            check_exchange(on_gpus)
        sizes = ulysses_size or 1, ring_size or 1
        wanted = WantedRanks(*sizes, is_auto=not (ulysses_size or ring_size), shard=shard)
        return (replace(model, ranks=Workers(count, wanted) if count > 1 else None),)


NODES = (WanVideoParallel,)
