"""A value that is made once for as long as what it depends on stays the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Cached(Generic[Key, Value]):
    """The latest value, with the key that it was made for."""

    def __init__(self) -> None:
        self._entry: tuple[Key, Value] | None = None

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value for `key`, made anew when the last one was for another key."""
        if self._entry is not None and self._entry[0] == key:
            return self._entry[1]
        self._entry = None  # the new one may need its memory
        value = make()
        self._entry = key, value
        return value
