"""Files that widgets name: where they are, whether they are what they should be, and that they are inside ComfyUI."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any

from .nodes_base import Node, checked
from .nodes_common import folder_names, folder_roots, in_comfyui, output_folder
from .wanvideo.checkpoints.checkpoint import identity_of
from .wanvideo.checkpoints.detect import SLOTS, Identity
from .wanvideo.checkpoints.dialects import Kind
from .wanvideo.checkpoints.load import open_checkpoint
from .wanvideo.errors import CheckpointError, OutputError, TalkError
from .wanvideo.lora.file import open_lora
from .wanvideo.untrusted import answered

TINY_NAME = re.compile("(?i)taew2_1")
UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Files:
    """A widget that lists model files.

    Args: kind: what the files should be. folders: of ComfyUI, in order. first: entries before the files. like: where
        the folders hold other kinds too, names that are offered whatever the file holds; of others, those of the kind.
    """

    kind: Kind
    folders: tuple[str, ...]
    first: tuple[str, ...] = ()
    like: re.Pattern[str] | None = None

    def names(self) -> list[str]:
        return [*self.first, *sorted({name for folder in self.folders for name in folder_names(folder)}, key=str.lower)]

    def widget(self) -> tuple[list[str], dict[str, Any]]:
        names = self.names()
        if self.like:
            names = [name for name in names if self.like.search(name) or self.is_kind(name)]
        default = self.first[0] if self.first else next((name for name in names if self.is_kind(name)), None)
        return names, {} if default is None else {"default": default}

    def is_kind(self, name: str) -> bool:
        """Whether a file is a model of this kind that can be used, told by its content."""
        return self.identity(name) is not None

    def identity(self, name: str) -> Identity | None:
        """What a file is; None where it is of another kind, cannot be used or is not there."""
        try:
            path = self.find(name)
            return _identity(path, self.kind, stamp_of(path))
        except (TalkError, OSError):
            return None

    def find(self, name: str) -> Path:
        """The file that a widget's value means, on any system: by its path, else by its bare name.

        Raises: CheckpointError with name, folder and link when there is none, with the choices when there are several,
            and for whatever leads out of the folders, whether there is a file or not.
        """
        parts = _parts(name, f"The name of {SLOTS[self.kind].wanted}", CheckpointError)
        for path in self._places(name, parts):
            if _is_file(path) and self._is_inside(path, parts):
                return path
        same = [other for other in self.names() if parts and PureWindowsPath(other).name == parts[-1]]
        if len(same) == 1 and same[0] != name:
            return self.find(same[0])
        if len(same) > 1:
            raise CheckpointError(
                f"{name} is not there, and several files have its name: {', '.join(same)}. Choose one."
            )
        slot = SLOTS[self.kind]
        raise CheckpointError(
            f"{name or 'The file'} is missing. Needed is {slot.wanted}, e.g. {slot.example}.\n"
            f"Download it from {slot.link} and put it into {self._where()}"
        )

    def check(self, name: str) -> None:
        """Raises: TalkError unless the file is there and its header says that it is what the widget is for."""
        if name in self.first:
            return
        path = self.find(name)
        with answered(path.name, CheckpointError):
            _check_kind(path, self.kind, stamp_of(path))

    def stamp(self, name: str) -> str:
        """What changes when the file does; empty where there is none."""
        try:
            return "" if name in self.first else stamp_of(self.find(name))
        except (TalkError, OSError):
            return ""

    def _roots(self) -> list[Path]:
        return [root for folder in self.folders for root in folder_roots(folder)]

    def _where(self) -> str:
        """The folder to put a file into: of several that ComfyUI looks in the one that has the folder's own name."""
        folder = SLOTS[self.kind].folder
        roots = [root for name in self.folders for root in folder_roots(name)]
        home = next((root for root in roots if root.name == folder), roots[0] if roots else Path("models", folder))
        return str(home)

    def _places(self, name: str, parts: tuple[str, ...]) -> list[Path]:
        """Where the file may be. Nothing is asked of the disk, and nothing of another machine, before this is known."""
        pure = PureWindowsPath(name)
        if not pure.drive and not pure.root and ".." not in parts:
            return [root.joinpath(*parts) for root in self._roots()] if parts else []
        whole = Path(name)
        if in_comfyui() and (".." in parts or not any(whole.is_relative_to(root) for root in self._roots())):
            raise CheckpointError(
                f"{name!r:.200} leads out of the folders that ComfyUI keeps {SLOTS[self.kind].wanted} in. "
                f"Choose a file of the list, or put one into {self._where()}"
            )
        return [whole]

    def _is_inside(self, path: Path, parts: tuple[str, ...]) -> bool:
        """Links count as far as ComfyUI follows and lists them: who may make one decides what is a model folder."""
        if not in_comfyui():
            return True
        with contextlib.suppress(OSError, RuntimeError):
            resolved = path.resolve()
            if any(resolved.is_relative_to(root.resolve()) for root in self._roots()):
                return True
        listed = str(Path(*parts))  # asked last, as thousands may be
        return any(listed in folder_names(folder) for folder in self.folders)


def _parts(name: Any, what: str, error: type[TalkError]) -> tuple[str, ...]:
    """The steps of a path as any system writes them."""
    if not isinstance(name, str):
        raise error(f"{what} is {type(name).__name__}, not text. Choose one of the list.")
    if UNWRITABLE.search(name):
        raise error(f"{what}, {name!r:.200}, has characters that no file name has. Type it anew.")
    return PureWindowsPath(name).parts


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that the file system cannot have
        return False


def stamp_of(path: Path) -> str:
    """What changes when a file does."""
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


@lru_cache(maxsize=256)
def _check_kind(path: Path, kind: Kind, stamp: str) -> None:
    """Once for each state of a file, as graphs are queued more often than files change."""
    if kind is Kind.LORA:
        open_lora(path)
    else:
        open_checkpoint(path, kind)


@lru_cache(maxsize=4096)
def _identity(path: Path, kind: Kind, stamp: str) -> Identity | None:
    """See `identity_of`; once for each state of a file."""
    return identity_of(path, kind)


class FileNode(Node):
    """A node that names files: they are recognized when a graph is queued, and it runs again when one has changed."""

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> str:
        return " ".join(spec.stamp(inputs[name]) for name, spec in cls.files().items() if inputs.get(name) is not None)

    @classmethod
    def files(cls) -> dict[str, Files]:
        return {name: spec for name, spec in (cls.REQUIRED | cls.OPTIONAL).items() if isinstance(spec, Files)}

    @classmethod
    def check_files(cls, **names: Any) -> bool | str:
        """What VALIDATE_INPUTS answers. A name that is linked is not known yet, and a missing one ComfyUI's affair."""
        files = cls.files()

        def check() -> None:
            for item, name in names.items():
                if name is not None:
                    files[item].check(name)

        return checked(check)


def folder_inside(text: str) -> Path | None:
    """The folder in ComfyUI's output folder that `output_path` names; None where it names none.

    Raises: OutputError for what leads out of it, by whatever way.
    """
    home = output_folder()
    parts = _parts(text.strip() if isinstance(text, str) else text, "output_path", OutputError)
    if not parts:
        return None
    pure = PureWindowsPath(*parts)
    folder = Path(text.strip()) if pure.drive or pure.root else home.joinpath(*parts)
    try:
        inside = ".." not in parts and folder.absolute().is_relative_to(home.absolute())
        inside = inside and folder.resolve().is_relative_to(home.resolve())
    except (OSError, RuntimeError, ValueError):
        inside = False
    if not inside:
        raise OutputError(
            f"output_path {text!r:.200} leads out of ComfyUI's output folder. Name a folder inside, e.g. my videos."
        )
    return folder


MODELS = ("diffusion_models", "diffusion_models_gguf")
TRANSFORMERS = Files(Kind.TRANSFORMER, MODELS)
ADAPTERS = Files(Kind.ADAPTER, (*MODELS, "model_patches"), like=re.compile("(?i)infinite?talk|multitalk"))
VAES = Files(Kind.VAE, ("vae",))
TINY_VAES = Files(Kind.TINY_VAE, ("vae_approx",), like=TINY_NAME)
TEXT_ENCODERS = Files(Kind.TEXT_ENCODER, ("text_encoders", "text_encoders_gguf"))
CLIP_VISIONS = Files(Kind.CLIP_VISION, ("clip_vision", "text_encoders"))
AUDIO_ENCODERS = Files(Kind.AUDIO_ENCODER, ("wav2vec2", "audio_encoders"))
LORAS = Files(Kind.LORA, ("loras",))
SOME_LORAS = Files(Kind.LORA, ("loras",), first=("none",))
