"""How many ranks do what for one video, and the choice of it. No torch is needed to plan.

Ranks of one video = passes of guidance at a time (CFG-parallel) x ring x Ulysses; neighbors in Ulysses are neighbors in
rank, since they exchange the most.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError

MAX_ULYSSES = 16  # heads of one token are exchanged with so many ranks at most


@dataclass(frozen=True)
class Layout:
    """cfg: groups of ranks that run different passes of a step. ulysses: ranks that split heads. ring: ranks, or groups
    of Ulysses, that split keys."""

    cfg: int = 1
    ulysses: int = 1
    ring: int = 1

    @property
    def sequence(self) -> int:
        """Ranks that split a video's tokens."""
        return self.ulysses * self.ring

    @property
    def world(self) -> int:
        return self.cfg * self.sequence

    def describe(self) -> str:
        """Words for the log."""
        parts = ((self.cfg, "passes"), (self.ulysses, "Ulysses"), (self.ring, "ring"))
        return " x ".join(f"{degree} {name}" for degree, name in parts if degree > 1) or "one rank"


@dataclass(frozen=True)
class Plan:
    """A layout and why it is the one."""

    layout: Layout
    reason: str


@dataclass(frozen=True)
class WantedRanks:
    """How a user wants ranks to share a video. is_auto: as suits them best. shard: the transformer's blocks."""

    ulysses: int = 1
    ring: int = 1
    is_auto: bool = False
    shard: bool = False


def ulysses_degrees(num_heads: int) -> tuple[int, ...]:
    """The degrees of Ulysses that a model of so many heads allows."""
    return tuple(degree for degree in range(1, min(num_heads, MAX_ULYSSES) + 1) if num_heads % degree == 0)


def check_layout(layout: Layout, world: int, num_heads: int, num_passes: int) -> None:
    """Raises: InputError for degrees that do not fit the ranks, the heads or the passes, naming those that do."""
    legal = ulysses_degrees(num_heads)
    if layout.ulysses not in legal:
        raise InputError(
            f"ulysses_size {layout.ulysses} does not split {num_heads} heads evenly. Use one of "
            f"{', '.join(map(str, legal))}, and ring_size for the rest."
        )
    if layout.ring < 1 or layout.cfg < 1:
        raise InputError(f"ring_size {layout.ring} and cfg_size {layout.cfg} have to be at least 1. Raise them.")
    if layout.cfg > num_passes:
        raise InputError(
            f"cfg_size {layout.cfg} has no use for a step of {num_passes} passes. Use at most {num_passes}."
        )
    if layout.world != world:
        pairs = [f"{u} x {world // u}" for u in legal if world % u == 0]
        raise InputError(
            f"{layout.describe()} is work for {layout.world} ranks, and {world} were started (--nproc_per_node). "
            f"Use ulysses_size x ring_size = {' or '.join(pairs)}, or --parallel auto."
        )


def plan_layout(world: int, num_heads: int, num_passes: int, num_jobs: int = 1) -> Plan:
    """The layout for one video on `world` ranks: passes first, then Ulysses, then ring.

    num_jobs: videos that wait; if there are enough, one a GPU is the fastest, and nothing is split.
    """
    if world == 1:
        return Plan(Layout(), "there is one GPU")
    if num_jobs >= world:
        return Plan(Layout(), f"{num_jobs} videos keep {world} GPUs busy without any exchange, one video a GPU")
    reasons = []
    cfg = max(c for c in range(1, num_passes + 1) if num_passes % c == 0 and world % c == 0)
    if cfg > 1:
        reasons.append(f"the {num_passes} passes of a step are independent, and cost one exchange a step")
    rest = world // cfg
    ulysses = max(degree for degree in ulysses_degrees(num_heads) if rest % degree == 0)
    if ulysses > 1:
        reasons.append(f"Ulysses exchanges least and splits {num_heads} heads evenly by {ulysses}")
    ring = rest // ulysses
    if ring > 1:
        reasons.append(f"ring takes the {ring} that heads cannot be split by")
    return Plan(Layout(cfg, ulysses, ring), "; ".join(reasons))


def choose_layout(wanted: WantedRanks, world: int, num_heads: int, num_passes: int) -> Plan:
    """The layout that is asked for, or the best one; ranks that are left run other passes."""
    if wanted.is_auto:
        return plan_layout(world, num_heads, num_passes)
    sequence = wanted.ulysses * wanted.ring
    cfg = world // sequence if sequence and world % sequence == 0 and world // sequence <= num_passes else 1
    layout = Layout(max(cfg, 1), wanted.ulysses, wanted.ring)
    check_layout(layout, world, num_heads, num_passes)
    return Plan(layout, "it was asked for")
