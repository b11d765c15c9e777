"""What all sections share: timing on the GPU, errors, random tensors, and the report.

Times are CUDA events, the median of the repeats after a warm-up.
"""

from __future__ import annotations

import gc
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from baseline import Row, Run, read_runs, this_run, to_json

from wanvideo.geometry import VideoGeometry

SIZES = {"480p": VideoGeometry(832, 480, 81), "720p": VideoGeometry(1280, 720, 81)}
GIB = 2**30


class Report:
    """The rows of a run (section, what, value, unit, note), printed as they come beside a peer's.

    out: a file that holds all rows so far, so that a run that is cut off loses none.
    """

    def __init__(self, repeats: int, peer: dict[tuple[str, str], float], out: Path | None) -> None:
        self.repeats, self.peer, self.out, self.rows = repeats, peer, out, list[Row]()

    def add(self, section: str, what: str, value: float, unit: str, note: str = "") -> None:
        self.rows.append(Row(section, what, value, unit, note))
        other = self.peer.get((section, what))
        beside = "" if other is None else f"  peer {other:.4g}"
        print(f"{section:<10} {what:<54} {value:>10.4g} {unit:<8} {note}{beside}", flush=True)
        if self.out:
            self.out.write_text(to_json([self.run]), encoding="utf-8")

    @property
    def run(self) -> Run:
        """What was measured so far."""
        return this_run(torch.cuda.get_device_name(), 1, self.rows)


def read_peer(path: Path | None) -> dict[tuple[str, str], float]:
    """Another engine's numbers, in a file like the one this program writes."""
    return {row.name: row.value for run in (read_runs(path) if path else []) for row in run.rows}


def seconds(function, repeats: int, warm_up: int = 1) -> float:
    return alternately([function], repeats, warm_up)[0]


def alternately(functions, repeats: int, warm_up: int = 1) -> list[float]:
    """The median of each function's seconds. They take turns, so that all of them find the GPU equally warm."""
    for _ in range(warm_up):
        for function in functions:
            function()
    times = [[] for _ in functions]
    for _ in range(repeats):
        for function, own in zip(functions, times, strict=True):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            stop.record()
            torch.cuda.synchronize()
            own.append(start.elapsed_time(stop) / 1000)
    return [statistics.median(own) for own in times]


def peak_gib() -> float:
    return torch.cuda.max_memory_allocated() / GIB


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours.float() - expected.float()).norm() / expected.float().norm())


def cosine(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float(F.cosine_similarity(ours.float().flatten(), expected.float().flatten(), 0))


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
