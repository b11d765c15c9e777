"""Model files of a folder: what each is by its content, whether it is as published, and what is still missing."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.checkpoint import recognize
from ..checkpoints.detect import SLOTS
from ..checkpoints.dialects import Kind
from ..checkpoints.download import verified
from ..checkpoints.reader import checkpoints_in
from ..checkpoints.sets import SETS, ModelSet, RemoteFile
from ..errors import CheckpointError

MOST_FOLDERS = 2000  # that are looked into
NEEDED = {  # and the set that brings it
    Kind.TRANSFORMER: "base-480p", Kind.ADAPTER: "infinitetalk-single", Kind.VAE: "encoders-480p",
    Kind.TEXT_ENCODER: "t5-480p", Kind.CLIP_VISION: "encoders-480p", Kind.AUDIO_ENCODER: "wav2vec",
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A model's files. what: in words; kinds: of model that it serves as, none where it is of no use here. state: as
    published, size as published, other than published, or empty where that is not known."""

    name: str
    what: str
    kinds: tuple[str, ...]
    num_bytes: int
    state: str = ""


@dataclass(frozen=True)
class Missing:
    """What is needed and not there. from_set: the set of `download` that has it."""

    what: str
    link: str
    from_set: str


def find_models(root: Path, is_verified: bool) -> Iterator[Found]:
    """Every model below a folder; only headers are read, and where `is_verified` all of what has a known SHA-256."""
    for number, (place, folders, _) in enumerate(os.walk(root)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if number >= MOST_FOLDERS:
            return
        for paths in checkpoints_in(place):
            yield _found(root, paths, is_verified)


def _found(root: Path, paths: list[Path], is_verified: bool) -> Found:
    name = str(paths[0].relative_to(root)) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    sizes = sum(path.stat().st_size for path in paths if path.is_file())
    try:
        identity = recognize(paths).identity
    except CheckpointError as error:
        return Found(name, without_private(str(error)), (), sizes)
    kinds = [identity.kind] if identity.kind in SLOTS else []
    if identity.kind is Kind.TRANSFORMER and identity.has_audio:
        kinds.append(Kind.ADAPTER)  # merged
    states = {_state(root, path, is_verified) for path in paths}
    state = states.pop() if len(states) == 1 else ""
    return Found(name, f"{identity.family}, {identity.storage}", tuple(kind.value for kind in kinds), sizes, state)


def _state(root: Path, path: Path, is_verified: bool) -> str:
    known = _published(root, path)
    if known is None or known.sha256 is None:
        return ""
    if path.stat().st_size != known.size_bytes:
        return "other than published"
    if not is_verified:
        return "size as published"
    return "as published" if verified(path, known.sha256) else "other than published"


def _published(root: Path, path: Path) -> RemoteFile | None:
    """The published file that has this path below a folder of ours."""
    local = path.relative_to(root).as_posix()
    return next((file for item in SETS.values() for file in item.files if file.local == local), None)


def missing_kinds(models: list[Found]) -> list[Missing]:
    """Kinds of models of which a folder has none."""
    there = {kind for model in models for kind in model.kinds}
    return [
        Missing(f"{SLOTS[kind].wanted}, e.g. {SLOTS[kind].example}", SLOTS[kind].link, from_set)
        for kind, from_set in NEEDED.items()
        if kind.value not in there
    ]


def missing_files(sets: tuple[ModelSet, ...], root: Path) -> list[Missing]:
    """Files of sets that are not below a folder."""
    return [
        Missing(file.local, file.link, item.name)
        for item in sets
        for file in item.files
        if not (root / file.local).is_file()
    ]


def without_private(text: str) -> str:
    """Text whose paths say neither where the home folder is nor what its owner is called."""
    home = str(Path.home())
    text = text.replace(home, "~") if len(home) > 1 else text
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        return text
    return text.replace(f"/{user}/", "/USER/").replace(f"\\{user}\\", "\\USER\\") if user != "root" else text
