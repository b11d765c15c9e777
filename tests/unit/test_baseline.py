"""Benchmarks held against recorded ones: slower or larger on the same card fails, another card is told."""

import argparse
import importlib.util
import json
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
spec = importlib.util.spec_from_file_location("baseline", FOLDER / "baseline.py")
baseline = importlib.util.module_from_spec(spec)
sys.modules["baseline"] = baseline  # where its dataclasses look their types up
spec.loader.exec_module(baseline)
Row, Run = baseline.Row, baseline.Run

ROWS = (
    Row("forward", "480p", 1.60, "s"), Row("forward", "480p, peak memory", 20.0, "GiB"),
    Row("ceilings", "matmul", 800.0, "TFLOP/s"), Row("forward", "480p, speed-up", 1.9, "x"),
)  # fmt: skip
OLD = Run("NVIDIA H200", 1, "2.11.0", "3.6.0", "2026-11-21", "python benchmarks/run.py", ROWS, "docs/performance.md")


def changed(**values):
    """A new run of the same card, with other values for some rows, by their unit."""
    return replace(
        OLD, date="2026-12-01", rows=tuple(replace(row, value=values.get(row.unit, row.value)) for row in ROWS)
    )


def run(now, tmp_path, *arguments, runs=(OLD,)):
    """The exit code of a benchmark that measured `now`."""
    file = tmp_path / "baseline.json"
    file.write_text(baseline.to_json(runs))
    parser = argparse.ArgumentParser()
    baseline.add_flags(parser)
    flags = parser.parse_args(["--against", str(file), *arguments])
    return baseline.finish(flags, now, baseline.check_flags(parser, flags))


@pytest.mark.parametrize(
    ("values", "tolerance", "code"),
    [
        ({}, "0", 0), ({"s": 1.67}, "0.05", 0), ({"s": 1.69}, "0.05", 1), ({"s": 1.69}, "0.06", 0),
        ({"s": 1.0}, "0", 0), ({"GiB": 21.1}, "0.05", 1), ({"TFLOP/s": 700.0}, "0.05", 1), ({"TFLOP/s": 900.0}, "0", 0),
        ({"x": 1.0}, "0", 0), ({"s": math.nan}, "0.05", 1),
    ],
)  # fmt: skip
def test_what_is_worse_fails(tmp_path, capsys, values, tolerance, code):
    assert run(changed(**values), tmp_path, "--tolerance", tolerance) == code
    printed = capsys.readouterr().out
    assert printed.count("WORSE") == code and f"{code} of 3 rows are more than" in printed
    assert "torch 2.11.0, Triton 3.6.0, 2026-11-21" in printed


@pytest.mark.parametrize("other", [{"device": "NVIDIA H100 80GB HBM3"}, {"gpus": 2}])
def test_another_card_is_told_and_is_no_failure(tmp_path, capsys, other):
    assert run(replace(changed(s=9.0), **other), tmp_path) == 0
    assert "Recorded: 1 x NVIDIA H200." in capsys.readouterr().out


def test_the_latest_record_counts(tmp_path):
    newer = replace(changed(s=2.0), date="2026-11-30")
    assert run(changed(s=2.05), tmp_path, runs=(newer, OLD)) == 0


def test_recording_replaces_rows_of_the_same_card(tmp_path):
    file = tmp_path / "new.json"
    odd = (
        Row("took", "forward", 4.0, "s"),
        Row("forward", "on a CPU, peak memory", 0.0, "GiB"),
        Row("a", "b", math.nan, "s"),
    )
    for now in (OLD, replace(OLD, gpus=2), replace(changed(s=1.5), rows=(replace(ROWS[0], value=1.5), *odd))):
        baseline.record(file, now)
    runs = baseline.read_runs(file)
    assert [(one.gpus, len(one.rows)) for one in runs] == [(1, 2), (2, 3), (1, 1)]
    assert baseline.recorded(runs, OLD.device, 1)["forward", "480p"][0].value == 1.5
    assert runs[0].rows == ROWS[1:3] and runs[1].rows == ROWS[:3]


@pytest.mark.parametrize("flags", [["--tolerance", "-1"], ["--against", "/nowhere.json"], ["--record", __file__]])
def test_wrong_flags_leave_before_anything_is_measured(flags):
    parser = argparse.ArgumentParser()
    baseline.add_flags(parser)
    with pytest.raises(SystemExit) as left:
        baseline.check_flags(parser, parser.parse_args(flags))
    assert left.value.code == 2


def test_what_is_recorded():
    """Every row once a card, each of a command in this folder and of a page that tells it."""
    runs = baseline.read_runs(FOLDER / "baseline.json")
    assert Counter((one.device, one.gpus, *row.name) for one in runs for row in one.rows).most_common(1)[0][1] == 1
    assert all(row.is_comparable and row.value > 0 for one in runs for row in one.rows)
    for one in runs:
        assert one.date and one.torch and one.triton
        assert (FOLDER.parent / next(word for word in one.command.split() if word.endswith(".py"))).is_file()
        assert (FOLDER.parent / one.source.split()[0]).is_file()
    assert json.loads(baseline.to_json(runs)) == json.loads((FOLDER / "baseline.json").read_text())
