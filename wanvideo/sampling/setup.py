"""What is settled before the first window: the steps to take and the passes of the model that each of them needs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..request import LoopSettings
from .guidance import Guidance, Pass
from .schedulers import Scheduler, scheduler_of


@dataclass(frozen=True)
class SamplingSetup:
    """Settings with their checked noise schedule and guidance; made once a run and handed on.

    Args:
        settings: how every window is sampled.
        has_audio: whether there is speech to attend to; without it audio guidance has nothing to drop.
        timesteps: what the model is given in every step, in 0..1000. sigmas: noise level at the beginning of every step
            and at the end of the last one, in 0..1.
        passes: of the model, in every step; where guidance has a scale for each step some run in a part of them.
    """

    settings: LoopSettings
    has_audio: bool
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    passes: tuple[Pass, ...]
    _scheduler: Scheduler = field(repr=False, compare=False)  # never steps: windows get fresh ones

    @classmethod
    def of(cls, settings: LoopSettings, has_audio: bool) -> SamplingSetup:
        """Raises: InputError when `settings` describe no usable schedule; UnsupportedError for one not offered."""
        scheduler = scheduler_of(settings)
        passes = _guidance(settings, has_audio).all_passes
        return cls(settings, has_audio, scheduler.timesteps, scheduler.sigmas, passes, scheduler)

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    @property
    def needs_negative(self) -> bool:
        """Whether some pass reads the negative prompt."""
        return any(which.uses_negative for which in self.passes)

    @property
    def needs_null_audio(self) -> bool:
        """Whether some pass reads null audio."""
        return any(which.uses_null_audio for which in self.passes)

    def scheduler(self) -> Scheduler:
        """The solver of one window, which remembers no step yet."""
        return self._scheduler.fresh()

    def guidance(self) -> Guidance:
        """The guidance of one window, without momentum yet."""
        return _guidance(self.settings, self.has_audio)

    def with_tiled_vae(self, tiled_vae: bool) -> SamplingSetup:
        """The same steps and passes, with a VAE that works in tiles or not."""
        return replace(self, settings=replace(self.settings, tiled_vae=tiled_vae))


def _guidance(settings: LoopSettings, has_audio: bool) -> Guidance:
    scale = settings.guidance_scale
    drops_idle = isinstance(scale, tuple) and settings.step_cache is None  # a cache remembers what every step computed
    return Guidance(scale, settings.audio_guidance_scale, settings.apg, has_audio=has_audio, drops_idle=drops_idle)
