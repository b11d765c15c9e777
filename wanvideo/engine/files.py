"""The files of a run: what the user names, and what lies in the folder that the user names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint, check_image_to_video, with_adapter
from ..checkpoints.detect import check_fit
from ..checkpoints.dialects import Kind
from ..checkpoints.folders import FolderFiles, file_for, find_in_folder
from ..checkpoints.load import open_checkpoint
from ..errors import CheckpointError
from ..lora.file import check_lora
from ..lora.use import LoraUse
from ..request import ModelFiles

SLOTS = {  # what a folder may give where nothing is named
    "vae": Kind.VAE,
    "text_encoder": Kind.TEXT_ENCODER,
    "clip_vision": Kind.CLIP_VISION,
    "wav2vec": Kind.AUDIO_ENCODER,
}
ADAPTER_FOLDERS = ("", "single", "multi")  # where the published InfiniteTalk folder has its adapters


@dataclass(frozen=True)
class ResolvedFiles:
    """Each model, recognized by its files' content; None for what is not there."""

    transformer: Checkpoint
    adapter: Checkpoint | None = None
    vae: Checkpoint | None = None
    text_encoder: Checkpoint | None = None
    clip_vision: Checkpoint | None = None
    wav2vec: Checkpoint | None = None
    tokenizer: Path | None = None
    loras: tuple[LoraUse, ...] = ()

    @property
    def has_audio(self) -> bool:
        """Whether there is an audio adapter, by itself or merged into the base."""
        return self.adapter is not None or self.transformer.identity.has_audio


def resolve(files: ModelFiles) -> ResolvedFiles:
    """Find every model of a run and make sure that it is what it is named as; only headers are read.

    Raises: CheckpointError naming the file, what it is and what is needed.
    """
    base = Path(files.folder or files.transformer).expanduser()
    folder = find_in_folder(base) if base.is_dir() else FolderFiles({}, None, ())
    is_there = Path(files.transformer).expanduser() == base and Kind.TRANSFORMER in folder.models
    named = folder.models[Kind.TRANSFORMER] if is_there else files.transformer
    transformer = open_checkpoint(named, Kind.TRANSFORMER)
    check_image_to_video(transformer)
    # An adapter changes what the model does, so it is never used only because it lies there.
    adapter = _named(files.adapter, Kind.ADAPTER)
    if adapter is not None:
        check_fit(transformer.paths[0].name, transformer.identity, adapter.paths[0].name, adapter.identity)
    found = {
        name: folder.models.get(kind) if getattr(files, name) is None else _named(getattr(files, name), kind)
        for name, kind in SLOTS.items()
    }
    for name in ("vae", "text_encoder", "clip_vision"):
        if found[name] is None and (folder.refused or folder.others):
            file_for(base, SLOTS[name])  # raises, and names what lies there in its place
    tokenizer = Path(files.tokenizer).expanduser() if files.tokenizer else folder.tokenizer
    if tokenizer is None and found["text_encoder"] is not None:
        tokenizer = found["text_encoder"].paths[0]
    shapes = with_adapter(transformer, adapter).shapes if files.loras else None
    loras = tuple(LoraUse(check_lora(lora.path, shapes), lora.strength) for lora in files.loras)
    return ResolvedFiles(transformer, adapter, **found, tokenizer=tokenizer, loras=loras)


def _named(path: str | None, kind: Kind) -> Checkpoint | None:
    if path is None:
        return None
    place = Path(path).expanduser()
    if place.is_dir() and kind is Kind.ADAPTER:
        for inner in ADAPTER_FOLDERS:
            models = find_in_folder(place / inner).models if (place / inner).is_dir() else {}
            if kind in models:
                return models[kind]
        raise CheckpointError(
            f"The folder {place} has no audio adapter. Name its file: single/infinitetalk.safetensors."
        )
    return open_checkpoint(place, kind)
