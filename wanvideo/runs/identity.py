"""What decides the frames of a video, as named values that can be compared and told apart."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import InputError
from ..untrusted import answered, once_per_state

HEAD, SAMPLES, SAMPLE = 2**20, 16, 2**12  # bytes that are read of a large file: its header, and places all over it
MACHINE = ("version", "torch", "device")  # names of what a video was made with, and not from
MOST_CHARACTERS = 80  # of a value in a message
MOST_MEDIA = 1000  # files whose hashes are remembered
LARGE = 2 * 10**9  # bytes whose reading takes a while
logger = logging.getLogger("wanvideo")


def identify(paths: Iterable[Path]) -> str:
    """Size and hash of files, whatever their names and times: header and samples of large ones, which models are.

    Raises: InputError when one cannot be read.
    """
    return _identity(paths, _sampled)


def identify_media(path: str | Path) -> str:
    """Size and hash of all of a picture, sound or video, in which an edit may change a single place.

    A file is read once for as long as it stays the same. Raises: InputError when it cannot be read.
    """
    return _identity_of_media(Path(path))


@once_per_state(MOST_MEDIA)
def _identity_of_media(path: Path) -> str:
    return _identity([path], _whole)


def _identity(paths: Iterable[Path], read: Callable[[BinaryIO, int], Iterator[bytes]]) -> str:
    total, digest = 0, hashlib.blake2b(digest_size=12)
    for path in _files(paths):
        with answered(str(path), InputError), path.open("rb") as file:
            size = path.stat().st_size
            digest.update(str(size).encode())
            for data in read(file, size):
                digest.update(data)
            total += size
    return f"{total} bytes, {digest.hexdigest()}"


def _sampled(file: BinaryIO, size: int) -> Iterator[bytes]:
    yield file.read(HEAD)
    for number in range(1, SAMPLES + 1 if size > HEAD else 1):
        file.seek(max(0, size * number // SAMPLES - SAMPLE))
        yield file.read(SAMPLE)


def _whole(file: BinaryIO, size: int) -> Iterator[bytes]:
    if size > LARGE:
        logger.info("All %.1f GB of %s are read once, as a run goes on only with the same file.", size / 1e9, file.name)
    while data := file.read(HEAD):
        yield data


def digest_of(*tensors: Tensor | None) -> str:
    """Hash of tensors' shapes and numbers; None counts too."""
    return digest_of_each(tensors)


def digest_of_each(tensors: Iterable[Tensor | None]) -> str:
    """As `digest_of`, of many that are made or read one by one."""
    digest = hashlib.blake2b(digest_size=12)
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none")
        else:
            data = tensor.detach().cpu().contiguous()
            digest.update(f"{tuple(data.shape)} {data.dtype}".encode())
            digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested JSON data as named texts: {"settings": {"steps": 4}} -> {"settings.steps": "4"}."""
    found: dict[str, str] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = str(value)
    return found


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """`steps was 4, is 8`, for everything that differs."""
    names = [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]
    return [f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}" for name in names]


def _short(value: str | None) -> str:
    if value is None:
        return "not there"
    return value if len(value) <= MOST_CHARACTERS else value[: MOST_CHARACTERS - 3] + "..."


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    """Those of folders too, but for hidden ones, which systems leave there at any time."""
    for path in paths:
        if path.is_dir():
            yield from sorted(inner for inner in path.iterdir() if inner.is_file() and not inner.name.startswith("."))
        else:
            yield path
