"""Which file of a folder is which model.

Known are the official folders (Wan2.1-I2V-14B-480P, InfiniteTalk, chinese-wav2vec2-base) and diffusers' folders.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .checkpoint import Checkpoint, recognize
from .detect import SLOTS, describe
from .dialects import Kind
from .reader import STANDARD_NAMES, checkpoints_in, few

SUBFOLDERS = ("transformer", "vae", "text_encoder", "image_encoder")
TOKENIZER_FOLDERS = ("google/umt5-xxl", "tokenizer", ".")
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class FolderFiles:
    """What a folder holds.

    Args:
        models: what it has of each kind.
        tokenizer: the file of the text encoder's tokenizer, or None.
        refused: what could not be read, a sentence for each.
        others: what is no model that is used here, a sentence for each.
    """

    models: dict[Kind, Checkpoint]
    tokenizer: Path | None
    refused: tuple[str, ...]
    others: tuple[str, ...] = ()


def find_in_folder(folder: str | Path) -> FolderFiles:
    """Look at every file of weights in a model folder and tell which is which, by content.

    Of two files of one kind, the one that is in shards or has a standard name counts, else the first by name.
    """
    folder = Path(folder).expanduser()
    models: dict[Kind, Checkpoint] = {}
    refused: list[str] = []
    others: list[str] = []
    for place in (folder, *(folder / name for name in SUBFOLDERS)):
        here: dict[Kind, list[Checkpoint]] = {}
        for paths in checkpoints_in(place) if place.is_dir() else ():
            try:
                checkpoint = recognize(paths)
            except CheckpointError as error:
                refused.append(str(error))
                continue
            if checkpoint.kind in SLOTS:
                here.setdefault(checkpoint.kind, []).append(checkpoint)
            else:
                others.append(f"{describe(checkpoint.identity, paths[0].name)}.")
        for kind, choices in here.items():
            if kind not in models:
                models[kind] = _choose(kind, choices)
    return FolderFiles(models, find_tokenizer(folder), tuple(refused), tuple(others))


def find_tokenizer(folder: Path) -> Path | None:
    """The tokenizer's file in a model folder, if there is one."""
    candidates = (folder / name / file for name in TOKENIZER_FOLDERS for file in TOKENIZER_FILES)
    return next((path for path in candidates if path.is_file()), None)


def file_for(folder: str | Path, kind: Kind) -> Checkpoint:
    """One model in a folder. Raises: CheckpointError when there is none of that kind."""
    folder = Path(folder).expanduser()
    files = find_in_folder(folder)
    if kind in files.models:
        return files.models[kind]
    slot = SLOTS[kind]
    held = ", ".join(f"{other.value} {found.paths[0].name}" for other, found in files.models.items()) or "no model"
    unused = (*files.refused, *files.others)
    unread = f" ({unused[0]})" if unused else ""
    raise CheckpointError(
        f"The folder {folder} has no {kind.value}; it has {held}{unread}. "
        f"Put {slot.wanted}, e.g. {slot.example}, into it."
    )


def _choose(kind: Kind, choices: list[Checkpoint]) -> Checkpoint:
    standard = [item for item in choices if len(item.paths) > 1 or item.paths[0].name in STANDARD_NAMES]
    chosen = (standard or choices)[0]
    if len(choices) > 1:
        names = few(item.paths[0].name for item in choices)
        logger.info("%s has %d models of the kind %s (%s): %s is used.",
                    chosen.paths[0].parent, len(choices), kind.value, names, chosen.paths[0].name)  # fmt: skip
    return chosen
