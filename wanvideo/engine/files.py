"""The files of a run: what the user names, and what lies in the folder that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.detect import Identity, check_fit, require
from ..checkpoints.dialects import Kind
from ..checkpoints.folders import FolderFiles, file_for, find_in_folder
from ..checkpoints.reader import open_tensors
from ..errors import CheckpointError
from ..lora.file import open_lora
from ..request import LoraFile, ModelFiles

SLOTS = {
    "transformer": Kind.TRANSFORMER,
    "adapter": Kind.ADAPTER,
    "vae": Kind.VAE,
    "text_encoder": Kind.TEXT_ENCODER,
    "clip_vision": Kind.CLIP_VISION,
    "wav2vec": Kind.AUDIO_ENCODER,
}
ADAPTER_FOLDERS = ("", "single", "multi")  # where the published InfiniteTalk folder has its adapters
Paths = Sequence[Path]


@dataclass(frozen=True)
class ResolvedFiles:
    """Files of each model, recognised by their content; has_audio: an adapter is named or merged into the base."""

    transformer: Paths
    adapter: Paths | None
    vae: Paths | None
    text_encoder: Paths | None
    clip_vision: Paths | None
    wav2vec: Paths | None
    tokenizer: Path | None
    has_audio: bool
    loras: tuple[LoraFile, ...] = ()


def resolve(files: ModelFiles) -> ResolvedFiles:
    """Find every model of a run and make sure that it is what it is named as; only headers are read.

    Raises: CheckpointError naming the file, what it is and what is needed.
    """
    base = Path(files.folder or files.transformer).expanduser()
    folder = find_in_folder(base) if base.is_dir() else FolderFiles({}, None, ())
    found: dict[str, Paths | None] = {}
    identities: dict[str, Identity] = {}
    for name, kind in SLOTS.items():
        named = getattr(files, name)
        # An adapter changes what the model does, so it is never used only because it lies there.
        paths = folder.models.get(kind) if named is None and name != "adapter" else _named(named, kind)
        if paths is not None:
            identities[name] = require(open_tensors(paths), kind)
        found[name] = paths
    if found["adapter"]:
        base_name, adapter_name = found["transformer"][0].name, found["adapter"][0].name
        check_fit(base_name, identities["transformer"], adapter_name, identities["adapter"])
    for name in ("vae", "text_encoder", "clip_vision"):
        if found[name] is None and (folder.refused or folder.others):
            file_for(base, SLOTS[name])  # raises, and names what lies there in its place
    tokenizer = Path(files.tokenizer).expanduser() if files.tokenizer else folder.tokenizer
    if tokenizer is None and found["text_encoder"]:
        tokenizer = found["text_encoder"][0]
    has_audio = found["adapter"] is not None or identities["transformer"].has_audio
    for lora in files.loras:
        open_lora(lora.path)
    return ResolvedFiles(**found, tokenizer=tokenizer, has_audio=has_audio, loras=files.loras)


def _named(path: str | None, kind: Kind) -> Paths | None:
    if path is None:
        return None
    place = Path(path).expanduser()
    if not place.is_dir():
        return [place]
    if kind is Kind.ADAPTER:
        for inner in ADAPTER_FOLDERS:
            models = find_in_folder(place / inner).models if (place / inner).is_dir() else {}
            if kind in models:
                return models[kind]
        raise CheckpointError(
            f"The folder {place} has no audio adapter. Name its file: single/infinitetalk.safetensors."
        )
    return file_for(place, kind)
