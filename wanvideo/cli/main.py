"""`python -m wanvideo COMMAND`: one module a command, each with `main(argv) -> exit code`."""

from __future__ import annotations

import contextlib
import errno
import io
import keyword
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from .. import checks
from ..errors import TalkError
from .shortage import describe_shortage

UNREAD = 141  # exit code of a command whose reader left, as shells have it
UNREADABLE = (errno.EPIPE, errno.EINVAL)  # what writing to a reader who left says, the latter on Windows
COMMANDS = {
    "generate": "make a talking video from a job file (the flags of generate_infinitetalk.py)",
    "batch": "make many videos from a file of jobs, on this machine's GPUs, a Ray cluster or ComfyUI servers",
    "app": "make talking videos in a browser (needs gradio)",
    "runs": "list, show, resume or remove videos that are being made or were not finished",
    "demo": "make tiny random models and a short video with them, to see that everything works",
    "make-models": "write a complete set of synthetic models",
    "convert": "write a model file in another precision: fp8, int8, fp4 or bf16",
    "plan": "say what a video will need and how long it will take, without loading a model",
    "voices": "list the languages and voices that text is spoken with",
    "presets": "list the presets and every number that they set",
    "bench": "measure a window on this machine with random weights",
    "doctor": "say what this machine has, what works on it, and which model files are there",
    "score": "say whether a finished video is in sync and its colors are steady",
    "download": "fetch the model files that a preset or a document needs",
    "export": "write a graph of ComfyUI as a job file and a command",
    "import": "write a job and its flags as a graph of ComfyUI",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; a TalkError is printed as it is and exits with 2."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        return run(_list_commands, [])
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        near = checks.meant(name, COMMANDS)
        print(f"There is no command {name!r}.{near} Use one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    module = name.replace("-", "_") + "_" * keyword.iskeyword(name)
    return run(import_module(f".{module}", __package__).main, rest)


def _list_commands(arguments: list[str]) -> int:
    print("usage: python -m wanvideo COMMAND [--help]\n")
    print("\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items()))
    return 0


def run(command: Callable[[list[str]], int | None], arguments: list[str]) -> int:
    """Run `command(arguments)` with logging set up, and its errors as messages instead of tracebacks."""
    # Blocks and windows come and go in many sizes; without this a tenth of a small card is lost between them.
    if os.name != "nt":  # where PyTorch has no such segments, and warns
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("wanvideo").setLevel(logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a path in letters that a terminal lacks ends no command
    try:
        with interruptible():
            return command(arguments) or 0
    except TalkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished windows are kept, and the same command goes on from there", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 the last resort: what is left is ours to mend
        if isinstance(error, OSError) and error.errno in UNREADABLE and _is_unread("\n"):
            return UNREAD
        if (shortage := describe_shortage(error)) is not None:
            print(f"error: {shortage}", file=sys.stderr)
            return 2
        place = traceback.extract_tb(error.__traceback__)[-1]
        print(
            f"error: something unexpected happened, {type(error).__name__}: {str(error)[:500]}\n"
            f"It is a fault of this program ({Path(place.filename).name}, line {place.lineno}). Report these lines.",
            file=sys.stderr,
        )
        return 1
    finally:
        _is_unread()


def _is_unread(more: str = "") -> bool:
    """Whether nobody reads what is printed anymore, as in `| head`; from then on it goes nowhere, which is no error."""
    try:
        print(end=more, flush=True)
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A request to end, a closed terminal or Ctrl+Break ends a command as Ctrl+C does: what is finished is kept."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    names = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
    is_main = threading.current_thread() is threading.main_thread()  # nobody else may set them
    before = {name: signal.signal(name, interrupt) for name in names} if is_main else {}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
