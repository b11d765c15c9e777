"""Files of torch.save, zipped and old ones: names, shapes and dtypes first, tensors from mapped pages when asked for.

No unpickler of Python's or torch's is used (see `pickled`), so nothing of a file is ever run, whichever torch is
installed, and nothing is larger in memory than it is in the file.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .mapped import MAX_NAME, MAX_RANK, MappedFile, is_shape
from .pickled import ForeignObject, Name, Persistent, PickleFault, PickleReader

STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}  # fmt: skip
DTYPES = {
    f"torch.{name}": getattr(torch, name)
    for name in (
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
        "float8_e4m3fn", "float8_e5m2",
    )
}  # fmt: skip
REBUILD = "torch._utils._rebuild_tensor"
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
TENSORS = (REBUILD, f"{REBUILD}_v2", f"{REBUILD}_v3")
PLAIN = ("collections.OrderedDict", "torch.Size", "torch.device", *TENSORS, *PARAMETERS)
WRAPPERS = ("state_dict", "model", "module", "model_state_dict")  # what training scripts put a state dict into
MAX_WRAPPED = 8
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MAX_PICKLE_BYTES, MAX_DIRECTORY_BYTES = 8 * 2**20, 4 * 2**20
SHARING = 4  # tensors may share bytes, as tied weights do, but are not many times the file together


@dataclass(frozen=True)
class Storage:
    """The bytes that one or more tensors are views of: `numel` numbers of a dtype, under a key of the file's."""

    dtype: torch.dtype
    key: str
    numel: int

    @property
    def num_bytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class TorchPlace:
    """Where a tensor lies: numbers [offset, ...) of a storage, whose bytes begin at `start` in the file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    stride: tuple[int, ...]
    offset: int
    storage: Storage
    start: int = 0

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def span(self) -> tuple[int, int]:
        """The bytes of the file that hold it."""
        last = sum((side - 1) * step for side, step in zip(self.shape, self.stride, strict=True))
        first = self.start + self.offset * self.dtype.itemsize
        return first, first + ((last + 1) * self.dtype.itemsize if math.prod(self.shape) else 0)


class TorchFile:
    """A memory-mapped file of torch.save; it stays mapped as long as a tensor of it is in use.

    places: its tensors by name. Raises: CheckpointError when it is damaged or holds anything but tensors.
    Args: unnamed: whether it may be a tensor by itself, whose name is then empty.
    """

    def __init__(self, path: Path, unnamed: bool = False) -> None:
        self._file = MappedFile(path)
        self.name = path.name
        try:
            state, starts = self._zipped(path) if self._file.data[:2] == b"PK" else self._old()
        except ForeignObject as error:
            name = "".join(letter for letter in str(error)[:80] if letter.isalnum() or letter in "._") or "objects"
            raise CheckpointError(
                f"{self.name} holds more than tensors ({name}), which could run code on this machine; it was not "
                "loaded. Use a .safetensors version of the model."
            ) from None
        except PickleFault as error:
            raise self._damaged(str(error)) from None
        found = {"": state} if unnamed and isinstance(state, TorchPlace) else self._unwrapped(state)
        self.places = {key: self._placed(key, place, starts) for key, place in found.items()}
        total = sum(place.num_bytes for place in self.places.values())
        if total > SHARING * self._file.size + 2**20:
            raise self._damaged(f"tensors of {total} bytes in a file of {self._file.size}")

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.name} is cut short or damaged: it has {what}. Download it again.")

    def _zipped(self, path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
        if self._directory_bytes() > MAX_DIRECTORY_BYTES:
            raise self._damaged("a list of contents that is longer than any model needs")
        try:
            with zipfile.ZipFile(path) as archive:
                items = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error, EOFError):
            raise self._damaged("no list of its contents at its end") from None
        main = min((item.filename for item in items if item.filename.endswith("/data.pkl")), key=len, default=None)
        if main is None:
            raise CheckpointError(f"{self.name} is a zip archive of {len(items)} files, not a model. Unpack it first.")
        root = main.removesuffix("data.pkl")
        members = {item.filename.removeprefix(root): item for item in items if item.filename.startswith(root)}
        spans = {name: self._member(item) for name, item in members.items()}
        if "byteorder" in spans and self._file.data[slice(*spans["byteorder"])] != b"little":
            raise CheckpointError(f"{self.name} was saved on a big-endian machine, which cannot be read. Convert it.")
        start, stop = spans["data.pkl"]
        if stop - start > MAX_PICKLE_BYTES:
            raise self._damaged("a list of tensors that is longer than any model needs")
        state = PickleReader(self._file.data, start, stop, _is_known, _call).value()
        return state, {name.removeprefix("data/"): span for name, span in spans.items() if name.startswith("data/")}

    def _directory_bytes(self) -> int:
        """Of the zip archive's list of contents, before anything is made of it."""
        begin = max(0, self._file.size - (1 << 16) - 22)
        at = self._file.data.rfind(b"PK\x05\x06", begin)
        if at < 0 or at + 22 > self._file.size:
            raise self._damaged("no list of its contents at its end")
        size = int.from_bytes(self._file.data[at + 12 : at + 16], "little")
        wide = self._file.data.rfind(b"PK\x06\x06", max(0, at - 1000), at)
        if wide < 0:
            return size
        large = int.from_bytes(self._file.data[wide + 40 : wide + 48], "little")
        return large if size == 0xFFFFFFFF else max(size, large)

    def _member(self, item: zipfile.ZipInfo) -> tuple[int, int]:
        """The bytes of a file in the archive."""
        at = item.header_offset
        header = self._file.data[at : at + 30] if at >= 0 else b""
        if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
            raise self._damaged("an entry that is not where its list of contents says")
        start = at + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        if item.compress_type != zipfile.ZIP_STORED or item.flag_bits & 1:
            raise CheckpointError(
                f"{self.name} is compressed or encrypted, as torch.save never writes it. Unpack it, or save it again."
            )
        if start + item.file_size > self._file.size:
            raise self._damaged("an entry that ends behind the file's end")
        return start, start + item.file_size

    def _old(self) -> tuple[Any, dict[str, tuple[int, int]]]:
        """The format before torch 1.6: pickles one behind the other, then each storage's size and bytes."""
        stop = min(self._file.size, MAX_PICKLE_BYTES)
        used: dict[str, Storage] = {}

        def call(name: str, args: Sequence[Any]) -> Any:
            value = _call(name, args)
            if isinstance(value, TorchPlace):
                used[value.storage.key] = value.storage
            return value

        pickles = PickleReader(self._file.data, 0, stop, _is_known, call)
        if pickles.value() != MAGIC or pickles.value() != PROTOCOL:
            raise self._damaged("no beginning of a file of torch.save")
        info = pickles.value()
        if isinstance(info, dict) and info.get("little_endian") is False:
            raise CheckpointError(f"{self.name} was saved on a big-endian machine, which cannot be read. Convert it.")
        state, keys = pickles.value(), pickles.value()
        if not isinstance(keys, list) or not all(isinstance(key, str) and key in used for key in keys):
            raise self._damaged("a list of storages that no tensor uses")
        starts, at = {}, pickles.at
        for key in keys:
            count = int.from_bytes(self._file.data[at : at + 8], "little")
            if count != used[key].numel:
                raise self._damaged("a storage of another size than its tensors say")
            starts[key] = at + 8, at + 8 + used[key].num_bytes
            at = starts[key][1]
            if at > self._file.size:
                raise self._damaged("a storage that ends behind the file's end")
        return state, starts

    def _unwrapped(self, state: Any) -> dict[str, TorchPlace]:
        """The named tensors of what was saved, inside what training scripts put around them."""
        for _ in range(MAX_WRAPPED):
            if not isinstance(state, dict):
                kind = "Tensor" if isinstance(state, TorchPlace) else type(state).__name__
                raise CheckpointError(f"{self.name} holds a {kind}, not named tensors. Name a file of weights.")
            inner = next((state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)), None)
            if inner is None:
                break
            state = inner
        else:
            raise self._damaged("dictionaries in dictionaries without end")
        if any(isinstance(value, TorchPlace) and not isinstance(key, str) for key, value in state.items()):
            raise CheckpointError(f"{self.name} has tensors without names. Name a file of weights.")
        found = {key: value for key, value in state.items() if isinstance(value, TorchPlace)}
        if not found:
            raise CheckpointError(f"{self.name} holds no tensors. Name a file of weights.")
        if (longest := max(map(len, found))) > MAX_NAME:
            raise self._damaged(f"a name of {longest} characters")
        return found

    def _placed(self, key: str, place: TorchPlace, spans: Mapping[str, tuple[int, int]]) -> TorchPlace:
        start, stop = spans.get(place.storage.key, (0, -1))
        if place.storage.num_bytes > stop - start:
            raise self._damaged(f"no bytes for the tensor {key[:120]!r}")
        found = replace(place, start=start)
        if found.span[1] > stop or place.num_bytes > stop - start:
            raise self._damaged(f"fewer bytes than the tensor {key[:120]!r} of shape {list(place.shape)} needs")
        return found

    def tensor(self, place: TorchPlace) -> Tensor:
        """A read-only view of the mapped file."""
        start, stop = place.span
        if start == stop:
            return torch.empty(place.shape, dtype=place.dtype)
        return self._file.numbers(start, stop, place.dtype).as_strided(place.shape, place.stride)

    def release(self, place: TorchPlace) -> None:
        """Let go of the pages of a tensor that has been copied; reading it again only reads the file again."""
        self._file.release(*place.span)


def read_tensor(path: Path) -> Tensor:
    """The tensor that a file is by itself, in memory of its own. Raises: CheckpointError when it is none."""
    file = TorchFile(path, unnamed=True)
    if "" not in file.places:
        raise CheckpointError(f"{path.name} holds named tensors. Name a file that is one tensor.")
    return file.tensor(file.places[""]).clone()


def _is_known(name: str) -> bool:
    module, _, leaf = name.rpartition(".")
    return name in PLAIN or name in DTYPES or (module in ("torch", "torch.storage", "torch.cuda") and leaf in STORAGES)


def _call(name: str, args: Sequence[Any]) -> Any:
    """What a call stands for, which is never made."""
    if name == "collections.OrderedDict":
        return _ordered(args[0]) if args else {}
    if name == "torch.Size":
        return args[0] if args else ()
    if name in TENSORS:
        return _rebuilt(name, args)
    if name in PARAMETERS and args and isinstance(args[0], TorchPlace):
        return args[0]
    if name == "torch.device":
        return None
    raise PickleFault("a call that makes no tensor")


def _ordered(items: Any) -> dict[Any, Any]:
    """Of another dictionary, or of a list of pairs, as Python 2 wrote it."""
    if isinstance(items, dict):
        return dict(items)
    if not isinstance(items, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in items):
        raise PickleFault("a dictionary of no pairs")
    if not all(isinstance(key, str) for key, _ in items):
        raise PickleFault("a dictionary whose keys are no names")
    return dict(items)


def _rebuilt(name: str, args: Sequence[Any]) -> TorchPlace:
    if len(args) < 4 or not isinstance(args[0], Persistent):
        raise PickleFault("a tensor without a storage")
    storage, offset, shape, stride = _storage(args[0].identity), *args[1:4]
    dtype = storage.dtype
    if name.endswith("_v3"):
        if len(args) < 7 or not isinstance(args[6], Name) or args[6].full not in DTYPES:
            raise PickleFault("a tensor of a dtype that is not known")
        dtype = DTYPES[args[6].full]
    if not is_shape(shape) or type(offset) is not int or not 0 <= offset < 1 << 50:
        raise PickleFault("a tensor of a shape that cannot be")
    steps = isinstance(stride, tuple) and len(stride) == len(shape) <= MAX_RANK
    if not steps or not all(type(step) is int and 0 <= step < 1 << 50 for step in stride):
        raise PickleFault("a tensor of strides that cannot be")
    if any(side > 1 and step == 0 for side, step in zip(shape, stride, strict=True)):
        raise PickleFault("a tensor that repeats its bytes")
    return TorchPlace(tuple(shape), dtype, stride, offset, storage)


def _storage(identity: Any) -> Storage:
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise PickleFault("a storage that is none")
    kind, key, numel = identity[1], identity[2], identity[4]
    leaf = kind.full.rpartition(".")[2] if isinstance(kind, Name) else ""
    if leaf not in STORAGES or not isinstance(key, str) or type(numel) is not int or not 0 <= numel < 1 << 50:
        raise PickleFault("a storage of a kind that is not known")
    if len(identity) > 5 and identity[5] is not None:
        raise PickleFault("a view of a storage, as no torch writes it any more")
    return Storage(STORAGES[leaf], key, numel)
