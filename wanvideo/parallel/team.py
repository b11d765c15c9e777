"""Ranks that make one video together: the passes they share, and how errors of one reach all within a step.

What is said between hosts goes over a group of its own on the CPU, so that no device is waited for. Ranks compare
before anything else is said: who reports an error meets the others there, wherever they are.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import IntEnum
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UnsupportedError
from ..memory.oom import ran_out
from ..protocols import Key
from .mesh import Mesh

Shared = TypeVar("Shared")
LONGEST_WAIT = timedelta(hours=12)  # of a host for another one that loads; who is gone is the watchdog's business
MESSAGE_BYTES = 400


class State(IntEnum):
    """How a rank is."""

    RUNS = 0
    OUT_OF_MEMORY = 1
    STOPPED = 2


class PeerOutOfMemory(torch.cuda.OutOfMemoryError):
    """Another rank ran out of memory, and all begin the part anew."""


class PeerStopped(UnsupportedError):
    """Another rank ended the job."""


class Team:
    """The `Ranks` of a mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.index, self.size = mesh, mesh.rank, mesh.world
        self._control = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
        self._has_ended = False
        self._met_at = 0  # exchanges when all were last known to be at one place

    def begin(self) -> None:
        """Forget how the last video ended; all ranks begin another one."""
        self._has_ended, self._met_at = False, self.mesh.counter.count

    def run_passes(self, passes: Sequence[Key], run: Callable[[Key], Tensor], like: Tensor) -> dict[Key, Tensor]:
        """The passes of a step, dealt out to the groups of the mesh; a step may have fewer than there are groups."""
        group = self.mesh.passes
        if group.size == 1:
            return {which: run(which) for which in passes}
        owners = {which: place % group.size for place, which in enumerate(passes)}
        outputs = {which: run(which) for which in passes if owners[which] == group.index}
        for which in passes:
            if which not in outputs:
                outputs[which] = torch.empty_like(like, memory_format=torch.contiguous_format)
            outputs[which] = outputs[which].contiguous()
            group.broadcast_(outputs[which], owners[which])
        return outputs

    def agree(self, decision: bool) -> bool:
        self.check()
        flag = torch.tensor([decision], dtype=torch.uint8)
        dist.broadcast(flag, 0, group=self._control)
        return bool(flag[0])

    def share(self, value: Shared | None) -> Shared:
        """The first rank's value, which can be pickled, on all ranks. Raises: as `check`."""
        self.check()
        data = pickle.dumps(value) if self.index == 0 else b""
        size = torch.tensor([len(data)])
        dist.broadcast(size, 0, group=self._control)
        received = torch.empty(int(size[0]), dtype=torch.uint8)
        if self.index == 0:
            received = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(received, 0, group=self._control)
        if self.index == 0 and value is not None:
            return value
        shared: Shared = pickle.loads(received.numpy().tobytes())  # noqa: S301 - from a rank of this very job
        return shared

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self._compare(State.RUNS, "")

    def check(self) -> None:
        if not self._has_ended:
            self._compare(State.RUNS, "")

    def report(self, error: BaseException) -> None:
        if self._has_ended or isinstance(error, PeerOutOfMemory):
            return
        state = State.OUT_OF_MEMORY if ran_out(error) else State.STOPPED
        message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        try:
            self._compare(state, message)
        except PeerOutOfMemory:
            return  # they know as well
        except PeerStopped:
            if state is State.OUT_OF_MEMORY:
                raise  # or it would begin anew alone

    def _compare(self, state: State, message: str) -> None:
        """Tell the others how this rank is and hear it of them; all decide alike what follows."""
        text = message.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES)
        since = self.mesh.counter.count - self._met_at
        own = torch.tensor([state, since, *text], dtype=torch.int64)
        everybody = [torch.empty_like(own) for _ in range(self.size)]
        try:
            dist.all_gather(everybody, own, group=self._control)
        except RuntimeError as error:
            self._has_ended = True
            raise UnsupportedError(
                f"Rank {self.index} lost another rank of this job ({str(error).splitlines()[0][:120]}).\n"
                "What is finished is kept; start the same command again to go on."
            ) from None
        states = [State(int(entry[0])) for entry in everybody]
        worst = max(states)
        if worst is State.RUNS:
            self._met_at = self.mesh.counter.count
            return
        who = states.index(worst)
        said = bytes(everybody[who][2:].tolist()).decode(errors="replace").strip()
        if worst is State.STOPPED:
            self._has_ended = True
            raise PeerStopped(f"Rank {who} ended the job: {said}")
        if len({int(entry[1]) for entry in everybody}) > 1:
            self._has_ended = True
            raise UnsupportedError(
                f"Rank {who} ran out of device memory in the middle of an exchange: {said[:200]}\n"
                "Give it less: blocks_to_swap 40, a tiled VAE, 8-bit weights, --dit_fsdp, or more GPUs."
            )
        if state is State.RUNS:
            raise PeerOutOfMemory(f"rank {who}: {said}")
