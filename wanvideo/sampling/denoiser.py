"""The model as the sampler sees it: latents and a step in, the guided velocity out.

Legend: T latent frames, H W latent rows and columns, S speakers, F pixel frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.audio_adapter import AudioContext
from ..models.transformer import TextContext, WanTransformer
from .guidance import Guidance, Pass

NEGATIVE = frozenset({Pass.DROP_TEXT, Pass.UNCOND})
SILENT = frozenset({Pass.DROP_AUDIO, Pass.UNCOND})


@dataclass
class Contexts:
    """What the steps of a window share, by what the passes ask for: the prompt or its negative, speech or none."""

    prompt: TextContext
    negative: TextContext | None
    speech: AudioContext | None
    null_speech: AudioContext | None

    def of(self, which: Pass) -> tuple[TextContext, AudioContext | None]:
        text = self.negative if which in NEGATIVE else self.prompt
        return text, self.null_speech if which in SILENT else self.speech


class Denoiser:
    """Runs the passes that guidance needs and combines them; one for each window."""

    def __init__(self, transformer: WanTransformer, contexts: Contexts, guidance: Guidance, condition: Tensor) -> None:
        self.transformer, self.contexts, self.guidance = transformer, contexts, guidance
        self.condition = condition

    def __call__(self, latents: Tensor, timestep: float) -> Tensor:
        """latents [16, T, H, W], timestep 0..1000 -> velocity [16, T, H, W] float32."""
        t = torch.tensor([timestep], dtype=torch.float32, device=latents.device)
        outputs = {
            which: self.transformer.denoise(latents, t, self.condition, *self.contexts.of(which))
            for which in self.guidance.passes
        }
        return self.guidance.combine(outputs)
