"""What a container, a service or a session may take of the machine's memory: control groups of Linux, both versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RECLAIMED = ("inactive_file", "active_file")


@dataclass(frozen=True)
class Limit:
    """Of one control group: all that its processes may have, and what is left of it. Bytes."""

    total_bytes: int
    free_bytes: int


def memory_limits(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[Limit]:
    """Limits of the groups that this process is in, from its own up to the root; empty where there is none.

    Pages of files that were read count as free, as in MemAvailable: the kernel gives them up before it kills anybody.
    Source: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    try:
        memberships = [line.split(":", 2) for line in groups.read_text().splitlines() if line.count(":") >= 2]
    except OSError:
        return []
    limits = []
    for _, controllers, path in memberships:
        if not controllers:
            places, names = _upward(root, path), ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            places, names = _upward(root / "memory", path), ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        limits += [limit for place in places if (limit := _limit(place, *names)) is not None]
    return limits


def _upward(root: Path, path: str) -> Iterator[Path]:
    """A group's folder and those above it. In a container the path may be the host's, and not be there."""
    place = root / path.lstrip("/")
    while place != root:
        yield place
        place = place.parent
    yield root


def _limit(place: Path, total: str, used: str) -> Limit | None:
    try:
        most = int((place / total).read_text())  # "max" where there is none
        taken = int((place / used).read_text())
        counts = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    with_children = "total_" if f"total_{RECLAIMED[0]}" in counts else ""  # version 1 counts a group's own beside them
    files = sum(int(counts.get(with_children + name, 0)) for name in RECLAIMED)
    return Limit(most, max(most - taken + files, 0))
