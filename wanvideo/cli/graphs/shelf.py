"""ComfyUI's folder of models as ComfyUI lists it, for those who look at it from outside."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...checkpoints.checkpoint import identity_of
from ...checkpoints.detect import SLOTS, Identity
from ...checkpoints.dialects import Kind
from ...errors import CheckpointError

# Folders of ComfyUI below its own of models, in its order: newer and older names of the same.
DIFFUSION, TEXT = ("unet", "diffusion_models"), ("text_encoders", "clip")
SUFFIXES = (".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft")
WITH_GGUF = (*SUFFIXES, ".gguf")


@dataclass(frozen=True)
class FolderShelf:
    """Files of one kind in some folders of `models`. suffixes: of the files that ComfyUI lists there."""

    kind: Kind
    models: Path
    folders: tuple[str, ...]
    suffixes: tuple[str, ...] = SUFFIXES

    @cached_property
    def _paths(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for folder in self.folders:
            root = self.models / folder
            for path in root.rglob("*") if root.is_dir() else ():
                if path.suffix.lower() in self.suffixes:
                    found.setdefault(path.relative_to(root).as_posix(), path)
        return found

    def names(self) -> list[str]:
        """Relative to their folders."""
        return sorted(self._paths, key=str.lower)

    def identity(self, name: str) -> Identity | None:
        """See `talk.Shelf`."""
        return identity_of(self._paths[name], self.kind) if name in self._paths else None

    def path(self, name: str) -> Path | None:
        """Of a file by its name, on any system, else by its bare name where only one file has it; or None."""
        plain = name.replace("\\", "/")
        same = [path for path in self._paths.values() if path.name == plain.rpartition("/")[2]]
        return self._paths.get(plain, same[0] if len(same) == 1 else None)

    def find(self, name: str) -> Path:
        """See `path`. Raises: CheckpointError when there is none."""
        if (found := self.path(name)) is not None:
            return found
        slot = SLOTS[self.kind]
        raise CheckpointError(
            f"{name} is not in {self.models / slot.folder}. Needed is {slot.wanted}: put it there, or name ComfyUI's "
            "folder with --models."
        )


def folder_shelves(models: Path) -> tuple[FolderShelf, ...]:
    """All shelves of a folder of models, in the order of `Shelves`."""

    def shelf(kind: Kind, *folders: str, suffixes: tuple[str, ...] = SUFFIXES) -> FolderShelf:
        return FolderShelf(kind, models, folders, suffixes)

    return (
        shelf(Kind.TRANSFORMER, *DIFFUSION, suffixes=WITH_GGUF),
        shelf(Kind.ADAPTER, *DIFFUSION, "model_patches", suffixes=WITH_GGUF),
        shelf(Kind.VAE, "vae"),
        shelf(Kind.TEXT_ENCODER, *TEXT, suffixes=WITH_GGUF),
        shelf(Kind.CLIP_VISION, "clip_vision", *TEXT),
        shelf(Kind.AUDIO_ENCODER, "wav2vec2", "audio_encoders"),
        shelf(Kind.LORA, "loras"),
    )
