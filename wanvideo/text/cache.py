"""Prompts' embeddings on disk, so that a known prompt needs no text encoder.

Legend: n tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
from torch import Tensor

logger = logging.getLogger("wanvideo")
FORMAT = 1  # raised when embeddings of the same inputs change


class TextCache:
    """Embeddings of one text encoder.

    Args:
        folder: of the cache. encoder: the encoder's files; another size or time of one of them is another encoder.
        precision: in which it computes, with its quantization.
    """

    def __init__(self, folder: str | Path, encoder: Sequence[Path], precision: str) -> None:
        self.folder = Path(folder)
        stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in encoder]
        self.key = json.dumps([FORMAT, stamps, precision])

    def get(self, prompts: Sequence[str], encode: Callable[[list[str]], list[Tensor]]) -> list[Tensor]:
        """Embeddings [n_i, dim] of each prompt; `encode` is called once, for those that are not known yet."""
        known = {prompt: self._read(prompt) for prompt in prompts}
        missing = [prompt for prompt, embeds in known.items() if embeds is None]
        if missing:
            for prompt, embeds in zip(missing, encode(missing), strict=True):
                known[prompt] = embeds
                self._write(prompt, embeds)
        return [known[prompt] for prompt in prompts]

    def _path(self, prompt: str) -> Path:
        return self.folder / f"{hashlib.sha256((self.key + prompt).encode()).hexdigest()[:40]}.safetensors"

    def _read(self, prompt: str) -> Tensor | None:
        path = self._path(prompt)
        if not path.is_file():
            return None
        try:
            return safetensors.torch.load(path.read_bytes())["embeds"]
        except (safetensors.SafetensorError, KeyError, OSError) as error:
            logger.warning("The cached prompt %s cannot be read and is encoded anew: %s", path, error)
            return None

    def _write(self, prompt: str, embeds: Tensor) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(prompt)
        part = path.with_suffix(".part")
        part.write_bytes(safetensors.torch.save({"embeds": embeds.detach().cpu().contiguous().clone()}))
        part.replace(path)
