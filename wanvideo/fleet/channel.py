"""Messages between a process and the workers that it starts: pickled objects over pipes, each behind its length."""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import struct
import threading
from typing import IO, Any

LENGTH = struct.Struct("<Q")
# Workers import this package as `wanvideo`; ComfyUI loads it under a name of its own.
PACKAGE = __name__.rsplit(".", 2)[0]
INSIDE = re.compile(r"(?:.*\.)?wanvideo\.(\w.*)", re.S)


class Channel:
    """One end. Only processes that trust each other may share one: whoever reads a pickle runs what it says."""

    def __init__(self, reads: IO[bytes], writes: IO[bytes]) -> None:
        self._reads, self._writes, self._lock = reads, writes, threading.Lock()

    def send(self, message: object) -> None:
        """Raises: OSError when nobody reads any more."""
        data = pickle.dumps(message)
        with self._lock:
            self._writes.write(LENGTH.pack(len(data)) + data)
            self._writes.flush()

    def receive(self) -> Any:
        """The next message. Raises: EOFError when the other end is closed."""
        data = self._read(LENGTH.unpack(self._read(LENGTH.size))[0])
        return _Unpickler(io.BytesIO(data)).load()

    def close(self) -> None:
        """Nothing more will be sent."""
        with self._lock, contextlib.suppress(OSError):
            self._writes.close()

    def _read(self, size: int) -> bytes:
        data = self._reads.read(size)
        if len(data) < size:
            raise EOFError
        return data


class _Unpickler(pickle.Unpickler):
    """Finds this package's classes under the name that it has here, even where it is loaded under others too."""

    def find_class(self, module: str, name: str) -> Any:
        if inside := INSIDE.fullmatch(module):
            module = f"{PACKAGE}.{inside[1]}"
        return super().find_class(module, name)
