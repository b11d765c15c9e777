"""Pickles of plain values, read without running anything: no class is looked up and no function is called.

Python's own unpickler runs what a file says, and the restricted ones still let a small file fill the memory or loop
without end. This one knows the instructions that torch.save writes, and what stands for a tensor is a `Call`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MAX_STEPS = 1 << 20  # 20 times the instructions of the largest model here
MAX_DEPTH = 32  # of tuples in tuples, which are hashed and printed as a whole
MAX_INT_BYTES = 32


class PickleFault(Exception):
    """The pickle is damaged. The message says with what, for the end of a sentence."""


class ForeignObject(Exception):
    """The pickle asks for an object that is no plain value. The message is its name."""


class Buffer(Protocol):
    def __getitem__(self, index: slice) -> bytes: ...


@dataclass(frozen=True)
class Name:
    """A class or a function of a file, by its name alone."""

    full: str


@dataclass(frozen=True)
class Persistent:
    """What the pickle calls by a number or a tuple instead of holding it: a storage."""

    identity: Any


_MARKER = object()
_CONSTANTS = {0x4E: None, 0x88: True, 0x89: False}  # N
_NUMBERS = {0x4A: "<i", 0x4B: "<B", 0x4D: "<H", 0x47: ">d"}  # J K M G
_BYTES = {0x58: "<I", 0x8C: "<B", 0x8D: "<Q", 0x42: "<I", 0x43: "<B", 0x54: "<I", 0x55: "<B"}  # X B C T U
_TEXT = (0x58, 0x8C, 0x8D, 0x54, 0x55)
_TUPLES = {0x29: 0, 0x85: 1, 0x86: 2, 0x87: 3}
_PUTS, _GETS = {0x71: "<B", 0x72: "<I"}, {0x68: "<B", 0x6A: "<I"}


class PickleReader:
    """Reads pickles one behind the other.

    Args:
        data: bytes; start: where the first one begins; stop: where the last one ends at the latest.
        known: names of classes and functions that may appear.
        call: (name, arguments) -> the value that a call of one of them stands for.
    """

    def __init__(
        self, data: Buffer, start: int, stop: int, known: Callable[[str], bool],
        call: Callable[[str, Sequence[Any]], Any],
    ) -> None:  # fmt: skip
        self._data, self.at, self._stop = data, start, stop
        self._known, self._call = known, call
        self._steps = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._depths: dict[int, tuple[tuple[Any, ...], int]] = {}  # of tuples by id, with the tuple to keep its id

    def value(self) -> Any:
        """The value of the next pickle. Raises: PickleFault, ForeignObject."""
        self._stack, self._memo, self._depths = [], {}, {}
        while True:
            self._count(1)
            code = self._take(1)[0]
            if code == 0x2E:  # STOP
                return self._pop()
            self._step(code)

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise PickleFault("more instructions than any model needs")

    def _step(self, code: int) -> None:
        push = self._stack.append
        if code in _CONSTANTS:
            push(_CONSTANTS[code])
        elif code in _NUMBERS:
            push(self._number(_NUMBERS[code]))
        elif code in _BYTES:
            data = self._take(self._number(_BYTES[code]))
            push(self._text(data) if code in _TEXT else data)
        elif code in (0x8A, 0x8B):  # LONG1, LONG4
            count = self._number("<B" if code == 0x8A else "<i")
            if not 0 <= count <= MAX_INT_BYTES:
                raise PickleFault("a number that is too long")
            push(int.from_bytes(self._take(count), "little", signed=True))
        elif code in _PUTS:
            self._memo[self._number(_PUTS[code])] = self._top()
        elif code in _GETS:
            push(self._recall(self._number(_GETS[code])))
        elif code in _TUPLES:
            count = _TUPLES[code]
            self._push_tuple([self._pop() for _ in range(count)][::-1])
        elif code in _OTHER:
            _OTHER[code](self)
        else:
            raise PickleFault(f"an instruction ({code:#x}) that torch.save does not write")

    def _take(self, count: int) -> bytes:
        if self.at + count > self._stop:
            raise PickleFault("no end")
        self.at += count
        return self._data[self.at - count : self.at]

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _text(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise PickleFault("a name that is no text") from None

    def _line(self) -> str:
        start = self.at
        while self._take(1) != b"\n":
            if self.at - start > 500:
                raise PickleFault("a name that is too long")
        return self._text(self._data[start : self.at - 1])

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARKER:
            raise PickleFault("an instruction without its value")
        return self._stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _to_marker(self) -> list[Any]:
        items: list[Any] = []
        while self._stack:
            item = self._stack.pop()
            if item is _MARKER:
                return items[::-1]
            items.append(item)
        raise PickleFault("an instruction without its beginning")

    def _recall(self, number: int) -> Any:
        if number not in self._memo:
            raise PickleFault("a reference to nothing")
        return self._memo[number]

    def _push_tuple(self, items: list[Any]) -> None:
        made = tuple(items)
        depth = 1 + max((self._depths[id(item)][1] for item in items if id(item) in self._depths), default=0)
        if depth > MAX_DEPTH:
            raise PickleFault("tuples nested too deep")
        if items:
            self._depths[id(made)] = made, depth
        self._stack.append(made)

    def _set_items(self, pairs: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(pairs) % 2:
            raise PickleFault("items of no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int | float | bytes | None):
                raise PickleFault("a dictionary whose keys are no names")
            target[key] = value

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise PickleFault("items of no list")
        target.extend(items)

    def _push_name(self, module: Any, name: Any) -> None:
        full = f"{module}.{name}"
        if not isinstance(module, str) or not isinstance(name, str) or not self._known(full):
            raise ForeignObject(full)
        self._stack.append(Name(full))

    def _reduce(self) -> None:
        arguments, name = self._pop(), self._pop()
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise PickleFault("a call of nothing")
        # A call looks at all that it is given, which an instruction of a few bytes may give to call after call.
        self._count(len(arguments))
        self._count(sum(len(item) for item in arguments if isinstance(item, dict | list | tuple)))
        self._stack.append(self._call(name.full, arguments))

    def _build(self) -> None:
        """State of an object; a dictionary's (torch keeps versions of modules there) is not needed."""
        self._pop()
        if not isinstance(self._top(), dict):
            raise PickleFault("the state of no object")

    def _stack_name(self) -> None:
        name, module = self._pop(), self._pop()
        self._push_name(module, name)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _dict(self) -> None:
        pairs = self._to_marker()
        self._stack.append({})
        self._set_items(pairs)


_OTHER: dict[int, Callable[[PickleReader], Any]] = {
    0x80: lambda self: self._take(1),  # PROTO
    0x95: lambda self: self._take(8),  # FRAME
    0x28: lambda self: self._stack.append(_MARKER),
    0x30: lambda self: self._pop(),
    0x31: lambda self: self._to_marker(),
    0x32: lambda self: self._stack.append(self._top()),
    0x7D: lambda self: self._stack.append({}),
    0x5D: lambda self: self._stack.append([]),
    0x64: PickleReader._dict,
    0x6C: lambda self: self._stack.append(self._to_marker()),  # LIST
    0x74: lambda self: self._push_tuple(self._to_marker()),
    0x61: lambda self: self._append([self._pop()]),
    0x65: lambda self: self._append(self._to_marker()),
    0x73: PickleReader._set_item,
    0x75: lambda self: self._set_items(self._to_marker()),
    0x94: lambda self: self._memo.__setitem__(len(self._memo), self._top()),  # MEMOIZE
    0x63: lambda self: self._push_name(self._line(), self._line()),  # GLOBAL
    0x93: PickleReader._stack_name,
    0x52: PickleReader._reduce,
    0x81: PickleReader._reduce,  # NEWOBJ
    0x62: PickleReader._build,
    0x51: lambda self: self._stack.append(Persistent(self._pop())),
}
