"""Where users keep model files, and which of the names that a model goes by is there. No file is opened."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

WEIGHTS = "weights"  # in the folder where a command runs
FOLDERS = "WANVIDEO_MODELS"  # environment variable: more folders, parted as in PATH
REPOSITORY = Path(__file__).resolve().parents[2]
COMFYUI = ("ComfyUI", "../ComfyUI", "~/ComfyUI", "~/comfy/ComfyUI", "~/Documents/ComfyUI")
SUFFIXES = (".safetensors", ".gguf", ".pth", ".pt", ".bin")
DEPTH = 4  # models/diffusion_models/InfiniteTalk/file
NEAR = 3  # InfiniteTalk/single/file
WHERE = f"{WEIGHTS}/, {FOLDERS}, ComfyUI's models and the cache of Hugging Face"


@dataclass(frozen=True)
class Place:
    """A folder that may have models.

    Args: name: stands for the folder itself in the names of what is in it. depth: of folders that are looked into.
    """

    folder: Path
    name: str = ""
    depth: int = DEPTH

    @functools.cached_property
    def entries(self) -> tuple[tuple[str, Path], ...]:
        """Names and paths of all files of weights and of the folders that hold some, in order."""
        return tuple(sorted(_walk(self.folder, self.name or self.folder.name, self.depth)))

    def first(self, pattern: str) -> Path | None:
        """The first of what is here whose name ends with a pattern such as `single/infinitetalk*.safetensors`."""
        num_parts = pattern.count("/") + 1
        for name, path in self.entries:
            if fnmatchcase("/".join(name.split("/")[-num_parts:]).lower(), pattern.lower()):
                return path
        return None


def places(near: Iterable[Path] = ()) -> Iterator[Place]:
    """All folders that may have models, nearest first. near: those that the user named, which are not looked into far.

    The rest: weights/ where the command runs, those of WANVIDEO_MODELS, ComfyUI's models, and what `huggingface-cli
    download` left in its cache.
    """
    named = [folder for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder.strip()]
    found = [Place(folder, depth=NEAR) for folder in near]
    found += [Place(Path(folder).expanduser()) for folder in (WEIGHTS, *named)]
    own = [str(REPOSITORY.parents[1])] if REPOSITORY.parent.name == "custom_nodes" else []
    found += [Place(Path(folder).expanduser() / "models") for folder in (*own, *COMFYUI)]
    yield from (place for place in found if place.folder.is_dir())
    yield from _cached_repositories()


def find_first(patterns: Sequence[str], among: Iterable[Place]) -> Path | None:
    """What goes by one of these names, best first; what is in a nearer folder counts before a better name."""
    found = (path for place in among for pattern in patterns if (path := place.first(pattern)) is not None)
    return next(found, None)


def _walk(folder: Path, name: str, depth: int) -> Iterator[tuple[str, Path]]:
    try:
        inside = sorted(
            (path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name
        )
    except OSError:
        return
    files = [path for path in inside if path.name.endswith(SUFFIXES) and path.is_file()]
    if files:
        yield name, folder
    for path in files:
        yield f"{name}/{path.name}", path
    for path in inside:
        if depth > 1 and path.is_dir():
            yield from _walk(path, f"{name}/{path.name}", depth - 1)


def _cached_repositories() -> Iterator[Place]:
    """The newest stored revision of each repository in the cache of Hugging Face, `main` before others."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for folder in sorted(Path(HF_HUB_CACHE).expanduser().glob("models--*--*")):
        name = folder.name.removeprefix("models--").replace("--", "/")
        main = folder / "refs" / "main"
        commit = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
        revisions = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
        for revision in sorted(revisions, key=lambda path: (path.name != commit, -path.stat().st_mtime)):
            yield Place(revision, name)
