"""Files that come through the browser: of few kinds, limited in size, and kept under names that we choose."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..durable import write_atomically, written_aside
from ..errors import InputError, OutputError
from ..untrusted import answered, regular_file

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg")
SOUNDS = (".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", *VIDEOS)
BLOCK = 2**20
NAME = re.compile(r"[0-9a-f]{32}\.[a-z0-9]{2,4}")  # hardly to be guessed; who knows it has the file


@dataclass(frozen=True)
class Uploads:
    """The store of all uploads, which runs go on to read.

    Args:
        folder: where they are kept, each once. arriving: folder that the web server writes them to first.
        most_bytes: of one file.
    """

    folder: Path
    arriving: Path
    most_bytes: int

    def keep(self, path: str, kinds: Sequence[str], what: str) -> str:
        """The path under which an upload is kept from now on.

        Args: kinds: allowed suffixes. what: the field that it is for, for messages.
        Raises: InputError for a file from elsewhere on this machine, of another kind, or too large.
        """
        file = Path(path).resolve()
        if not (file.is_relative_to(self.arriving.resolve()) or file.is_relative_to(self.folder.resolve())):
            raise InputError(
                f"{what}: {file.name!r} was not uploaded. Upload a file; paths of this machine are not read."
            )
        suffix = file.suffix.lower()
        if suffix not in kinds:
            raise InputError(f"{what}: {suffix or 'a file without a suffix'} is not read. Use {', '.join(kinds)}.")
        size = regular_file(file, f"the file of {what}").stat().st_size
        if size > self.most_bytes:
            raise InputError(
                f"{what}: {size / 1e6:.0f} MB are too much, {self.most_bytes / 1e6:.0f} are taken. Use a smaller file."
            )
        with answered(str(self.folder), OutputError, "written"):
            kept = self.folder / f"{_digest(file)}{suffix}"
            if not kept.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                with written_aside(kept) as scratch:
                    shutil.copyfile(file, scratch)
        return str(kept)

    def find(self, name: str) -> Path:
        """The file of this name in the store. Raises: InputError for any other name."""
        if NAME.fullmatch(name) is None or not (self.folder / name).is_file():
            raise InputError(f"There is no upload {name[:80]!r}. Choose the file again.")
        return self.folder / name

    def write(self, data: bytes, suffix: str) -> str:
        """Keep something that the app itself made of uploads. Returns: its path."""
        kept = self.folder / f"{hashlib.blake2b(data, digest_size=16).hexdigest()}{suffix}"
        with answered(str(self.folder), OutputError, "written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not kept.exists():
                write_atomically(kept, data)
        return str(kept)


def _digest(file: Path) -> str:
    known = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            known.update(block)
    return known.hexdigest()
