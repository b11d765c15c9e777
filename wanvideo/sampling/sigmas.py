"""Noise grids: the levels a schedule visits, as plain Python floats.

Legend: a sample at level sigma is (1 - sigma) x0 + sigma noise, so 1 is noise and 0 is clean. A grid lists its n levels
before the time shift S(u) = s u / (1 + (s - 1) u), which keeps more of the n steps at high noise as s grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InputError
from ..request import MAX_STEPS

CAUSVID_TIMESTEPS = (999, 934, 862, 756, 603, 410, 250, 140, 74)


def shift_level(level: float, shift: float) -> float:
    """The noise level `level` (0..1) after the time shift."""
    return shift * level / (1 + (shift - 1) * level)


def linspace(first: float, last: float, count: int) -> list[float]:
    """`count` evenly spaced numbers from `first` to `last`, both included; one number is `first`."""
    # In NumPy's order of operations: the last digit decides which whole timestep 1000 sigma is cut down to.
    step = (last - first) / max(1, count - 1)
    return [first + i * step for i in range(count)]


@dataclass(frozen=True)
class Grid:
    """How a schedule chooses its noise levels.

    Args:
        levels: (number of steps, shift) -> the level that each step begins at, before the time shift.
        is_shifted: the time shift applies; without it the levels are final.
        scales_with_denoise: a denoise strength below 1 also lowers the levels themselves.
        max_steps: how many steps the grid has room for.
    """

    levels: Callable[[int, float], list[float]]
    is_shifted: bool = True
    scales_with_denoise: bool = False
    max_steps: int = MAX_STEPS

    def sigmas(self, steps: int, shift: float, denoise_strength: float = 1.0) -> list[float]:
        """The level each of `steps` steps begins at and the final 0.

        Raises:
            InputError: for more steps than the grid has room for.
        """
        if steps > self.max_steps:
            raise InputError(
                f"steps {steps} is too many: this schedule has {self.max_steps} noise levels. "
                f"Use at most {self.max_steps} or another scheduler."
            )
        levels = self.levels(steps, shift)
        if self.scales_with_denoise:
            levels = [level * denoise_strength for level in levels]
        if self.is_shifted:
            levels = [shift_level(level, shift) for level in levels]
        return [*levels, 0.0]


def spread_by_beta(sigmas: list[float]) -> list[float]:
    """The same first and last step, those between placed at the quantiles of Beta(0.6, 0.6): denser at both ends.

    Source: "Beta Sampling is All You Need" (arXiv 2407.12173).
    """
    from scipy.special import betaincinv

    first, last, last_index = sigmas[0], sigmas[-2], len(sigmas) - 2
    if last_index < 1:
        return sigmas
    quantiles = [float(betaincinv(0.6, 0.6, 1 - i / last_index)) for i in range(last_index + 1)]
    return [*(last + (first - last) * quantile for quantile in quantiles), 0.0]


def _distilled(steps: int, shift: float) -> list[float]:
    # The distilled models were trained on 1, 3/4, 1/2 and 1/4 of the noise, and the reference starts them at 0.999.
    # Equal spacing visits exactly those levels at 4 steps, and among others at every multiple of 4.
    return [0.999, *linspace(1.0, 0.0, steps + 1)[1:-1]]


def _thousandths(steps: int, shift: float) -> list[float]:
    table = linspace(1.0, 0.003 / 1.002, 1000)
    return [table[round(1000 * i / steps)] for i in range(steps)]


# The end points are those of the implementations that users compare with; they differ where one of them shifts its
# lowest or highest level a second time.
MULTITALK = Grid(lambda steps, shift: linspace(1.0, 0.001, steps))
EULER = Grid(lambda steps, shift: linspace(1.0, shift_level(0.001, shift), steps))
UNIPC = Grid(lambda steps, shift: linspace(shift_level(0.999, shift), 0.0, steps + 1)[:-1])
RES_MULTISTEP = Grid(_thousandths)
DISTILL = Grid(_distilled, max_steps=MAX_STEPS - 1)  # the 1000th would repeat the level 0.999
PUSA = Grid(lambda steps, shift: linspace(1.0, 0.0, steps + 1)[:-1], scales_with_denoise=True)
CAUSVID = Grid(
    lambda steps, shift: [timestep / 1000 for timestep in CAUSVID_TIMESTEPS[:steps]],
    is_shifted=False,
    max_steps=len(CAUSVID_TIMESTEPS),
)
WAN_UNIPC = Grid(lambda steps, shift: linspace(0.999, 0.0, steps + 1)[:-1])
WAN_DPM = Grid(lambda steps, shift: linspace(1.0, 0.0, steps + 1)[:-1])
