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
        guidance_scale: towards the prompt, away from the negative prompt.
        audio_guidance_scale: towards the audio, away from null audio; 1 where `has_audio` is false.
        apg: adaptive projected guidance instead of plain differences.
        has_audio: whether there is speech; without it there is nothing to drop.
    Source: MultiTalk / InfiniteTalk: cond + sum of (scale - 1) (with - without), which is their
        uncond + s_t (cond - drop_text) + s_a (drop_text - uncond). Passes that a scale of 1 would cancel are not run.
    """

    def __init__(
        self, guidance_scale: float, audio_guidance_scale: float, apg: Apg | None = None, *, has_audio: bool = True
    ) -> None:
        by_text = not math.isclose(guidance_scale, 1)
        by_audio = has_audio and not math.isclose(audio_guidance_scale, 1)
        self._terms: list[_Term] = []
        if by_text:
            self._terms.append(_Term(Pass.COND, Pass.DROP_TEXT, guidance_scale, apg))
        if by_audio:
            pair = (Pass.DROP_TEXT, Pass.UNCOND) if by_text else (Pass.COND, Pass.DROP_AUDIO)
            self._terms.append(_Term(*pair, audio_guidance_scale, apg))
        self.passes: tuple[Pass, ...] = (Pass.COND, *(term.without for term in self._terms))

    def combine(self, outputs: dict[Pass, Tensor]) -> Tensor:
        """The guided velocity from the outputs of all `passes` of one step; call it once a step, in order."""
        cond = outputs[Pass.COND]
        return sum((term(outputs) for term in self._terms), cond)


class _Term:
    """(scale - 1) times what one kind of conditioning changes, projected where asked for.

    Source: adaptive projected guidance (arXiv 2410.02416) with eta 0, with the norm over the whole tensor, as
        MultiTalk and InfiniteTalk use it.
    """

    def __init__(self, with_: Pass, without: Pass, scale: float, apg: Apg | None) -> None:
        self.with_, self.without, self.scale, self.apg = with_, without, scale, apg
        self._average: Tensor | None = None

    def __call__(self, outputs: dict[Pass, Tensor]) -> Tensor:
        change = outputs[self.with_] - outputs[self.without]
        if self.apg:
            change = self._project(change, outputs[Pass.COND], self.apg)
        return (self.scale - 1) * change

    def _project(self, change: Tensor, cond: Tensor, apg: Apg) -> Tensor:
        # The average goes on unclamped: the threshold limits what a step uses, not what it remembers.
        self._average = change if self._average is None else change + apg.momentum * self._average
        change, direction = self._average.double(), cond.double()
        if apg.norm_threshold > 0:
            change = change * (apg.norm_threshold / change.norm()).clamp(max=1)
        share = (change * direction).sum() / direction.square().sum().clamp(min=1e-24)
        return (change - share * direction).to(cond.dtype)
