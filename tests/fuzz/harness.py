"""Runs families of cases in a process of their own, with limits of time and memory, and counts what became of them."""

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from .child import memory

HERE = Path(__file__).resolve().parent
MOST_SECONDS, MOST_BYTES = 20.0, 500 * 10**6  # of one case: of its process's work, and beyond what that held before it
PATIENCE = 4  # times as much by the clock, which other processes move: then it hangs
START_SECONDS = 120.0  # for imports, and for the way to the first case of a process that goes on behind a violation
POLL_SECONDS = 0.05
MOST_SHOWN = 20  # violations of a family


@dataclass
class Tally:
    """What became of a family's cases; violations: (name of the case, index, what happened)."""

    family: str
    seed: int
    cases: int = 0
    answered: int = 0
    used: int = 0
    slowest_s: float = 0.0
    most_bytes: int = 0
    violations: list = field(default_factory=list)
    most_s: float = MOST_SECONDS

    def add(self, name, index, result, why, seconds, grown):
        self.cases += 1
        self.slowest_s, self.most_bytes = max(self.slowest_s, seconds), max(self.most_bytes, grown)
        if result != "violation" and grown > MOST_BYTES:
            result, why = "violation", f"took {grown / 1e6:.0f} MB"
        if result != "violation" and seconds > self.most_s:
            result, why = "violation", f"took {seconds:.1f} s"
        if result == "violation":
            self.violations.append((name, index, why))
        else:
            setattr(self, result, getattr(self, result) + 1)


class Child:
    """The process that runs cases from index `start` on; its reports, one after another."""

    def __init__(self, family, seed, start, count, folder):
        arguments = ["--child", family, "--seed", seed, "--start", start, "--cases", count, "--folder", folder]
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, str(HERE), *map(str, arguments)], cwd=HERE.parents[1], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **one},
        )  # fmt: skip
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)
        self.held = b""

    def report(self):
        """The next report, None where none has come yet; raises EOFError when there will be none."""
        if b"\n" not in self.held and self.selector.select(POLL_SECONDS):
            more = os.read(self.process.stdout.fileno(), 2**16)
            if not more:
                raise EOFError
            self.held += more
        line, end, rest = self.held.partition(b"\n")
        if not end:
            return None
        self.held = rest
        return json.loads(line)

    def end(self):
        """Wait a moment for its end, then bring it about. Returns: its exit status."""
        try:
            code = self.process.wait(timeout=0.0 if self.selector.select(0) == [] else 10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.selector.close()
        self.process.stdout.close()
        return code


def run_family(family, seed, cases=10**9, seconds=float("inf"), start=0, most_s=MOST_SECONDS):
    """Run cases of a family from index `start` on, until there were so many or so much time has passed.

    Returns: Tally.
    """
    tally, deadline, stop = Tally(family, seed, most_s=most_s), time.monotonic() + seconds, start + cases
    with tempfile.TemporaryDirectory(prefix="wanvideo-fuzz-", ignore_cleanup_errors=True) as folder:
        while start < stop and time.monotonic() < deadline:
            start = _run_child(tally, start, stop, deadline, folder)
    return tally


def _run_child(tally, start, stop, deadline, folder):
    """Run one process until it is done or has to be ended. Returns: the index to go on from."""
    child = Child(tally.family, tally.seed, start, stop - start, folder)
    current, began, ended_by = None, time.monotonic(), None
    try:
        while time.monotonic() < deadline:
            report = child.report()
            if report is None:
                ended_by = _broken_limit(child, current, time.monotonic() - began, PATIENCE * tally.most_s)
                if ended_by:
                    break
            elif report[0] == "start":
                current, began = report[1:], time.monotonic()
            else:
                tally.add(current[1], *report[1:])
                current, start, began = None, report[1] + 1, time.monotonic()
    except EOFError:
        pass
    finally:
        code = child.end()
    if ended_by is None and time.monotonic() >= deadline:
        return stop  # no time is left: the case that runs is not counted
    if current is not None:
        seconds = time.monotonic() - began
        tally.add(current[1], current[0], "violation", ended_by or f"ended the process with {code}", seconds, 0)
        return current[0] + 1
    if (code or ended_by) and start < stop:  # how it ends when all is done is no case
        tally.add("(between cases)", start, "violation", ended_by or f"the process ended with {code}", 0, 0)
    return stop


def _broken_limit(child, current, seconds, hangs_s):
    """What the case that runs has broken, or None."""
    if current is None:
        return f"nothing came for {seconds:.0f} s" if seconds > START_SECONDS else None
    grown = memory(child.process.pid) - current[2]
    if grown > MOST_BYTES:
        return f"took {grown / 1e6:.0f} MB"
    return f"took more than {hangs_s:.0f} s" if seconds > hangs_s else None


def table(tallies):
    """All tallies, and how to run the violations again."""
    lines = [f"{'family':<10}{'cases':>8}{'answered':>10}{'used':>8}{'violations':>12}{'slowest':>10}{'memory':>10}"]
    lines += [
        f"{t.family:<10}{t.cases:>8}{t.answered:>10}{t.used:>8}{len(t.violations):>12}{t.slowest_s:>8.2f} s"
        f"{t.most_bytes / 1e6:>7.0f} MB"
        for t in tallies
    ]
    lines.append(f"{'in all':<10}{sum(t.cases for t in tallies):>8}")
    for t in tallies:
        for name, index, why in t.violations[:MOST_SHOWN]:
            again = f"python tests/fuzz --family {t.family} --seed {t.seed} --start {index} --cases 1"
            lines += [f"{t.family} {name}: {why}", f"  again: {again}"]
        if len(t.violations) > MOST_SHOWN:
            lines.append(f"{t.family}: and {len(t.violations) - MOST_SHOWN} more")
    return "\n".join(lines)
