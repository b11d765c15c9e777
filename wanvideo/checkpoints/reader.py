"""Weights as they lie in files: names, shapes and dtypes first, memory-mapped tensors when they are asked for.

A `TensorSource` never changes a file and never holds a tensor. Renaming, selecting, merging and per-tensor operations
give another source over the same bytes, so a checkpoint is rearranged before any of it is read.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..ops.linear.formats import FORMATS
from ..ops.linear.gguf import LAYOUTS
from ..untrusted import answered, read_json, regular_file
from .file_kinds import WEB_PAGE, kind_of
from .gguf import GGUFFile, GGUFPlace
from .safetensors_file import SafetensorsFile, is_safetensors
from .sets import sets_with
from .torch_file import TorchFile

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (".safetensors", ".gguf", *TORCH_SUFFIXES)
STANDARD_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin")
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{1,9})-of-(?P<count>[0-9]{1,9})(?P<suffix>\.\w+)")
MAX_SHARDS = 1000
PathLike = str | Path


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class StoredTensor:
    """One tensor that is not read yet. read: gives it on the CPU; release: lets go of the file pages it touched."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    release: Callable[[], None] = _nothing

    @classmethod
    def in_memory(cls, tensor: Tensor) -> StoredTensor:
        """One that needs no reading."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @classmethod
    def derived(cls, parents: Sequence[StoredTensor], operation: Callable[..., Tensor]) -> StoredTensor:
        """The result of `operation(*tensors)`, computed when it is read; its shape is found without reading."""
        result = operation(*(torch.empty(parent.shape, dtype=parent.dtype, device="meta") for parent in parents))

        def release() -> None:
            for parent in parents:
                parent.release()

        return cls(tuple(result.shape), result.dtype, lambda: operation(*(p.read() for p in parents)), release)


@dataclass(frozen=True, kw_only=True)
class PackedTensor(StoredTensor):
    """A weight in a storage format of `ops/linear/formats.py`; shape, dtype and `read` are those of plain numbers.

    matrix: the rows and columns in which it is packed. read_parts: the tensors of a layer in that format, by name.
    is_computed: read_parts makes tensors that nobody else has; otherwise they may be views of a file.
    """

    format: str
    matrix: tuple[int, int]
    read_parts: Callable[[], dict[str, Tensor]]
    is_computed: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        shape: tuple[int, ...],
        read_parts: Callable[[], dict[str, Tensor]],
        release: Callable[[], None] = _nothing,
        matrix: tuple[int, int] | None = None,
    ) -> PackedTensor:
        """A weight of `shape` in the format `name`; matrix: if it is packed as another matrix than its own."""
        rows, columns = matrix or shape
        packed_as = rows, columns

        def read() -> Tensor:
            return FORMATS[name].layer(packed_as, read_parts()).dense_weight(torch.float32).view(shape)

        return cls(shape, torch.float32, read, release, format=name, matrix=packed_as, read_parts=read_parts)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Plain numbers, of which float32 ones are held a few rows at a time."""
        return FORMATS[self.format].layer(self.matrix, self.read_parts()).dense_weight(dtype).view(self.shape)


class TensorSource(Mapping[str, StoredTensor]):
    """Named tensors of one or more files, as a mapping from key to `StoredTensor`.

    name: what messages call it. metadata: text the files carry beside their tensors.
    """

    def __init__(
        self, tensors: Mapping[str, StoredTensor], name: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        self._tensors = dict(tensors)
        self.name, self.metadata = name, dict(metadata or {})

    def __getitem__(self, key: str) -> StoredTensor:
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __deepcopy__(self, memo: object) -> TensorSource:
        """A copy of a model has the same files."""
        return self

    def __repr__(self) -> str:
        return f"TensorSource({self.name!r}, {len(self)} tensors)"

    def shape(self, key: str) -> tuple[int, ...]:
        return self._tensors[key].shape

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].dtype

    def tensor(self, key: str) -> Tensor:
        """The tensor on the CPU; for a file a read-only view of mapped pages, so copy it before writing to it."""
        return self._tensors[key].read()

    def dense(self, key: str, dtype: torch.dtype) -> Tensor:
        """The tensor as plain numbers in memory of its own, on the CPU."""
        stored = self._tensors[key]
        value = stored.dense(dtype) if isinstance(stored, PackedTensor) else stored.read().to(dtype, copy=True)
        stored.release()
        return value

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: tensor.shape for key, tensor in self._tensors.items()}

    def replaced(self, tensors: Mapping[str, StoredTensor]) -> TensorSource:
        """Other tensors under the same name and metadata."""
        return TensorSource(tensors, self.name, self.metadata)

    def renamed(self, names: Mapping[str, str] | Callable[[str], str]) -> TensorSource:
        """Keys through a function, or through a mapping that leaves out what keeps its name."""
        rename = names if callable(names) else lambda key: names.get(key, key)
        tensors: dict[str, StoredTensor] = {}
        for key, tensor in self._tensors.items():
            new = rename(key)
            if new in tensors:
                raise CheckpointError(
                    f"{self.name}: two tensors would both be called {new!r}. The file is damaged: download it again."
                )
            tensors[new] = tensor
        return self.replaced(tensors)

    def only(self, wanted: Callable[[str], bool]) -> TensorSource:
        return self.replaced({key: tensor for key, tensor in self._tensors.items() if wanted(key)})

    def __or__(self, other: TensorSource) -> TensorSource:
        return self.merged(other)

    def merged(self, other: TensorSource, *, replace: bool = False) -> TensorSource:
        """Both together; a key that both have is an error unless the other source is meant to replace it."""
        shared = [key for key in other if key in self]
        if shared and not replace:
            raise CheckpointError(
                f"{self.name} and {other.name} both hold {few(shared)}. Two files of one model share no tensor; "
                "name only one of them."
            )
        name = f"{self.name} + {other.name}"
        return TensorSource(self._tensors | other._tensors, name, self.metadata | other.metadata)


def few(names: Iterable[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(str, names[:count])) + rest


def open_tensors(source: PathLike | Sequence[PathLike] | Mapping[str, Tensor] | TensorSource) -> TensorSource:
    """Open weights without reading them.

    Args:
        source: a .safetensors file, a torch file (.pth, .pt, .bin, .ckpt), a folder that holds one checkpoint (whole or
            in shards), one shard of several, a list of files, a state dict, or a source, which is returned.
    Raises:
        CheckpointError: nothing is there, it is damaged or incomplete, or it is no file of weights.
    """
    if isinstance(source, Mapping):
        return source if isinstance(source, TensorSource) else _from_state_dict(source, "the state dict")
    if isinstance(source, Sequence) and not isinstance(source, str):
        if not source:
            raise CheckpointError("The list of model files is empty. Name at least one file.")
        return open_tensors(source[0]) if len(source) == 1 else _from_files([Path(path) for path in source])
    with answered(str(source)[:200], CheckpointError, "opened"):
        path = Path(source).expanduser()
        paths = files_at(path)
        if path.is_dir():
            return _from_files(paths, path.name)
        return _from_files(paths) if len(paths) > 1 else _from_file(path)


def files_at(path: Path) -> list[Path]:
    """The files that `open_tensors` reads of a path: those of a folder's checkpoint, all shards where it is one."""
    if path.is_dir():
        return _main_checkpoint(path)
    return _all_shards(path) if path.is_file() else [path]


def checkpoints_in(folder: PathLike) -> list[list[Path]]:
    """The checkpoints that lie directly in a folder, each as its files: those an index names, or numbered shards.

    Where the shards of an index are all in another folder, what else it names stands for itself.
    """
    folder = Path(folder)
    groups: dict[str, list[Path]] = {}
    for index in sorted(folder.glob("*.index.json")):
        paths = [folder / name for name in _indexed(index)]
        shards = [path for path in paths if SHARD.fullmatch(path.name)]
        # MultiTalk's folder has the index of the whole model, of which only the adapter lies beside it.
        is_part = shards and not any(path.is_file() for path in shards) and any(path.is_file() for path in paths)
        if paths and not is_part:
            groups[index.name] = paths
    taken = {path for paths in groups.values() for path in paths}
    for path in sorted(folder.iterdir()):
        is_hidden = path.name.startswith(".")  # macOS puts ._NAME beside each file on a disk of another system
        if path.suffix.lower() in SUFFIXES and path.is_file() and path not in taken and not is_hidden:
            shard = SHARD.fullmatch(path.name)
            groups.setdefault(shard["stem"] + shard["suffix"] if shard else path.name, []).append(path)
    return list(groups.values())


def _indexed(index: Path) -> list[str]:
    """The files that an index names; none if it is no index after all."""
    try:
        data = read_json(index, "an index", CheckpointError)
    except CheckpointError:
        return []
    names = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(names, dict):
        return []
    files = sorted({name for name in names.values() if isinstance(name, str)})
    outside = next((name for name in files if Path(name).name != name or "\\" in name), None)
    if outside is not None or len(files) > MAX_SHARDS or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(
            f"{index.name} does not name the files of a model that lie beside it. Download the folder again."
        )
    return files


def _main_checkpoint(folder: Path) -> list[Path]:
    found = checkpoints_in(folder)
    if not found:
        raise CheckpointError(
            f"The folder {folder} holds no weights. Name one with files ending in {', '.join(SUFFIXES)}."
        )
    standard = [
        paths
        for name in STANDARD_NAMES
        for paths in found
        if paths[0].name == name or _stem(paths[0]) == Path(name).stem
    ]
    safe = [paths for paths in found if paths[0].suffix == ".safetensors"]
    for choice in (found, standard[:1], safe):
        if len(choice) == 1:
            return choice[0]
    names = few((paths[0].name for paths in found), 6)
    raise CheckpointError(f"The folder {folder} holds several models: {names}. Name the file that is meant.")


def _stem(path: Path) -> str:
    shard = SHARD.fullmatch(path.name)
    return shard["stem"] if shard else path.stem


def _all_shards(path: Path) -> list[Path]:
    """All parts of the model that `path` is one part of, or `path` alone."""
    shard = SHARD.fullmatch(path.name)
    if shard is None:
        return [path]
    digits, count = len(shard["number"]), int(shard["count"])
    if not 1 <= count <= MAX_SHARDS:
        raise CheckpointError(f"{path.name} says that its model has {count} parts; at most {MAX_SHARDS} are read.")
    names = [f"{shard['stem']}-{n:0{digits}}-of-{shard['count']}{shard['suffix']}" for n in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{path.parent} has only {count - len(missing)} of the {count} parts of {shard['stem']}; missing: "
            f"{few(missing)}. Download the missing ones."
        )
    return [path.parent / name for name in names]


def _from_files(paths: Sequence[Path], name: str | None = None) -> TensorSource:
    _all_shards(paths[0])  # none may be missing
    parts = [_from_file(path) for path in paths]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole | part
    if len(parts) > 1:
        name = f"{name or paths[0].parent.name or paths[0].name} ({len(parts)} files)"
        return TensorSource(whole, name, whole.metadata)
    return whole


def _from_file(path: Path) -> TensorSource:
    path = _existing(path)
    with answered(path.name, CheckpointError):
        head = _head(path)
        for matches, opener in _FORMATS:
            if matches(head):
                return opener(path)
    raise CheckpointError(f"{path.name} is {kind_of(head)}, not a model file. Download it again, or name another file.")


def _existing(path: Path) -> Path:
    try:
        is_missing = not path.expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        is_missing = False  # the next line says what is wrong with it
    if is_missing:
        raise CheckpointError(f"There is no model file {path}.{_similar(path.expanduser())}")
    return regular_file(path, "a model file", CheckpointError)


def _head(path: Path) -> bytes:
    """The first bytes of a file; what is no file of weights at all is refused here."""
    with path.open("rb") as file:
        head = file.read(1024)
    size = path.stat().st_size
    if not size:
        raise CheckpointError(f"{path.name} is empty (0 bytes). Download it again: {path}")
    if head.startswith(b"version https://git-lfs.github.com"):
        real = re.search(rb"size (\d{1,15})\b", head)
        real_size = f" of {int(real[1]) / 1e9:.2f} GB" if real else ""
        raise CheckpointError(
            f"{path.name} is a Git LFS pointer ({size} bytes), download the real file{real_size}: "
            f'run "git lfs pull" in its folder, or download it with a browser.'
        )
    if kind_of(head) == WEB_PAGE:
        raise CheckpointError(
            f"{path.name} is a web page ({size} bytes), not a model: the download gave an error page or asked for "
            "a log-in. Download the file itself."
        )
    return head


def _similar(path: Path) -> str:
    names = [other.name for other in itertools.islice(path.parent.iterdir(), 10_000)] if path.parent.is_dir() else []
    if close := difflib.get_close_matches(path.name, names, 1):
        return f" Did you mean {close[0]}? Name that."
    if published := sets_with(path):
        return f" Fetch it with `python -m wanvideo download --set {' '.join(published)}`, or name another."
    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist either: check the path."
    return " Check the name and the folder."


def _from_state_dict(state: Mapping[str, Tensor], name: str) -> TensorSource:
    tensors = {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            continue
        if not isinstance(key, str):
            raise CheckpointError(f"{name} has the {type(key).__name__} {key!r:.100} as a name. Use text.")
        if value.layout is not torch.strided:
            raise CheckpointError(f"{name} has {key} as a {value.layout} tensor. Give dense tensors.")
        tensors[key] = StoredTensor.in_memory(value)
    if not tensors:
        kinds = few(sorted({type(value).__name__ for value in state.values()})) or "nothing"
        raise CheckpointError(f"{name} holds no tensors (but {kinds}). Name a file of weights.")
    return TensorSource(tensors, name)


def _open_safetensors(path: Path) -> TensorSource:
    file = SafetensorsFile(path)
    tensors = {
        key: StoredTensor(place.shape, place.dtype, partial(file.tensor, place), partial(file.release, place))
        for key, place in file.places.items()
    }
    if not tensors:
        raise CheckpointError(f"{path.name} holds no tensors. Download it again: {path}")
    return TensorSource(tensors, path.name, file.metadata)


def _open_torch(path: Path) -> TensorSource:
    file = TorchFile(path)
    tensors = {
        key: StoredTensor(place.shape, place.dtype, partial(file.tensor, place), partial(file.release, place))
        for key, place in file.places.items()
    }
    return TensorSource(tensors, path.name)


def _open_gguf(path: Path) -> TensorSource:
    file = GGUFFile(path)
    tensors = {key: _gguf_tensor(file, place) for key, place in file.places.items()}
    if not tensors:
        raise CheckpointError(f"{path.name} holds no tensors. Download it again: {path}")
    return TensorSource(tensors, path.name)


def _gguf_tensor(file: GGUFFile, place: GGUFPlace) -> StoredTensor:
    def release() -> None:
        file.release(place)

    if place.format is None:
        return StoredTensor(place.shape, place.dtype, lambda: file.tensor(place), release)
    block = LAYOUTS[place.format].block_size
    # A quantized tensor that is no matrix (a convolution) never becomes a layer: any matrix of its blocks will do.
    matrix = place.shape if len(place.shape) == 2 else (math.prod(place.shape) // block, block)
    return PackedTensor.of(
        place.format, place.shape, lambda: {"weight": file.bytes(place).view(matrix[0], -1)}, release, matrix
    )


def _refuse_json(path: Path) -> TensorSource:
    data = read_json(path, "a small JSON file", CheckpointError)
    kind = "a JSON file"
    if isinstance(data, dict) and "weight_map" in data:
        kind = "the index of a model in several files; name its folder instead"
    elif isinstance(data, dict) and "added_tokens" in data:
        kind = "a tokenizer"
    raise CheckpointError(f"{path.name} is {kind}, not weights. Name a file ending in {', '.join(SUFFIXES)}.")


_FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[Path], TensorSource]], ...] = (
    (lambda head: head.startswith(b"GGUF"), _open_gguf),
    (lambda head: head.startswith(b"PK\x03\x04"), _open_torch),
    (is_safetensors, _open_safetensors),
    (lambda head: head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"), _open_torch),
    (lambda head: head.lstrip()[:1] in (b"{", b"["), _refuse_json),
)
