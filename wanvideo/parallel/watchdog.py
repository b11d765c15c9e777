"""Notices ranks that are gone or hang, names them, and ends this process, so that the launcher can start anew."""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import socket
import threading
import time
from datetime import timedelta

import torch.distributed as dist

from .groups import Counter

logger = logging.getLogger("wanvideo")
BEAT_S = 1.0  # how often a rank says that it is alive
GONE_S = 20.0  # without a sign a rank is gone
HANG_S = 900.0  # without an exchange while others wait in a later one, a rank hangs
GRACE_S = 5.0  # for what runs here to end by itself
EXIT_CODE = 70
LEFT = "left"


class Watchdog:
    """A thread that tells the others where this rank is and watches where they are.

    Args: store: of this thread alone. counter: exchanges that this rank has started.
    """

    def __init__(self, store: dist.Store, rank: int, world: int, counter: Counter, hang_s: float = HANG_S) -> None:
        self._store, self._rank, self._world, self._counter, self._hang_s = store, rank, world, counter, hang_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._store.set(f"host/{self._rank}", socket.gethostname())
        self._thread.start()

    def close(self) -> None:
        """This rank leaves in good order."""
        self._ended.set()
        self._thread.join(2 * BEAT_S)
        with contextlib.suppress(RuntimeError):  # the first rank may be gone by now, and with it the store
            self._store.set(f"beat/{self._rank}", LEFT)

    def _watch(self) -> None:
        seen: dict[int, tuple[bytes, float]] = {}
        moved: dict[int, tuple[int, float]] = {}
        beat = 0
        while not self._ended.wait(BEAT_S):
            beat += 1
            try:
                self._store.set(f"beat/{self._rank}", f"{beat} {self._counter.count}")
                trouble = self._trouble(seen, moved)
            except RuntimeError:
                trouble = None if self._ended.is_set() else "the store of this job cannot be reached: rank 0 is gone"
            if trouble and not self._ended.is_set():
                self._end(trouble)
                return

    def _trouble(self, seen: dict[int, tuple[bytes, float]], moved: dict[int, tuple[int, float]]) -> str | None:
        now = time.monotonic()
        for rank in range(self._world):
            key = f"beat/{rank}"
            if not self._store.check([key]):
                seen.setdefault(rank, (b"", now + 10 * GONE_S))  # it has yet to start
                continue
            value = self._store.get(key)
            if value == LEFT.encode():
                moved.pop(rank, None)
                continue
            if rank not in seen or seen[rank][0] != value:
                seen[rank] = value, now
            if now - seen[rank][1] > GONE_S:
                return f"{self._name(rank)} gave no sign for {GONE_S:.0f} s: it is gone"
            count = int(value.split()[1])
            if rank not in moved or moved[rank][0] != count:
                moved[rank] = count, now
        return self._hanging(moved, now)

    def _hanging(self, moved: dict[int, tuple[int, float]], now: float) -> str | None:
        """Who is behind while nobody has moved for long."""
        if len(moved) < self._world or any(now - since < self._hang_s for _, since in moved.values()):
            return None
        behind = min(moved, key=lambda rank: moved[rank][0])
        furthest = max(count for count, _ in moved.values())
        if moved[behind][0] == furthest:
            return None  # all compute, or load, at the same place
        return (
            f"{self._name(behind)} hangs at exchange {moved[behind][0]}, the furthest rank at {furthest}: "
            f"nothing moved for {self._hang_s:.0f} s"
        )

    def _name(self, rank: int) -> str:
        host = f"host/{rank}"
        name = self._store.get(host).decode() if self._store.check([host]) else "an unknown host"
        return f"rank {rank} on {name}"

    def _end(self, trouble: str) -> None:
        logger.error("Rank %d ends: %s. What is finished is kept; start the same command again.", self._rank, trouble)
        _thread.interrupt_main()  # closes files where the main thread can still run
        if not self._ended.wait(GRACE_S):
            os._exit(EXIT_CODE)


def own_store(host: str, port: int, generation: str) -> dist.Store:
    """A connection of one's own to the store of the job; generation: of the launcher, whose keys are apart."""
    store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))
    return dist.PrefixStore(f"wanvideo/{generation}", store)
