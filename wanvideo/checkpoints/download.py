"""Published files, downloaded where a user asks for them by name. Nothing else is ever downloaded.

The package huggingface_hub does the transfer: an interrupted file goes on where it stopped, and HF_ENDPOINT names
another server that speaks the hub's protocol. Of two processes that want the same file in the same place, one waits for
the other.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from ..durable import give_name
from ..errors import CheckpointError, OutputError
from ..lock import FileLock, Owned
from .sets import TOKENIZER, WAV2VEC, RemoteFile, files_of

__all__ = ["TOKENIZER", "WAV2VEC", "Published", "download", "fetch", "published", "verified"]
SHA256, SHA1 = 64, 40  # hexadecimal digits: of a large file, of a small one as git counts it
PIECE = 2**22
SLACK_BYTES = 2**26
WAIT_S = 1.0  # between two looks at whether another process is done
logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class Published:
    """What a server says of a file. etag: its SHA-256, or for a small file its name in git.

    size_bytes: None where an answer has none, as from proxies that compress.
    """

    url: str
    size_bytes: int | None
    etag: str


def download(repository: str, folder: str | Path) -> Path:
    """Fetch the known files of a small repository into `folder`, unless they are there; returns the folder.

    Raises: CheckpointError, saying what to put where, when the machine is offline or the download fails; OutputError
        when the disk is full.
    """
    folder = Path(folder)
    files = [replace(file, local=file.name) for file in files_of(repository)]
    missing = [file for file in files if not (folder / file.local).is_file()]
    if missing:
        logger.info("Downloading %s of %s to %s.", ", ".join(file.name for file in missing), repository, folder)
    for file in missing:
        fetch(file, folder)
    return folder


def fetch(file: RemoteFile, root: Path) -> Path:
    """Download a file to its place below `root`, or go on where it stopped; its size and hash are checked.

    Raises: CheckpointError when it cannot be had, or what came is not what was published; OutputError when the disk is
        full or the folder cannot be written.
    """
    target = root / file.local
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        facts = published(file)
        part = target.with_name(f".{target.name}.{facts.etag[:12]}.part")
        with _alone(part) as has_waited:
            if has_waited and target.is_file() and _is_published(file, target, facts):
                return target
            _transfer(facts, part, _most_bytes(file, facts))
            _check(file, part, facts)
            give_name(part, target)
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 which package of HTTP the hub uses depends on its version
        _refuse(error, file, root)
    return target


@contextmanager
def _alone(part: Path) -> Iterator[bool]:
    """While no other process downloads to this part; gives whether one did until now."""
    has_waited, lock = False, None
    while lock is None:
        try:
            lock = FileLock(part.with_suffix(".lock"))
        except Owned as owner:
            if not has_waited:
                logger.warning("%s is downloaded by process %s already; waiting for it.", part.parent, owner)
            has_waited = True
            time.sleep(WAIT_S)
    try:
        yield has_waited
    finally:
        lock.release()


class _Part(io.BufferedWriter):
    """The part of a file that is there, to append to; what a server sends beyond the file's size fills no disk."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        super().__init__(io.FileIO(path, "ab"))
        self._most_bytes = most_bytes

    def write(self, data: Any, /) -> int:
        if self.tell() + len(data) > self._most_bytes:
            raise OSError(f"the server sends more than the {self._most_bytes} bytes of the file")
        return super().write(data)


def _most_bytes(file: RemoteFile, facts: Published) -> int:
    """That a file may have, whatever a server says."""
    if file.sha256 is not None:
        return file.size_bytes
    most = 2 * file.size_bytes + SLACK_BYTES  # a size that is known is rounded
    return most if facts.size_bytes is None else min(most, facts.size_bytes)


def _transfer(facts: Published, part: Path, most_bytes: int) -> None:
    """Append what is missing of a file; hf_hub_download would begin anew after every failure."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with _Part(part, most_bytes) as opened:
        there, size = opened.tell(), facts.size_bytes
        if size is None or there > size:
            opened.truncate(there := opened.seek(0))
        if there != size:
            http_get(
                facts.url, opened, resume_size=there, headers=build_hf_headers(token=_token()), expected_size=size,
                displayed_filename=part.name.split(".", 1)[1][:40],
            )  # fmt: skip


def published(file: RemoteFile) -> Published:
    """What the server has under this name. Raises: whatever the hub's package does."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(file.repository, file.name, revision=file.revision, endpoint=_endpoint())
    found = get_hf_file_metadata(url, token=_token())
    return Published(url, found.size, found.etag or "")


def verified(path: Path, sha256: str) -> bool:
    """Whether a file has this SHA-256; all of it is read."""
    return _digest(path, hashlib.sha256()) == sha256


def _check(file: RemoteFile, path: Path, facts: Published) -> None:
    """Remove what is not as published. Raises: CheckpointError."""
    if not _is_published(file, path, facts):
        path.unlink()
        raise CheckpointError(
            f"{file.name} of {file.repository} came with other content than was published, and was removed. "
            "Run the same again; if it stays so, choose another server with HF_ENDPOINT."
        )


def _is_published(file: RemoteFile, path: Path, facts: Published) -> bool:
    """Whether a file has the size and the hash that are known; where neither is, nothing speaks for it."""
    size = path.stat().st_size
    if facts.size_bytes not in (None, size):
        return False
    sha256 = file.sha256 or (facts.etag if len(facts.etag) == SHA256 else None)
    if sha256 is not None:
        return verified(path, sha256)
    if len(facts.etag) == SHA1:
        return _digest(path, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)) == facts.etag
    return facts.size_bytes is not None


def _digest(path: Path, digest: hashlib._Hash) -> str:
    with path.open("rb") as opened:
        while piece := opened.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _refuse(error: Exception, file: RemoteFile, root: Path) -> NoReturn:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        raise OutputError(
            f"The disk of {root} is full: {file.name} is not complete. Free some space and run the same again, "
            "it goes on from there."
        ) from None
    if number in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        raise OutputError(f"{root} cannot be written ({os.strerror(number)}). Name another folder.") from None
    reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    raise CheckpointError(
        f"{file.repository} is not on this machine and could not be downloaded ({reason}).\n"
        f"Put {file.name} of {file.link} into {(root / file.local).parent}"
    ) from None


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _token() -> str | bool | None:
    """None: the one that the user has logged in with, which is for the hub alone; others are given one by name."""
    return None if _endpoint() is None else os.environ.get("HF_TOKEN") or False
