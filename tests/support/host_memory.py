"""Memory of a process, as Linux counts it, and a process of its own to measure it in."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STATUS = Path("/proc/self/status")
NEEDS_PROC = pytest.mark.skipif(not STATUS.exists(), reason="memory is read from Linux's /proc")


def anonymous():
    """Bytes of anonymous memory that this process holds."""
    return _status("RssAnon")


def high_water():
    """Bytes of memory of any kind that this process held at most since it began."""
    return _status("VmHWM")


def _status(name):
    with STATUS.open() as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))


class Peak:
    """Around a block of code; `grown`: bytes that the process held at most inside it beyond those at its start."""

    def __enter__(self):
        self._start, self._peaks, self._done = anonymous(), [], threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *error):
        self._done.set()
        self._watcher.join()

    def _watch(self):
        while not self._done.is_set():
            self._peaks.append(anonymous())
            self._done.wait(0.002)

    @property
    def grown(self):
        return max(self._peaks) - self._start


def run(code, *arguments):
    """The numbers that Python code prints in a process that can import the engine and this folder.

    Its C library gives every block of 256 KB and more back when it is freed: what it would keep in holes of its heap,
    up to 300 MB, depends on the order in which blocks are freed and hides what the code holds.
    """
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": "262144"},
    )  # fmt: skip
    return [int(number) for number in done.stdout.split()]
