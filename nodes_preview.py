"""What the page shows of a window between its steps, decoded by a tiny VAE where the user has one."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from .nodes_common import host
from .nodes_files import TINY_NAME, TINY_VAES
from .wanvideo.checkpoints.load import load_tiny_vae
from .wanvideo.engine.talk import choose
from .wanvideo.errors import TalkError
from .wanvideo.models.tiny_vae import TinyVAE
from .wanvideo.video.overlay import picture_of

logger = logging.getLogger("wanvideo")


class TinyPreview:
    """Decodes frames of a run's windows; the model is loaded with the first and forgotten with the run.

    A preview ends no run: where the file or the memory does not serve, there are none of this kind from then on.
    """

    def __init__(self) -> None:
        self._model: TinyVAE | None = None
        self._is_absent = False

    @torch.inference_mode()
    def __call__(self, latents: Tensor, indices: list[int]) -> list[Any] | None:
        """The last frames that latents [16, T, h, w] at `indices` stand for; None where nothing can decode them."""
        if self._is_absent:
            return None
        try:
            model = self._model = self._model or self._loaded()
            return None if model is None else [picture_of(_frame(model, latents, index)) for index in indices]
        except (TalkError, torch.cuda.OutOfMemoryError) as error:
            logger.warning("Previews go on without the tiny VAE: %s", str(error).partition("\n")[0])
            self._model, self._is_absent = None, True
            return None

    def _loaded(self) -> TinyVAE | None:
        # HunyuanVideo's has the same tensors, so here the name counts too.
        name = choose(TINY_VAES, ("taew2_1",), is_named=lambda name: TINY_NAME.search(name) is not None)
        if name is None:
            self._is_absent = True
            return None
        device = host().device
        dtype = torch.float32 if device.type == "cpu" else torch.float16
        return load_tiny_vae(TINY_VAES.find(name), dtype=dtype, device=device)


def _frame(model: TinyVAE, latents: Tensor, index: int) -> Tensor:
    """[3, 8h, 8w], decoded behind the latent before it, without which it would look like a video's first frame."""
    return model.decode(latents[:, max(0, index - 1) : index + 1])[:, -1]
