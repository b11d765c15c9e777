"""One window: from noise to latents.

Legend: T latent frames, n of them motion latents (what the previous window already showed), H W latent rows, columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .denoiser import Denoiser
from .schedulers import Scheduler

Draw = Callable[[tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class StepReport:
    """Where a run is after a step. denoised [16, T, H, W]: what the latents would be if the run stopped here."""

    window_index: int
    num_windows: int
    step_index: int
    num_steps: int
    denoised: Tensor


@dataclass(frozen=True)
class Motion:
    """The latents at the front of a window that are known: [16, n, H, W].

    clean: kept as they are in every step (InfiniteTalk); otherwise noised to the step's level (MultiTalk).
    """

    latents: Tensor
    clean: bool

    def hold(self, latents: Tensor, timestep: float, draw: Draw) -> Tensor:
        """`latents` with its first frames replaced by the known ones, as they are at `timestep`."""
        known = self.latents
        if not self.clean:
            known = blend_noise(known, draw(tuple(known.shape)).to(known), timestep)
        latents[:, : known.shape[1]] = known
        return latents


class Replay:
    """Noise that can be asked for again from the start, so that a second attempt sees what the first one saw."""

    def __init__(self, draw: Draw) -> None:
        self.draw, self.drawn, self.next = draw, [], 0

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        if self.next == len(self.drawn):
            self.drawn.append(self.draw(shape))
        self.next += 1
        return self.drawn[self.next - 1].clone()

    def rewind(self) -> None:
        self.next = 0


def blend_noise(clean: Tensor, noise: Tensor, timestep: float) -> Tensor:
    """A point on the straight path from `clean` (timestep 0) to `noise` (1000)."""
    level = timestep / 1000
    return clean * (1 - level) + noise * level


def denoise_window(
    denoiser: Denoiser,
    scheduler: Scheduler,
    latents: Tensor,
    motion: Motion | None,
    draw: Draw,
    on_step: Callable[[int, Tensor], None],
) -> Tensor:
    """Run a window's steps from noisy latents [16, T, H, W] float32.

    Args:
        motion: known latents, or None where nothing is known.
        draw: asked for noise in this order: motion before the first step; then, a step, the scheduler's and motion's.
        on_step: called after each step with its index and the denoised estimate.
    """
    steps = scheduler.timesteps
    if motion:
        latents = motion.hold(latents, steps[0], draw)
    for index, timestep in enumerate(steps):
        velocity = denoiser(latents, timestep)
        denoised = latents - scheduler.sigmas[index] * velocity
        noise = draw(tuple(latents.shape)).to(latents) if scheduler.is_stochastic else None
        latents = scheduler.step(velocity, index, latents, noise)
        if motion:
            latents = motion.hold(latents, steps[index + 1] if index + 1 < len(steps) else 0.0, draw)
        on_step(index, denoised)
    return latents
