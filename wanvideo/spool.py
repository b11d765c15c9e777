"""Long sounds, their features and many pictures' in temporary files, which cost disk instead of memory."""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref

import numpy as np

from .errors import OutputError


class Spool:
    """Numbers of one type in a temporary file, which goes away with the object.

    They are written and read with plain calls: pages of a mapped file would count as memory of this process.
    """

    def __init__(self, what: str, dtype: type[np.generic] = np.float32, *, in_memory: int = 0) -> None:
        """Args: what: it holds, for messages. in_memory: as long as there are not more numbers, there is no file."""
        self._what, self._dtype, self._in_memory = what, np.dtype(dtype), in_memory
        self._file = tempfile.SpooledTemporaryFile(prefix="wanvideo-")  # noqa: SIM115 - it lives as long as this
        self._lock = threading.Lock()  # a place is sought and read in two calls
        weakref.finalize(self, self._file.close)

    def write(self, start: int, values: np.ndarray) -> None:
        """Put `values` [n] at the numbers from `start` on. Raises: OutputError when the disk has no room for them."""
        with self._lock:
            try:
                if start + len(values) > self._in_memory:
                    self._file.rollover()  # before the write: a place far ahead in memory would be filled up to there
                self._file.seek(start * self._dtype.itemsize)
                self._file.write(np.ascontiguousarray(values, self._dtype).data)
                self._file.flush()
            except OSError as error:
                raise OutputError(
                    f"{self._what} cannot be put into a file in {tempfile.gettempdir()} ({error.strerror}). "
                    "Make room, or set TMPDIR to a folder that has it."
                ) from error

    def read(self, start: int, stop: int) -> np.ndarray:
        """Numbers start..stop [stop - start], which cannot be changed."""
        with self._lock:
            self._file.seek(start * self._dtype.itemsize)
            return np.frombuffer(self._file.read((stop - start) * self._dtype.itemsize), self._dtype)


def check_room(what: str, num_bytes: int) -> None:
    """Raises: OutputError when the folder of temporary files has no room for so much."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise OutputError(
            f"{what} need {num_bytes / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f} GB free. "
            "Make room, or set TMPDIR to a folder that has it."
        )
