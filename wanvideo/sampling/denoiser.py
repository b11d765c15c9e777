"""The model as the sampler sees it: latents and a step in, the guided velocity out.

Legend: T latent frames, H W latent rows and columns, S speakers, F pixel frames.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..errors import InputError
from ..models.transformer import WanTransformer
from ..protocols import OneRank, Ranks
from ..request import SkipLayers
from .contexts import Contexts
from .guidance import Guidance, Pass
from .step_cache import WindowCache


class Denoiser:
    """Runs the passes that guidance needs and combines them; one for each window, called step by step.

    Args:
        cache: lets steps reuse what earlier ones computed, or None.
        skip_layers: blocks left out of the passes without the prompt, or None. num_steps: of the window.
        ranks: who share the passes.
    """

    def __init__(
        self,
        transformer: WanTransformer,
        contexts: Contexts,
        guidance: Guidance,
        condition: Tensor | None,
        cache: WindowCache | None = None,
        skip_layers: SkipLayers | None = None,
        num_steps: int = 1,
        ranks: Ranks | None = None,
    ) -> None:
        self.transformer, self.contexts, self.guidance = transformer, contexts, guidance
        self.condition, self.cache = condition, cache
        self.skip_layers, self.num_steps, self.step = skip_layers, num_steps, 0
        self.ranks = ranks or OneRank()

    def __call__(self, latents: Tensor, timestep: float) -> Tensor:
        """latents [16, T, H, W], timestep 0..1000 -> velocity [16, T, H, W] float32."""
        self.ranks.check()
        self.transformer.set_step(self.step)
        if self.cache is not None:
            self.cache.start(latents)
        t = torch.tensor([timestep], dtype=torch.float32, device=latents.device)
        outputs = self.ranks.run_passes(self.guidance.passes, lambda which: self._run(which, latents, t), latents)
        if self.cache is not None:
            self.cache.finish(outputs)
        self.step += 1
        return self.guidance.combine(outputs)

    def _run(self, which: Pass, latents: Tensor, timestep: Tensor) -> Tensor:
        text, audio = self.contexts.of(which)
        inputs = latents, timestep, self.condition, text, audio, self._left_out(which)
        if self.cache is None:
            return self.transformer.denoise(*inputs)
        around = partial(self.cache.blocks, which)
        return self.cache.model(which, latents, lambda: self.transformer.denoise(*inputs, around))

    def _left_out(self, which: Pass) -> frozenset[int]:
        skip = self.skip_layers
        if skip is None or not which.uses_negative or not skip.start <= self.step / self.num_steps < skip.end:
            return frozenset()
        return frozenset(skip.blocks)


def check_blocks(skip_layers: SkipLayers | None, num_blocks: int) -> None:
    """Raises: InputError when a block is to be left out that the model does not have."""
    wrong = [block for block in (skip_layers.blocks if skip_layers else ()) if not 0 <= block < num_blocks]
    if wrong:
        raise InputError(
            f"skip_layers names block {wrong[0]}; this model has the blocks 0 to {num_blocks - 1}. Leave it out."
        )
