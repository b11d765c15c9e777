"""One window: from noise to latents.

Legend: T latent frames, H W latent rows, columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..protocols import MotionLatents, NoiseFn
from .denoiser import Denoiser
from .schedulers import Scheduler


@dataclass(frozen=True)
class StepReport:
    """Where a run is after a step.

    num_windows: None while the video's length is not known. denoised: [16, T, H, W], what the latents would be if the
    run stopped here.
    """

    window_index: int
    num_windows: int | None
    step_index: int
    num_steps: int
    denoised: Tensor


class Replay:
    """Noise that can be asked for again from the start, so that a retry sees what the first try saw."""

    def __init__(self, noise: NoiseFn) -> None:
        self._noise, self._drawn, self._next = noise, list[Tensor](), 0

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        if self._next == len(self._drawn):
            self._drawn.append(self._noise(shape))
        self._next += 1
        return self._drawn[self._next - 1].clone()

    def rewind(self) -> None:
        self._next = 0


def blend_noise(clean: Tensor, noise: Tensor, timestep: float) -> Tensor:
    """A point on the straight path from `clean` (timestep 0) to `noise` (1000)."""
    level = timestep / 1000
    return clean * (1 - level) + noise * level


def denoise_window(
    denoiser: Denoiser,
    scheduler: Scheduler,
    latents: Tensor,
    motion: MotionLatents | None,
    noise: NoiseFn,
    on_step: Callable[[int, Tensor], None],
) -> Tensor:
    """Run a window's steps from noisy latents [16, T, H, W] float32.

    Args:
        motion: known latents, or None where nothing is known.
        noise: asked for in this order: motion before the first step; then, a step, the scheduler's and motion's.
        on_step: called after each step with its index and the denoised estimate.
    """
    steps = scheduler.timesteps
    if motion:
        latents = motion.hold(latents, steps[0], noise)
    for index, timestep in enumerate(steps):
        velocity = denoiser(latents, timestep)
        denoised = latents - scheduler.sigmas[index] * velocity
        step_noise = noise(tuple(latents.shape)).to(latents) if scheduler.is_stochastic else None
        latents = scheduler.step(velocity, index, latents, step_noise)
        if motion:
            latents = motion.hold(latents, steps[index + 1] if index + 1 < len(steps) else 0.0, noise)
        on_step(index, denoised)
    return latents
