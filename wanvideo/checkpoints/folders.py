"""Which file of a folder is which model.

Known are the official folders (Wan2.1-I2V-14B-480P, InfiniteTalk, chinese-wav2vec2-base) and diffusers' folders.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .detect import SLOTS, describe, identify
from .dialects import Kind
from .reader import STANDARD_NAMES, checkpoints_in, few, open_tensors

SUBFOLDERS = ("transformer", "vae", "text_encoder", "image_encoder")
TOKENIZER_FOLDERS = ("google/umt5-xxl", "tokenizer", ".")
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class FolderFiles:
    """What a folder holds.

    Args:
        models: the files of each model, several where it is in shards.
        tokenizer: the file of the text encoder's tokenizer, or None.
        refused: what could not be read, a sentence for each.
        others: what is no model that is used here, a sentence for each.
    """

    models: dict[Kind, list[Path]]
    tokenizer: Path | None
    refused: tuple[str, ...]
    others: tuple[str, ...] = ()


def find_in_folder(folder: str | Path) -> FolderFiles:
    """Look at every file of weights in a model folder and tell which is which, by content.

    Of two files of one kind, the one that is in shards or has a standard name counts, else the first by name.
    """
    folder = Path(folder).expanduser()
    models: dict[Kind, list[Path]] = {}
    refused: list[str] = []
    others: list[str] = []
    for place in (folder, *(folder / name for name in SUBFOLDERS)):
        here: dict[Kind, list[list[Path]]] = {}
        for paths in checkpoints_in(place) if place.is_dir() else ():
            try:
                identity = identify(open_tensors(paths))
            except CheckpointError as error:
                refused.append(str(error))
                continue
            if identity.kind in SLOTS:
                here.setdefault(identity.kind, []).append(paths)
            else:
                others.append(f"{describe(identity, paths[0].name)}.")
        for kind, choices in here.items():
            if kind not in models:
                models[kind] = _choose(kind, choices)
    return FolderFiles(models, find_tokenizer(folder), tuple(refused), tuple(others))


def find_tokenizer(folder: Path) -> Path | None:
    """The tokenizer's file in a model folder, if there is one."""
    candidates = (folder / name / file for name in TOKENIZER_FOLDERS for file in TOKENIZER_FILES)
    return next((path for path in candidates if path.is_file()), None)


def file_for(folder: str | Path, kind: Kind) -> list[Path]:
    """The files of one model in a folder. Raises: CheckpointError when there is none of that kind."""
    folder = Path(folder).expanduser()
    files = find_in_folder(folder)
    if kind in files.models:
        return files.models[kind]
    slot = SLOTS[kind]
    held = ", ".join(f"{other.value} {paths[0].name}" for other, paths in files.models.items()) or "no model"
    unused = (*files.refused, *files.others)
    refused = f"\n{unused[0]}" if unused else ""
    raise CheckpointError(
        f"The folder {folder} has no {kind.value}; it has {held}. "
        f"Needed is {slot.wanted}, e.g. {slot.example}.{refused}"
    )


def _choose(kind: Kind, choices: list[list[Path]]) -> list[Path]:
    standard = [paths for paths in choices if len(paths) > 1 or paths[0].name in STANDARD_NAMES]
    chosen = (standard or choices)[0]
    if len(choices) > 1:
        names = few(paths[0].name for paths in choices)
        logger.info("%s has %d models of the kind %s (%s): %s is used.",
                    chosen[0].parent, len(choices), kind.value, names, chosen[0].name)  # fmt: skip
    return chosen
