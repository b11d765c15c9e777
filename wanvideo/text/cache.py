"""Prompts' embeddings on disk, so that a known prompt needs no text encoder.

Legend: n tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
from torch import Tensor

from ..durable import discard, write_atomically

logger = logging.getLogger("wanvideo")
FORMAT = 2  # raised when embeddings of the same inputs change
PLACE = "WANVIDEO_CACHE"  # environment variable: the folder, empty for none
MOST_FILES = 500  # of up to 4 MB; the ones that were written first go


def user_cache() -> Path | None:
    """The folder in which a user's encoded prompts are kept; None where they are not to be kept."""
    if (named := os.environ.get(PLACE)) is not None:
        return Path(named).expanduser() if named.strip() else None
    base = os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
    return Path(base).expanduser() / "wan-talking-video" / "prompts"


class TextCache:
    """Embeddings of one text encoder.

    Args:
        folder: of the cache. encoder: the encoder's files; another size or time of one of them is another encoder.
        precision: in which it computes, with its quantization. dim: of its embeddings.
    """

    def __init__(self, folder: str | Path, encoder: Sequence[Path], precision: str, dim: int) -> None:
        self.folder, self.dim = Path(folder), dim
        stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in encoder]
        self.key = json.dumps([FORMAT, stamps, precision])

    def get(self, prompts: Sequence[str], encode: Callable[[list[str]], list[Tensor]]) -> list[Tensor]:
        """Embeddings [n_i, dim] of each prompt; `encode` is called once, for those that are not known yet."""
        found = {prompt: self._read(prompt) for prompt in prompts}
        known = {prompt: embeds for prompt, embeds in found.items() if embeds is not None}
        missing = [prompt for prompt in found if prompt not in known]
        if missing:
            for prompt, embeds in zip(missing, encode(missing), strict=True):
                known[prompt] = embeds
                self._write(prompt, embeds)
            self._forget_oldest()
        return [known[prompt] for prompt in prompts]

    def _path(self, prompt: str) -> Path:
        return self.folder / f"{hashlib.sha256((self.key + prompt).encode()).hexdigest()[:40]}.safetensors"

    def _read(self, prompt: str) -> Tensor | None:
        path = self._path(prompt)
        if not path.is_file():
            return None
        try:
            embeds = safetensors.torch.load(path.read_bytes())["embeds"]
            is_right = embeds.ndim == 2 and len(embeds) > 0 and embeds.shape[1] == self.dim
            if not is_right or not embeds.is_floating_point() or not embeds.isfinite().all():
                raise ValueError(f"it holds {list(embeds.shape)} of {embeds.dtype}, or no finite numbers")
        except (safetensors.SafetensorError, KeyError, OSError, ValueError) as error:
            logger.warning("The cached prompt %s cannot be read and is encoded anew: %s", path, error)
            return None
        return embeds

    def _write(self, prompt: str, embeds: Tensor) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(
                self._path(prompt), safetensors.torch.save({"embeds": embeds.detach().cpu().contiguous().clone()})
            )
        except OSError as error:  # a video does not end because a prompt cannot be kept
            logger.warning("The encoded prompt cannot be kept in %s: %s", self.folder, error)

    def _forget_oldest(self) -> None:
        with contextlib.suppress(OSError):  # another process forgets them too
            kept = sorted(self.folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
            for old in kept[:-MOST_FILES]:
                discard(old)
