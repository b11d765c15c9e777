"""Noise schedules and the solvers that walk them.

Legend, for step i of n: x the sample, s_i = sigmas[i] its share of noise, x = (1 - s) x0 + s noise; v = noise - x0 the
velocity that the model predicts, so x0 = x - s v; a prime marks what belongs to the end of the step (s' = s_{i+1}).
l(s) = ln((1 - s) / s), the half log SNR, runs from -inf (pure noise) to inf (clean); h_i = l(s_{i+1}) - l(s_i).
The solvers differ only in what they take x0 to be during a step, and in whether they replace noise as they go.
"""

from __future__ import annotations

import functools
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import checks
from ..errors import InputError, UnsupportedError
from ..request import MAX_STEPS, LoopSettings
from . import sigmas as grids

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("wanvideo")


class Scheduler(ABC):
    """One walk from noise to a clean sample. Multistep solvers remember earlier steps: each window has a `fresh` one.

    Args:
        sigmas: noise level at the beginning of every step and at the end of the last one, falling, in 0..1.
        timesteps: what the model is given in every step, in 0..1000.
    """

    is_stochastic = False

    def __init__(self, sigmas: Sequence[float], timesteps: Sequence[float]):
        self.sigmas = tuple(sigmas)
        self.timesteps = tuple(timesteps)

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    def fresh(self) -> Scheduler:
        """The same walk from its first step, remembering none."""
        return type(self)(self.sigmas, self.timesteps)

    @abstractmethod
    def step(self, velocity: Tensor, index: int, sample: Tensor, noise: Tensor | None = None) -> Tensor:
        """The sample at the end of step `index`; steps are taken in order.

        Args:
            velocity: the model's prediction at `sample`, float32, any shape.
            index: 0 .. num_steps - 1.
            sample: what the model was given, like `velocity`.
            noise: standard normal, like `velocity`; a stochastic scheduler needs new noise in every step.
        """

    def _needed(self, noise: Tensor | None) -> Tensor:
        if noise is None:
            raise InputError(f"{type(self).__name__} adds new noise in every step. Give noise like the sample.")
        return noise

    def _span(self, index: int) -> tuple[float, float]:
        return self.sigmas[index], self.sigmas[index + 1]

    def _h(self, index: int) -> float:
        return _half_log_snr(self.sigmas[index + 1]) - _half_log_snr(self.sigmas[index])


def _half_log_snr(sigma: float) -> float:
    if sigma >= 1:
        return -math.inf
    return math.log((1 - sigma) / sigma) if sigma > 0 else math.inf


class Euler(Scheduler):
    """x' = x + (s' - s) v."""

    def step(self, velocity: Tensor, index: int, sample: Tensor, noise: Tensor | None = None) -> Tensor:
        sigma, sigma_next = self._span(index)
        return sample + (sigma_next - sigma) * velocity


class LCM(Scheduler):
    """x' = (1 - s') x0 + s' noise: every step denoises completely and adds new noise."""

    is_stochastic = True

    def step(self, velocity: Tensor, index: int, sample: Tensor, noise: Tensor | None = None) -> Tensor:
        sigma, sigma_next = self._span(index)
        return (1 - sigma_next) * (sample - sigma * velocity) + sigma_next * self._needed(noise)


class DPMSolver(Scheduler):
    """x' = (s'/s) x + (1 - s'/s) D, D = x0 + (x0 - x0 of the step before) h_i / (2 h_{i-1}).

    Source: DPM-Solver++ (arXiv 2211.01095), 2M, midpoint; in the first and the last step D = x0, which is Euler's step.
    """

    _previous_x0: Tensor | None = None

    def step(self, velocity: Tensor, index: int, sample: Tensor, noise: Tensor | None = None) -> Tensor:
        return self._advance(sample, self._midpoint_x0(sample - self.sigmas[index] * velocity, index), index)

    def _advance(self, sample: Tensor, x0: Tensor, index: int) -> Tensor:
        sigma, sigma_next = self._span(index)
        return sigma_next / sigma * sample + (1 - sigma_next / sigma) * x0

    def _midpoint_x0(self, x0: Tensor, index: int) -> Tensor:
        previous_x0, self._previous_x0 = self._previous_x0, x0
        if previous_x0 is None or index in (0, self.num_steps - 1):
            return x0
        return x0 + self._h(index) / (2 * self._h(index - 1)) * (x0 - previous_x0)


class SDEDPMSolver(DPMSolver):
    """x' = (s'/s) e^-h x + (1 - s') (1 - e^-2h) D + s' sqrt(1 - e^-2h) noise, D as in DPMSolver.

    Source: SDE-DPM-Solver++ (arXiv 2211.01095), 2M, midpoint.
    """

    is_stochastic = True

    def step(self, velocity: Tensor, index: int, sample: Tensor, noise: Tensor | None = None) -> Tensor:
        sigma, sigma_next = self._span(index)
        h = self._h(index)
        renewed = -math.expm1(-2 * h)
        x0 = self._midpoint_x0(sample - sigma * velocity, index)
        remaining = sigma_next / sigma * math.exp(-h) * sample
        return remaining + (1 - sigma_next) * renewed * x0 + sigma_next * math.sqrt(renewed) * self._needed(noise)


class UniPC(DPMSolver):
    """DPMSolver's step as predictor; once the model has seen its result, the step is taken again, better informed.

    Source: UniPC (arXiv 2302.04867), order 2, B(h) = e^-h - 1 (its B2), predicting x0. The x0 handed on to the next
    steps is the one at the predicted sample, as in the paper.
    """

    _corrected: Tensor | None = None  # the sample at the beginning of the step before
    _older_x0: Tensor | None = None

    def step(self, velocity: Tensor, index: int, sample: Tensor, noise: Tensor | None = None) -> Tensor:
        x0 = sample - self.sigmas[index] * velocity
        if index > 0 and self._corrected is not None and self._previous_x0 is not None:
            sample = self._correct(x0, index, self._corrected, self._previous_x0)
        self._corrected, self._older_x0 = sample, self._previous_x0
        return self._advance(sample, self._midpoint_x0(x0, index), index)

    def _correct(self, x0: Tensor, index: int, before: Tensor, previous_x0: Tensor) -> Tensor:
        """The sample at the beginning of step `index`, from the one before, now that its own x0 is known."""
        sigma, sigma_next = self._span(index - 1)
        h = self._h(index - 1)
        b = math.expm1(-h)
        change = x0 - previous_x0
        if index == 1 or self._older_x0 is None:
            slope = change / 2
        else:
            # Weights that make the step exact for x0 = 1, l and l^2: c1 + c2 = b1, q c1 + c2 = b2.
            q = -self._h(index - 2) / h
            phi_2 = -b / h - 1
            b1, b2 = phi_2 / b, 2 * (-phi_2 / h - 0.5) / b
            c1 = (b2 - b1) / (q - 1)
            slope = c1 / q * (self._older_x0 - previous_x0) + (b1 - c1) * change
        return sigma_next / sigma * before - (1 - sigma_next) * b * (previous_x0 + slope)


class ResMultistep(Scheduler):
    """x' = e^-k x + k ((p - q/c) x0 + (q/c) x0 of the step before), k = ln(s/s'), p = (1 - e^-k)/k, q = (1 - p)/k,
    c = ln(s / s of the step before) / k: a second order exponential step in ln s.

    Source: Refined Exponential Solver (arXiv 2308.02157), multistep form; the first step and one to 0 are Euler's.
    """

    _previous_x0: Tensor | None = None

    def step(self, velocity: Tensor, index: int, sample: Tensor, noise: Tensor | None = None) -> Tensor:
        sigma, sigma_next = self._span(index)
        x0 = sample - sigma * velocity
        previous_x0, self._previous_x0 = self._previous_x0, x0
        if index == 0 or previous_x0 is None or sigma_next == 0:
            return sample + (sigma_next - sigma) * velocity
        k = math.log(sigma / sigma_next)
        p = -math.expm1(-k) / k
        past = (1 - p) / math.log(sigma / self.sigmas[index - 1])
        return sigma_next / sigma * sample + k * ((p - past) * x0 + past * previous_x0)


@dataclass(frozen=True)
class _Family:
    """A solver on its grid. `truncates`: the model is given whole timesteps. `has_beta`: offered as <name>/beta too."""

    solver: type[Scheduler]
    grid: grids.Grid
    truncates: bool = False
    has_beta: bool = False


_FAMILIES = {
    "multitalk": _Family(Euler, grids.MULTITALK, has_beta=True),
    "flowmatch_distill": _Family(Euler, grids.DISTILL),
    "unipc": _Family(UniPC, grids.UNIPC, truncates=True, has_beta=True),
    "dpm++": _Family(DPMSolver, grids.UNIPC, truncates=True, has_beta=True),
    "dpm++_sde": _Family(SDEDPMSolver, grids.UNIPC, truncates=True, has_beta=True),
    "euler": _Family(Euler, grids.EULER, has_beta=True),
    "lcm": _Family(LCM, grids.EULER, has_beta=True),
    "res_multistep": _Family(ResMultistep, grids.RES_MULTISTEP, has_beta=True),
    "flowmatch_pusa": _Family(Euler, grids.PUSA),
    "flowmatch_causvid": _Family(Euler, grids.CAUSVID),
    "wan_unipc": _Family(UniPC, grids.WAN_UNIPC, truncates=True),
    "wan_dpm++": _Family(DPMSolver, grids.WAN_DPM, truncates=True),
}
_NEAREST = {
    "deis": "dpm++",
    "er_sde": "res_multistep",
    "sa_ode_stable": "res_multistep",
    "rcm": "lcm or flowmatch_distill",
    "longcat_distill_euler": "flowmatch_distill",
    "vibt_unipc": "unipc",
}
_BETA = "/beta"

SCHEDULERS: tuple[str, ...] = tuple(
    name for base, family in _FAMILIES.items() for name in ((base, base + _BETA) if family.has_beta else (base,))
)
# The order in which saved graphs know them comes first, for widgets that store a position; then our own.
_IN_GRAPHS = (
    "unipc", "unipc/beta", "dpm++", "dpm++/beta", "dpm++_sde", "dpm++_sde/beta", "euler", "euler/beta",
    "longcat_distill_euler", "deis", "lcm", "lcm/beta", "res_multistep", "er_sde", "flowmatch_causvid",
    "flowmatch_distill", "flowmatch_pusa", "multitalk", "sa_ode_stable", "rcm", "vibt_unipc",
)  # fmt: skip
KNOWN_SCHEDULERS: tuple[str, ...] = (*_IN_GRAPHS, *(name for name in SCHEDULERS if name not in _IN_GRAPHS))


def make_scheduler(
    name: str,
    steps: int,
    shift: float,
    *,
    start_step: int | float = 0,
    end_step: int | float = -1,
    denoise_strength: float = 1.0,
    sigmas: Sequence[float] | None = None,
) -> Scheduler:
    """The noise schedule `name`, ready for one window.

    Args:
        name: one of SCHEDULERS. steps: 1..1000, of the whole schedule. shift: 0.01..1000.
        start_step, end_step: steps [start, end) to run, -1: to the end. Floats are noise levels: begin at the first
            level <= start_step; the last step begins at the last level >= end_step.
        denoise_strength: 0..1, below 1 only the last int(steps * denoise_strength) + 1 steps run.
        sigmas: noise levels instead of the schedule's own, falling, steps + 1 of them, or steps and 0 is appended.
    Raises:
        InputError: for an unknown name or an unusable number. UnsupportedError: for a name that is not offered.
    """
    family, is_beta = _find(name)
    checks.number("steps", steps, 1, MAX_STEPS, whole=True)
    checks.number("shift", shift, 0.01, 1000)
    checks.number("denoise_strength", denoise_strength, 0, 1)
    if sigmas is not None:
        levels = checks.noise_levels(sigmas, steps)
    else:
        levels = family.grid.sigmas(steps, shift, denoise_strength)
        levels = grids.spread_by_beta(levels) if is_beta else levels
        if not family.grid.is_shifted:
            _say_once(f"Scheduler {name} has fixed noise levels: shift {shift} has no effect.")
    if denoise_strength < 1:
        if start_step:
            _say_once(f"denoise_strength {denoise_strength} decides the first step: start_step {start_step} is unused.")
        start_step = steps - int(steps * denoise_strength) - 1
    start, stop = _range(levels, start_step, end_step)
    levels = levels[start : stop + 1]
    timesteps = [1000 * level for level in levels[:-1]]
    if family.truncates:
        timesteps = [float(int(timestep)) for timestep in timesteps]
    return family.solver(levels, timesteps)


def scheduler_of(settings: LoopSettings) -> Scheduler:
    """The scheduler that `settings` describe, from its first step (see `make_scheduler`)."""
    return make_scheduler(
        settings.scheduler, settings.steps, settings.shift, start_step=settings.start_step, end_step=settings.end_step,
        denoise_strength=settings.denoise_strength, sigmas=settings.sigmas,
    )  # fmt: skip


def _find(name: str) -> tuple[_Family, bool]:
    if name in SCHEDULERS:
        return _FAMILIES[name.removesuffix(_BETA)], name.endswith(_BETA)
    if name in _NEAREST:
        raise UnsupportedError(f"scheduler {name!r} is not offered. The nearest one is {_NEAREST[name]}: use that.")
    near = checks.meant(name, SCHEDULERS, 0.0)
    raise InputError(f"scheduler {checks.brief(name)} is not known.{near} Use one of {', '.join(SCHEDULERS)}.")


def _range(levels: list[float], start: int | float, end: int | float) -> tuple[int, int]:
    """Steps [start, stop) to run; `levels` has one entry more than there are steps."""
    steps = len(levels) - 1
    if isinstance(start, float):
        checks.number("start_step as a noise level", start, 0, 1)
        first = next((i for i in range(steps) if levels[i] <= start), steps)
    else:
        checks.number("start_step", start, 0, steps - 1, whole=True)
        first = start
    if end == -1:
        stop = steps
    elif isinstance(end, float):
        checks.number("end_step as a noise level", end, 0, 1)
        stop = sum(level >= end for level in levels[:-1])
    else:
        checks.number("end_step", end, 1, steps, whole=True)
        stop = end
    if first >= stop:
        raise InputError(
            f"start_step {start} and end_step {end} leave no step to run: this schedule has {steps} steps, "
            f"from noise level {levels[0]:.4g} to {levels[-2]:.4g}. Use 0 and -1 for all of them."
        )
    return first, stop


@functools.cache
def _say_once(message: str) -> None:
    logger.info(message)
