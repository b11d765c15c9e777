"""The process that runs cases one after another and reports each on one line of JSON; a case may end it."""

import contextlib
import gc
import importlib
import json
import os
import random
import sys
import time
import traceback
from pathlib import Path

from wanvideo.errors import TalkError

WARM = ("av", "PIL.Image", "safetensors.torch", "scipy.special", "wanvideo.pipeline")
COLLECT_EVERY = 50  # cases


def memory(pid="self", kind="VmRSS"):
    """Bytes of a process that are in memory, or have been at most (VmHWM); 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(kind):
                return int(line.split()[1]) * 1024
    return 0


def forget_peak():
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def outcome(call):
    """(what became of it, where and why for a violation)."""
    try:
        call()
    except TalkError:
        return "answered", ""
    except SystemExit as error:
        return ("violation", f"SystemExit({error.code})") if error.code else ("used", "")
    except BaseException as error:  # noqa: BLE001 that is what is looked for
        frames = traceback.extract_tb(error.__traceback__)
        places = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-4:])
        return "violation", f"{type(error).__name__}: {str(error)[:300]} ({places})"
    return "used", ""


def main(family, seed, start, count, folder):
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # what a case prints is not of interest
    for name in WARM:
        importlib.import_module(name)

    def say(*values):
        report.write(json.dumps(values) + "\n")
        report.flush()

    cases = importlib.import_module(f"{__package__}.{family}").cases(random.Random(f"{family} {seed}"), Path(folder))
    for index, (name, call) in enumerate(cases):
        if index < start:
            continue
        if index >= start + count:
            break
        if index % COLLECT_EVERY == 0:
            gc.collect()
        forget_peak()
        before = memory()
        say("start", index, name, before)
        began = time.process_time()
        result, why = outcome(call)
        say("end", index, result, why, time.process_time() - began, max(0, memory(kind="VmHWM") - before))
        del call
    sys.stdout.flush()
