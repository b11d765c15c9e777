"""Processes that end at a chosen moment, as a crash or a lost machine ends them, and what must be left of it."""

import builtins
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import av
from support import media_files

OPERATIONS = (
    "open", "write", "fsync", "replace", "rename", "link", "unlink", "ftruncate", "mkdir", "rmdir", "close",
)  # fmt: skip


class Nursery:
    """Runs functions of a test's file in processes of their own, each a copy of one that has imported it and no more.

    The tests' own process cannot be copied: threads of its encoders would be missing in the copy.
    """

    def __init__(self, file: str) -> None:
        folder = Path(__file__).resolve().parents[1]
        path = os.pathsep.join((str(folder.parent), str(folder), os.environ.get("PYTHONPATH", "")))
        self._process = subprocess.Popen(
            [sys.executable, __file__, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": path}, cwd=folder.parent,
        )  # fmt: skip

    def run(self, name: str, *arguments: object) -> int:
        """The exit status of function `name` with these arguments, as waitpid gives it."""
        self._process.stdin.write(json.dumps([name, *map(str, arguments)]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def _serve(file: str) -> None:
    spec = importlib.util.spec_from_file_location("works", file)
    works = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(works)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(2, 1)
                getattr(works, name)(*arguments)
                status = 0
            except BaseException:  # noqa: BLE001 - said, and gone with its process
                traceback.print_exc()
            finally:
                os._exit(status)
        print(os.waitpid(child, 0)[1], flush=True)


def die(*args: object, **kwargs: object) -> None:
    """End this process on the spot: no handler, no `finally`, no buffer that is written."""
    os.kill(os.getpid(), signal.SIGKILL)


def count_operations(folder: Path, at: int = 0, then: Callable[[], object] = die) -> list[str]:
    """From now on count this process's file operations in `folder`; before the one of number `at`, do `then`."""
    done: list[str] = []
    files: set[int] = set()

    def step(name: str) -> None:
        done.append(name)
        if len(done) == at:
            then()

    def wrapped(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def operation(*args: object, **kwargs: object) -> object:
            place = args[0]
            is_ours = place in files if isinstance(place, int) else os.fspath(place).startswith(str(folder))
            if is_ours:
                step(name)
            result = real(*args, **kwargs)
            if is_ours and name == "open":
                files.add(result)
            if is_ours and name == "close":
                files.discard(place)
            return result

        return operation

    for name in OPERATIONS:
        setattr(os, name, wrapped(name, getattr(os, name)))
    real_open = io.open

    def open_file(path: object, mode: str = "r", *args: object, **kwargs: object) -> object:
        is_named = isinstance(path, str | os.PathLike) and os.fspath(path).startswith(str(folder))
        if not (is_named and set(mode) & set("wax+")):
            return real_open(path, mode, *args, **kwargs)
        step("open")
        return _Counted(real_open(path, mode, *args, **kwargs), step)

    io.open = builtins.open = open_file
    return done


class _Counted:
    """A file that Python itself opened for writing, whose operations are counted too."""

    def __init__(self, file: IO[Any], step: Callable[[str], None]) -> None:
        self._file, self._step = file, step

    def write(self, data: Any) -> int:
        self._step("write")
        return self._file.write(data)

    def close(self) -> None:
        self._step("close")
        self._file.close()

    def __enter__(self) -> "_Counted":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def playable(path: Path) -> int:
    """Frames of a growing file that plays, with sound as long as its pictures."""
    frames = media_files.decoded_frames(path)
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate or 25)
    sound, sound_rate = media_files.decoded_sound(path)
    assert sound.shape[1] / sound_rate >= len(frames) / rate - 0.1, "the sound ends before the pictures"
    return len(frames)


if __name__ == "__main__":
    _serve(sys.argv[1])
