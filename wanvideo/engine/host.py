"""Models that are loaded when they are needed, and the host that lends them the device's memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from ..checkpoints.checkpoint import Checkpoint
from ..errors import InputError, UnsupportedError
from ..memory.budget import free_device_bytes
from ..memory.residency import Residency, WholeResidency

CPU = torch.device("cpu")
Placed = TypeVar("Placed", bound="WholeResidency[Any] | Residency[Any]")


class Placeable(Protocol):
    """What a host brings to the device: residency: how it comes and leaves. managed: what the host keeps with it."""

    @property
    def residency(self) -> Any: ...

    managed: Any


class Host(Protocol):
    """Owns the memory of a device and lends it to models: this process alone, or ComfyUI's memory manager.

    device: where models run.
    """

    @property
    def device(self) -> torch.device: ...

    def obtainable_bytes(self) -> int:
        """Device memory that a run could have once everything else has made room, without what its models hold."""
        ...

    def make_room(self, num_bytes: int) -> None:
        """Have others leave the device until so many bytes are free, as far as they can."""
        ...

    def place(self, handle: Placeable, place: Callable[[], None], num_bytes: int) -> None:
        """Call `place`, which brings the handle's weights to the device, with `num_bytes` free for it and its run."""
        ...

    def trim(self) -> None:
        """Give back what a model that has just left held in the allocator's caches."""
        ...

    def discard(self, handle: ModelHandle[Any]) -> None:
        """The handle's model will not be used again: free its memory, wherever it is."""
        ...


class ModelHandle(Generic[Placed]):
    """A model that is recognized when it is named and loaded when it is first needed.

    Args:
        checkpoint: its files. host: whose device it runs on.
        load: makes the model on a given device.
        residency: how it comes to the device and leaves it.
        is_transient: it is loaded straight to the device and forgotten after each use.
        precision: what else decides what it computes, for caches of its results.
        num_bytes: counts what its weights take once they are loaded; None: as much as its files.
    """

    def __init__(
        self, checkpoint: Checkpoint, host: Host, load: Callable[..., nn.Module],
        residency: Callable[..., Placed], *, is_transient: bool = False, precision: str = "",
        num_bytes: Callable[[], int] | None = None,
    ) -> None:  # fmt: skip
        self.checkpoint, self.host, self.is_transient = checkpoint, host, is_transient
        self.precision = precision
        self.residency: Placed | None = None
        self.managed: Any = None  # what the host keeps with it
        self._load, self._residency_type, self._num_bytes = load, residency, num_bytes

    def shard(self, residency: Callable[..., Placed], index: int, count: int) -> None:
        """Load only every `count`-th block from `index` on, for a residency that knows of the others."""
        self._residency_type = residency
        self._load = partial(self._load, only_blocks=lambda block: block % count == index)

    @property
    def loaded(self) -> Placed:
        """Its residency, as long as it is loaded."""
        assert self.residency is not None, "load comes first"
        return self.residency

    @property
    def device_bytes(self) -> int:
        """Device memory that its weights take now."""
        return self.residency.device_bytes if self.residency else 0

    @property
    def expected_bytes(self) -> int:
        """What its weights will take; it need not be loaded."""
        if self._num_bytes is not None:
            return self._num_bytes()
        return sum(path.stat().st_size for path in self.checkpoint.paths)

    def load(
        self, num_bytes: int = 0, place: Callable[[], None] | None = None, is_resident: bool = False,
        on_cpu: bool = False,
    ) -> Any:  # fmt: skip
        """The model, on its device.

        Args:
            num_bytes: device memory that it and its run need. place: how it gets there, once loaded.
            is_resident: it will be there as a whole, so that it need not pass through host memory.
            on_cpu: it runs in host memory this time, and nobody has to make room.
        """
        if self.residency is None:
            check_device(self.host.device)
            if is_resident:
                self.host.make_room(num_bytes)
            model: Any = self._load(device=self.host.device if is_resident else CPU)  # of its residency's kind
            self.residency = self._residency_type(model, self.host.device)
        if on_cpu:
            self.residency.offload()
        else:
            self.host.place(self, place or self.residency.place, num_bytes)
        return self.residency.model

    def offload(self) -> None:
        """Give the device's memory back; the weights stay in host memory."""
        if self.residency is not None:
            self.residency.offload()
            self.host.trim()

    def unload(self) -> None:
        """Forget the model; it is loaded anew when it is needed again."""
        if self.residency is not None:
            self.host.discard(self)
        self.residency = self.managed = None
        self.host.trim()

    @contextmanager
    def in_use(
        self, place: Callable[[], None] | None = None, is_resident: bool = True, on_cpu: bool = False
    ) -> Iterator[Any]:
        """The model for one use, after which a transient one is forgotten. Arguments as in `load`."""
        try:
            yield self.load(place=place, is_resident=is_resident and self.is_transient, on_cpu=on_cpu)
        finally:
            if self.is_transient:
                self.unload()


WholeHandle = ModelHandle[WholeResidency[Any]]


class ProcessHost:
    """A process that has its device for itself. Args: name of a torch device; None: the GPU if there is one."""

    def __init__(self, name: str | None = None) -> None:
        self._device = _device(name)

    @property
    def device(self) -> torch.device:
        """Where models run; made the asking thread's own GPU, where kernels are launched wherever their tensors are."""
        if self._device.type == "cuda" and self._device.index is not None:
            torch.cuda.set_device(self._device)
        return self._device

    def obtainable_bytes(self) -> int:
        return free_device_bytes(self.device)

    def make_room(self, num_bytes: int) -> None:
        """Nobody else is here."""

    def place(self, handle: Placeable, place: Callable[[], None], num_bytes: int) -> None:
        place()

    def trim(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def discard(self, handle: ModelHandle[Any]) -> None:
        handle.loaded.model.to("meta")  # whoever still holds the model holds no memory with it


def _device(name: str | None) -> torch.device:
    """The device of this name; tried out."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:  # an AssertionError where torch is built without CUDA
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"device {name!r} cannot be used: {reason}. Use cuda, cuda:0 or cpu.") from None
    check_device(device)
    return device


def check_device(device: torch.device) -> None:
    """Raises: UnsupportedError for a kind of device on which no model here can run."""
    if device.type == "mps":
        raise UnsupportedError(
            "The device mps has no numbers of 64 bits, in which positions and colors are computed.\n"
            "Use cpu (start ComfyUI with --cpu), or a machine with an NVIDIA GPU."
        )
