"""What was measured before, and whether a run is slower or larger: `--against` and `--record` of the benchmarks.

    python benchmarks/run.py --sections forward_480p --against benchmarks/baseline.json [--tolerance 0.05]
    python benchmarks/run.py --sections forward_480p --record benchmarks/baseline.json

`baseline.json` holds runs, each with the card, how many of them, versions, date, command and source of its rows. A row
is compared with the one of the same section and name on the same card and as many of them. Seconds and memory may grow
by the tolerance, rates may fall by it; ratios, errors and cosines are not compared. Exit codes of a benchmark: 0, also
where no row of this card is recorded, which is said; 1 where a row is worse, or a section failed; 2 for wrong flags.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

TOLERANCE = 0.05  # two machines of one kind differ by 3 %
SMALLER_IS_BETTER, LARGER_IS_BETTER = ("s", "ms", "GiB"), ("TFLOP/s", "GB/s")
HARNESS = ("took", "left out")  # sections about the benchmark itself


@dataclass(frozen=True)
class Row:
    """One number of a section."""

    section: str
    what: str
    value: float
    unit: str = ""
    note: str = ""

    @property
    def name(self) -> tuple[str, str]:
        return self.section, self.what

    @property
    def is_comparable(self) -> bool:
        """Whether it says how fast or large something is; memory of a CPU is 0."""
        return self.unit in (*SMALLER_IS_BETTER, *LARGER_IS_BETTER) and self.section not in HARNESS and self.value != 0


@dataclass(frozen=True)
class Run:
    """Rows that one command measured. device: as CUDA names the card; gpus: how many; source: where they are told."""

    device: str
    gpus: int
    torch: str
    triton: str
    date: str
    command: str
    rows: tuple[Row, ...]
    source: str = ""


def this_run(device: str, gpus: int, rows: Iterable[Row]) -> Run:
    """The run of this process."""
    starter = "python" if gpus == 1 else f"torchrun --nproc_per_node={gpus}"
    command = " ".join((starter, f"benchmarks/{Path(sys.argv[0]).name}", *map(shlex.quote, sys.argv[1:])))
    return Run(device, gpus, _version("torch"), _version("triton"), time.strftime("%Y-%m-%d"), command, tuple(rows))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def to_json(runs: Iterable[Run]) -> str:
    """Text of a file, a line for each row."""
    texts = []
    for run in runs:
        head = {name: value for name, value in asdict(run).items() if name != "rows"}
        rows = ",\n".join("   " + json.dumps({k: v for k, v in asdict(row).items() if v != ""}) for row in run.rows)
        texts.append(f" {json.dumps(head)[:-1]},\n  " + f'"rows": [\n{rows}\n  ]}}')
    return '{"runs": [\n' + ",\n".join(texts) + "\n]}\n"


def read_runs(path: Path) -> list[Run]:
    """Runs of a file that `to_json` made. Raises: ValueError naming the file where it is none."""
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return [Run(**{**run, "rows": tuple(Row(**row) for row in run["rows"])}) for run in runs]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no file of recorded runs: {error}") from error


def recorded(runs: Iterable[Run], device: str, gpus: int) -> dict[tuple[str, str], tuple[Row, Run]]:
    """The rows of a card, with the run that each is of; the latest counts."""
    same = sorted((run for run in runs if (run.device, run.gpus) == (device, gpus)), key=lambda run: run.date)
    return {row.name: (row, run) for run in same for row in run.rows if row.is_comparable}


@dataclass(frozen=True)
class Comparison:
    """A row beside the recorded one. ratio: above 1 it is worse."""

    row: Row
    before: Row
    run: Run

    @property
    def ratio(self) -> float:
        new, old = self.row.value, self.before.value
        return new / old if self.row.unit in SMALLER_IS_BETTER else old / new

    def is_worse(self, tolerance: float) -> bool:
        """A value that is no number is worse than any."""
        return not self.ratio <= 1 + tolerance


def compare(now: Run, runs: Iterable[Run]) -> list[Comparison]:
    """All rows of `now` that say how fast or large something is and were recorded on the same card."""
    before = recorded(runs, now.device, now.gpus)
    return [Comparison(row, *before[row.name]) for row in now.rows if row.is_comparable and row.name in before]


def print_comparison(now: Run, runs: list[Run], tolerance: float) -> int:
    """A table; the number of rows that are worse."""
    found = compare(now, runs)
    if not found:
        cards = sorted({f"{run.gpus} x {run.device}" for run in runs})
        print(
            f"Nothing of this run is recorded for {now.gpus} x {now.device}. Recorded: {', '.join(cards) or 'nothing'}."
        )
        return 0
    worse = [one for one in found if one.is_worse(tolerance)]
    for one in found:
        new, old = f"{one.row.value:.4g}", f"{one.before.value:.4g} {one.row.unit}"
        mark = "  WORSE" if one in worse else ""
        print(f"{one.row.section:<10} {one.row.what:<54} {new:>9} against {old:<14} {one.ratio:.3f}x{mark}")
    others = sorted({f"torch {run.torch}, Triton {run.triton}, {run.date}" for run in (one.run for one in found)})
    print(f"{len(worse)} of {len(found)} rows are more than {tolerance:.0%} worse than recorded ({'; '.join(others)}).")
    return len(worse)


def record(path: Path, now: Run) -> None:
    """Add a run to a file; rows that it has measured anew leave older runs of the card."""
    new = replace(now, rows=tuple(row for row in now.rows if row.is_comparable and math.isfinite(row.value)))
    runs, names = read_runs(path) if path.exists() else [], {row.name for row in new.rows}
    kept = []
    for run in runs:
        if (run.device, run.gpus) == (now.device, now.gpus):
            run = replace(run, rows=tuple(row for row in run.rows if row.name not in names))
        kept += [run] if run.rows else []
    path.write_text(to_json([*kept, new]), encoding="utf-8")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--against, --tolerance, --record."""
    parser.add_argument("--against", type=Path, help="recorded runs (baseline.json): exit with 1 where one is worse")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="by how much a value may be worse; 0.05")
    parser.add_argument("--record", type=Path, help="add the rows to this file of recorded runs")


def check_flags(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> list[Run]:
    """The runs of --against, read before anything is measured; leaves with 2 where a flag is wrong."""
    if not 0 <= flags.tolerance <= 1:
        parser.error(f"--tolerance {flags.tolerance:g} is not usable: give a share from 0 to 1.")
    try:
        if flags.record is not None and flags.record.exists():
            read_runs(flags.record)
        return [] if flags.against is None else read_runs(flags.against)
    except ValueError as error:
        parser.error(str(error))


def finish(flags: argparse.Namespace, now: Run, runs: list[Run]) -> int:
    """Compare and record as the flags say; the exit code."""
    worse = 0 if flags.against is None else print_comparison(now, runs, flags.tolerance)
    if flags.record is not None:
        record(flags.record, now)
    return 1 if worse else 0
