"""Step caches: in steps whose result would barely differ from the last one, reuse what the blocks changed then.

A cache lives as long as its window. It decides once a step, for all passes of the step alike, and keeps what each pass
computed under that pass. Legend: L tokens, D width, T latent frames, H W latent rows and columns.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..protocols import OneRank, Ranks
from ..request import StepCache
from .guidance import Pass

logger = logging.getLogger("wanvideo")
FEW_STEPS = 5  # each of so few steps changes too much to be left out
LARGE_PIXELS = 640 * 960  # larger pictures take the numbers that were measured at 720p

# Highest power first, for the time modulation that all blocks share.
TEACACHE_POLYNOMIALS = {
    "480": (2.57151496e5, -3.54229917e4, 1.40286849e3, -1.35890334e1, 1.32517977e-1),
    "720": (8.10705460e3, 2.13393892e3, -3.72934672e2, 1.66203073e1, -4.17769401e-2),
}
# Size of what the blocks change in a step over that in the step before, in 40 steps of the pass with the prompt.
MAGCACHE_RATIOS = {
    "480": (
        1.0, 0.98783, 0.97559, 0.98311, 0.98202, 0.9888, 0.98762, 0.98957, 0.99052, 0.99383, 0.98857, 0.99065, 0.98845,
        0.99057, 0.98957, 0.98601, 0.98823, 0.98756, 0.98808, 0.98721, 0.98571, 0.98543, 0.98157, 0.98411, 0.97952,
        0.98149, 0.9774, 0.97825, 0.97355, 0.97085, 0.97056, 0.96588, 0.96113, 0.9567, 0.94961, 0.93973, 0.93217,
        0.91878, 0.90955, 0.92617,
    ),
    "720": (
        1.0, 0.99428, 0.98588, 0.98273, 0.99018, 0.98911, 0.98646, 0.99454, 0.9891, 0.99124, 0.99102, 0.99215, 0.99515,
        0.99576, 0.99068, 0.99097, 0.99166, 0.99041, 0.99201, 0.99101, 0.98599, 0.98845, 0.98848, 0.98862, 0.98718,
        0.98497, 0.98264, 0.98389, 0.97938, 0.97535, 0.97498, 0.973, 0.96827, 0.96261, 0.95335, 0.94649, 0.93397,
        0.91636, 0.89088, 0.8679,
    ),
}  # fmt: skip


def usable_cache(options: StepCache | None, num_steps: int) -> StepCache | None:
    """`options`, or None where there are too few steps for any cache, which the log says."""
    if options is None or num_steps > FEW_STEPS:
        return options
    logger.info("%s is off: none of only %d steps can be left out.", options.kind, num_steps)
    return None


def open_cache(options: StepCache | None, num_steps: int, num_pixels: int) -> WindowCache | None:
    """A new cache for one window of `num_steps` steps and pictures of `num_pixels`; None without options."""
    if options is None:
        return None
    table = options.coefficients
    if table == "auto":
        table = "720" if num_pixels > LARGE_PIXELS else "480"
    first, stop = max(1, options.start_step), num_steps if options.end_step < 0 else options.end_step
    if options.kind == "teacache":
        rule = TeaCacheRule(options.threshold, TEACACHE_POLYNOMIALS[table], first, stop)
        return TeaCache(rule, options.offload)
    if options.kind == "magcache":
        ratios = ratios_for(MAGCACHE_RATIOS[table], num_steps)
        return MagCache(MagCacheRule(options.threshold, ratios, options.max_skips, first, stop), options.offload)
    return EasyCache(EasyCacheRule(options.threshold, first, min(stop, num_steps - 1)), options.offload)


class TeaCacheRule:
    """Computes a step when the time modulation has moved far enough since the last computed one.

    Args:
        threshold: of the summed, rescaled relative changes.
        polynomial: rescales a change, highest power first.
        first, stop: steps before `first` and from `stop` on are always computed.
    Source: TeaCache (arXiv 2411.19108) as InfiniteTalk uses it. Unlike there, nothing counts passes, so that one, two
        or three of them a step decide alike.
    """

    def __init__(self, threshold: float, polynomial: Sequence[float], first: int, stop: int) -> None:
        self.threshold, self.polynomial, self.first, self.stop = threshold, tuple(polynomial), first, stop
        self.sum = 0.0
        self._previous: Tensor | None = None

    def computes(self, step: int, modulation: Tensor) -> bool:
        """Whether step `step` is computed; ask once for every step, in order. modulation: any shape."""
        previous, self._previous = self._previous, modulation
        if previous is None or not self.first <= step < self.stop:
            self.sum = 0.0
            return True
        change = float((modulation - previous).abs().mean() / previous.abs().mean())
        rescaled = 0.0
        for coefficient in self.polynomial:
            rescaled = rescaled * change + coefficient
        self.sum += rescaled
        if self.sum < self.threshold:
            return False
        self.sum = 0.0
        return True


class MagCacheRule:
    """Computes a step when the sizes of the changes, known beforehand, have drifted from the last computed one's.

    Args:
        ratios: for each step, the size of the change over that in the step before.
        max_skips: steps in a row that may be left out.
    Source: MagCache (arXiv 2506.09045). Unlike there, the passes without the prompt follow the pass with it; their
        ratios are the same to three digits.
    """

    def __init__(self, threshold: float, ratios: Sequence[float], max_skips: int, first: int, stop: int) -> None:
        self.threshold, self.ratios, self.max_skips, self.first, self.stop = threshold, ratios, max_skips, first, stop
        self._restart()

    def computes(self, step: int) -> bool:
        """Whether step `step` is computed; ask once for every step, in order."""
        if self.first <= step < self.stop:
            self.ratio *= self.ratios[step]
            self.error += abs(1 - self.ratio)
            self.skips += 1
            if self.error < self.threshold and self.skips <= self.max_skips:
                return False
        self._restart()
        return True

    def _restart(self) -> None:
        self.ratio, self.error, self.skips = 1.0, 0.0, 0


def ratios_for(measured: Sequence[float], num_steps: int) -> list[float]:
    """`measured` ratios stretched or thinned to `num_steps`, nearest first, with both ends."""
    if num_steps == 1:
        return [measured[-1]]
    scale = (len(measured) - 1) / (num_steps - 1)
    return [measured[round(step * scale)] for step in range(num_steps)]


class EasyCacheRule:
    """Computes a step when the output is expected to have moved far enough, judged by how the input moves.

    Source: EasyCache (arXiv 2507.02860): the expected relative change of the output is k |x - x'| / |v'|, where k is
        the ratio of the changes of output and input between the last two computed steps.
    """

    def __init__(self, threshold: float, first: int, stop: int) -> None:
        self.threshold, self.first, self.stop = threshold, first, stop
        self.error, self.ratio = 0.0, 0.0  # a ratio of 0 is not known yet
        self._input: Tensor | None = None  # of the step before
        self._computed: tuple[Tensor, Tensor] | None = None  # input and output of the last computed step

    def computes(self, step: int, latents: Tensor) -> bool:
        """Whether step `step`, which starts from `latents`, is computed; ask once for every step, in order."""
        before, self._input = self._input, latents.clone()
        if self.first <= step < self.stop and self.ratio and before is not None and self._computed is not None:
            moved = (latents - before).abs().mean() / self._computed[1].abs().mean()
            self.error += self.ratio * float(moved)
            if self.error < self.threshold:
                return False
        self.error = 0.0
        return True

    def learn(self, velocity: Tensor) -> None:
        """Take in the output of a computed step."""
        assert self._input is not None  # `computes` was asked first
        if self._computed is not None:
            moved = float((self._input - self._computed[0]).abs().mean())
            if moved:
                self.ratio = float((velocity - self._computed[1]).abs().mean()) / moved
        self._computed = self._input, velocity.clone()


class WindowCache(ABC):
    """What the passes of one window reuse; `offload` keeps it in host memory."""

    def __init__(self, offload: bool) -> None:
        self.offload, self.step, self.is_computed = offload, -1, True
        self.num_skipped = 0  # steps
        self.ranks: Ranks = OneRank()  # who decide alike
        self._cached: dict[Pass, Tensor] = {}

    @abstractmethod
    def start(self, latents: Tensor) -> None:
        """The next step starts from latents [16, T, H, W]."""

    def model(self, which: Pass, latents: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """The velocity [16, T, H, W] of a pass, computed or not."""
        return compute()

    def blocks(self, which: Pass, hidden: Tensor, modulation: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """hidden [L, D] behind all blocks, computed or not. modulation [6, D]."""
        return compute(hidden)

    def finish(self, outputs: Mapping[Pass, Tensor]) -> None:  # noqa: B027 - most have nothing to do
        """A step is over: the velocities of all of its passes, wherever they were run."""

    def _decide(self, is_computed: bool) -> None:
        is_computed = self.ranks.agree(is_computed)
        self.is_computed = is_computed
        self.num_skipped += not is_computed

    def _store(self, which: Pass, tensor: Tensor) -> None:
        self._cached[which] = tensor.cpu() if self.offload else tensor


class _BlockCache(WindowCache):
    def blocks(self, which: Pass, hidden: Tensor, modulation: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        if not self.is_computed:
            return hidden + self._cached[which].to(hidden.device)
        self._cached.pop(which, None)  # its memory is needed by the blocks
        before = hidden.clone()  # the blocks write over the other
        hidden = compute(hidden)
        self._store(which, torch.sub(hidden, before, out=before))
        return hidden


class TeaCache(_BlockCache):
    """Keeps what the blocks change; decides when the first pass of a step brings the time modulation."""

    def __init__(self, rule: TeaCacheRule, offload: bool = False) -> None:
        super().__init__(offload)
        self.rule, self._is_open = rule, False

    def start(self, latents: Tensor) -> None:
        self.step, self._is_open = self.step + 1, True

    def blocks(self, which: Pass, hidden: Tensor, modulation: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        if self._is_open:
            self._is_open = False
            self._decide(self.rule.computes(self.step, modulation))
        return super().blocks(which, hidden, modulation, compute)


class MagCache(_BlockCache):
    """Keeps what the blocks change; decides by the number of the step alone."""

    def __init__(self, rule: MagCacheRule, offload: bool = False) -> None:
        super().__init__(offload)
        self.rule = rule

    def start(self, latents: Tensor) -> None:
        self.step += 1
        self._decide(self.rule.computes(self.step))


class EasyCache(WindowCache):
    """Keeps the difference between velocity and latents, so that a step left out costs nothing at all."""

    def __init__(self, rule: EasyCacheRule, offload: bool = False) -> None:
        super().__init__(offload)
        self.rule = rule

    def start(self, latents: Tensor) -> None:
        self.step += 1
        self._decide(self.rule.computes(self.step, latents))

    def model(self, which: Pass, latents: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        if not self.is_computed:
            return latents + self._cached[which].to(latents.device)
        velocity = compute()
        self._store(which, velocity - latents)
        return velocity

    def finish(self, outputs: Mapping[Pass, Tensor]) -> None:
        if self.is_computed:
            self.rule.learn(outputs[Pass.COND])
