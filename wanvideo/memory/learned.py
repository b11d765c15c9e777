"""What runs on this machine took, kept in a small file from which later plans know their time.

Measured is what a window took on a device, by the format of the weights and the attention, divided by its passes of the
transformer: the VAE's share is in it. A plan asks for the run that is most alike; sizes in between go by operations.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

from .. import checks
from ..durable import write_atomically
from ..errors import TalkError
from ..untrusted import read_json

MOST = 64  # runs that are kept, the latest ones
ALIKE = 2.0  # times as many operations, at most, of a run whose time says something of another's
logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class Measured:
    """One kind of run: where, and with what; operations and seconds of a pass.

    stored, attention: format of the weights, backend. num_streamed: blocks that stream. num_passes: of a window.
    """

    device: str
    stored: str
    attention: str
    num_streamed: int
    num_passes: int
    flops: float
    pass_seconds: float

    def __post_init__(self) -> None:
        for name in ("device", "stored", "attention"):
            checks.text(name, getattr(self, name), 200)
        checks.number("num_streamed", self.num_streamed, 0, 10_000, whole=True)
        checks.number("num_passes", self.num_passes, 1, 1_000_000, whole=True)
        checks.number("flops", self.flops, 1, 1e30)
        checks.number("pass_seconds", self.pass_seconds, 1e-6, 1e6)

    @property
    def kind(self) -> tuple[object, ...]:
        """What two runs share of which the later one takes the earlier one's place."""
        return astuple(self)[:-1]

    def distance(self, other: Measured) -> float | None:
        """How unlike two runs are, 0 or more; None where the time of one says nothing of the other's."""
        same = (self.device, self.stored, self.attention) == (other.device, other.stored, other.attention)
        apart = abs(math.log(self.flops / other.flops))
        if not same or apart > math.log(ALIKE) or (self.num_streamed > 0) != (other.num_streamed > 0):
            return None
        return apart + abs(self.num_streamed - other.num_streamed) / 10 + abs(self.num_passes - other.num_passes) / 100


def learned_file() -> Path:
    """In the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wan-talking-video" / "measured.json"


def learned_seconds(wanted: Measured) -> float | None:
    """Seconds of a pass of a run like `wanted`, whose own time is not looked at; None where none was measured."""
    known = [(distance, run) for run in _read() if (distance := run.distance(wanted)) is not None]
    if not known:
        return None
    nearest = min(known, key=lambda item: item[0])[1]
    return nearest.pass_seconds * wanted.flops / nearest.flops


def learn(run: Measured) -> None:
    """Keep what a run took. A file that cannot be written is said in the log and no more: plans only know less."""
    runs = [known for known in _read() if known.kind != run.kind][-(MOST - 1) :]
    path = learned_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"runs": [asdict(known) for known in (*runs, run)]}, indent=1).encode())
    except OSError as error:
        logger.info("What this run took is not kept for later plans: %s cannot be written (%s).", path, error.strerror)


def _read() -> list[Measured]:
    """What earlier runs took; a file that was edited by hand or damaged counts as far as it can be read."""
    path, runs = learned_file(), []
    if not path.is_file():
        return []
    found = None
    with contextlib.suppress(TalkError):
        found = read_json(path, "the times of earlier runs")
    entries = found.get("runs") if isinstance(found, dict) else None
    names = [field.name for field in fields(Measured)]
    for entry in entries[-MOST:] if isinstance(entries, list) else ():
        with contextlib.suppress(TalkError):
            if isinstance(entry, dict) and set(entry) == set(names):
                runs.append(Measured(**entry))
    return runs
