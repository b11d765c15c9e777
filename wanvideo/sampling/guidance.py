"""Classifier-free guidance by text and by audio: which passes of the model a step needs, and how they combine.

Legend: an output is a velocity of any shape, float32; a scale of 1 is no guidance and costs no pass.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING

from ..request import Apg

if TYPE_CHECKING:
    from torch import Tensor


class Pass(str, Enum):
    """What the model is given in one pass: (text, audio)."""

    COND = "cond"  # prompt, audio
    DROP_TEXT = "drop_text"  # negative prompt, audio
    DROP_AUDIO = "drop_audio"  # prompt, null audio
    UNCOND = "uncond"  # negative prompt, null audio

    @property
    def uses_negative(self) -> bool:
        """Whether the model is given the negative prompt."""
        return self in (Pass.DROP_TEXT, Pass.UNCOND)

    @property
    def uses_null_audio(self) -> bool:
        """Whether the model is given null audio."""
        return self in (Pass.DROP_AUDIO, Pass.UNCOND)


class Guidance:
    """Combines the passes of every step of one window; adaptive projection keeps state, so make one for each window.

    Args:
        guidance_scale: towards the prompt, away from the negative prompt; a tuple has one for each step, and the last
            one stands for all later steps.
        audio_guidance_scale: towards the audio, away from null audio; 1 where `has_audio` is false.
        apg: adaptive projected guidance instead of plain differences.
        has_audio: whether there is speech; without it there is nothing to drop.
        drops_idle: leave out passes that the scales of a step cancel, where those of other steps do not.
    Source: MultiTalk / InfiniteTalk: cond + sum of (scale - 1) (with - without), which is their
        uncond + s_t (cond - drop_text) + s_a (drop_text - uncond). Passes that a scale of 1 would cancel are not run.
    """

    def __init__(
        self, guidance_scale: float | tuple[float, ...], audio_guidance_scale: float, apg: Apg | None = None, *,
        has_audio: bool = True, drops_idle: bool = False,
    ) -> None:  # fmt: skip
        scales = guidance_scale if isinstance(guidance_scale, tuple) else (guidance_scale,)
        by_text = not all(math.isclose(scale, 1) for scale in scales)
        by_audio = has_audio and not math.isclose(audio_guidance_scale, 1)
        self._terms: list[_Term] = []
        if by_text:
            self._terms.append(_Term(Pass.COND, Pass.DROP_TEXT, scales, apg))
        if by_audio:
            pair = (Pass.DROP_TEXT, Pass.UNCOND) if by_text else (Pass.COND, Pass.DROP_AUDIO)
            self._terms.append(_Term(*pair, (audio_guidance_scale,), apg))
        self.all_passes: tuple[Pass, ...] = (Pass.COND, *(term.without for term in self._terms))
        self._drops_idle, self._step = drops_idle, 0

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Of the next step."""
        if not self._drops_idle:
            return self.all_passes
        needed = {item for term in self._active() for item in (term.with_, term.without)}
        return tuple(which for which in self.all_passes if which is Pass.COND or which in needed)

    def _active(self) -> list[_Term]:
        """Terms that the next step's scales do not cancel; the others learn nothing either, whatever passes are run."""
        return [term for term in self._terms if not math.isclose(term.scale(self._step), 1)]

    def combine(self, outputs: dict[Pass, Tensor]) -> Tensor:
        """The guided velocity from the outputs of all `passes` of one step; call it once a step, in order."""
        guided = sum((term(outputs, self._step) for term in self._active()), outputs[Pass.COND])
        self._step += 1
        return guided


class _Term:
    """(scale - 1) times what one kind of conditioning changes, projected where asked for.

    Source: adaptive projected guidance (arXiv 2410.02416) with eta 0, with the norm over the whole tensor, as
        MultiTalk and InfiniteTalk use it.
    """

    def __init__(self, with_: Pass, without: Pass, scales: tuple[float, ...], apg: Apg | None) -> None:
        self.with_, self.without, self.scales, self.apg = with_, without, scales, apg
        self._average: Tensor | None = None

    def scale(self, step: int) -> float:
        return self.scales[min(step, len(self.scales) - 1)]

    def __call__(self, outputs: dict[Pass, Tensor], step: int) -> Tensor:
        change = outputs[self.with_] - outputs[self.without]
        if self.apg:
            change = self._project(change, outputs[Pass.COND], self.apg)
        return (self.scale(step) - 1) * change

    def _project(self, change: Tensor, cond: Tensor, apg: Apg) -> Tensor:
        # The average goes on unclamped: the threshold limits what a step uses, not what it remembers.
        self._average = change if self._average is None else change + apg.momentum * self._average
        change, direction = self._average.double(), cond.double()
        if apg.norm_threshold > 0:
            change = change * (apg.norm_threshold / change.norm()).clamp(max=1)
        share = (change * direction).sum() / direction.square().sum().clamp(min=1e-24)
        return (change - share * direction).to(cond.dtype)
