"""`bench --table`: what every preset takes for half a minute of video, row by row as it is known.

A step of each preset and the VAE at each size are measured; the time of a video is derived from them by the formula
that the planner uses.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from ..errors import TalkError, UnsupportedError
from ..geometry import FPS, VideoGeometry, WindowPlan
from ..memory.budget import GIB
from ..memory.speed import PartSeconds
from ..presets import Preset, load_preset, preset_names
from ..sampling.setup import SamplingSetup
from .bench_formats import print_formats
from .costs import cost
from .measure import Size
from .measure_parts import Parts

SECONDS = 30


@dataclass(frozen=True)
class PresetRow:
    """A preset: its steps and passes, what was measured of it, and what a video of `SECONDS` takes with that.

    peak_bytes: of the device, 0 on a CPU.
    """

    name: str
    steps: int
    passes: int
    parts: PartSeconds
    seconds: float
    num_streamed: int
    is_tiled: bool
    peak_bytes: int
    is_finite: bool


def print_tables(size: Size, device: torch.device, price: float | None = None) -> int:
    """Measure and print both tables; 1 where something is not finite.

    Args: price: of the GPU for an hour. Raises: UnsupportedError for models of full width on a CPU.
    """
    if device.type != "cuda" and size.vae_dim >= 96:
        raise UnsupportedError(
            "--table needs a GPU: on a CPU the presets would take days. Add --size tiny to see what it prints."
        )
    start = time.perf_counter()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, random weights, windows of {size.frames} frames", flush=True)
    is_finite = print_presets(size, device, price)
    is_finite = print_formats(size, device) and is_finite
    print(f"\nMeasured in {time.perf_counter() - start:.0f} s.", flush=True)
    return 0 if is_finite else 1


def print_presets(size: Size, device: torch.device, price: float | None = None) -> bool:
    """A row for each preset as soon as it is measured; those of one format follow each other, the slowest format first.

    Returns: whether all that was computed is finite.
    """
    presets, parts, is_finite = in_order([load_preset(name) for name in preset_names()]), Parts(size, device), True
    first: float | None = None
    print("\n".join(head_lines(presets[0].name, price)), flush=True)
    for number, preset in enumerate(presets):
        try:
            row = preset_row(preset, size, parts)
        except TalkError as error:
            print(f"| {preset.name} | does not fit: {str(error).splitlines()[0]} |", flush=True)
            continue
        first = row.seconds if number == 0 else first
        is_finite = is_finite and row.is_finite
        print(preset_line(row, first, price), flush=True)
    windows = num_windows(size)
    print(
        "\nMeasured: one step with its passes, the VAE's decode and encode of a window, and the peak of these.\n"
        f"Derived: {SECONDS} s of video = {windows} windows x (steps x a step + decode) + one whole encode and "
        f"{windows - 1} of {size.motion} frames.\nModels are loaded already.",
        flush=True,
    )
    return is_finite


def in_order(presets: list[Preset]) -> list[Preset]:
    """Those that share a format of weights together, so that it is made once, and with rising numbers of blocks that
    stream; the format of the most passes first, so that its preset is known when others are compared with it."""

    def format_of(preset: Preset) -> tuple[str, str]:
        return preset.options.quantize or "", preset.options.dtype

    most: dict[tuple[str, str], int] = {}
    for preset in presets:
        passes = preset.settings.steps * len(SamplingSetup.of(preset.settings, has_audio=True).passes)
        most[format_of(preset)] = max(passes, most.get(format_of(preset), 0))
    return sorted(presets, key=lambda p: (-most[format_of(p)], format_of(p), p.options.blocks_to_stream))


def num_windows(size: Size) -> int:
    """Of a video of `SECONDS`."""
    return len(WindowPlan(round(SECONDS * FPS), size.frames, size.motion))


def preset_row(preset: Preset, size: Size, parts: Parts) -> PresetRow:
    """Measure what is not measured yet. Raises: TalkError where it does not fit the device."""
    geometry = VideoGeometry(*(size.large if "720" in preset.size else size.video), size.frames)
    settings = replace(preset.settings, window_frames=size.frames, motion_frames=size.motion)
    found = parts.measure(geometry, settings, replace(preset.options, device=str(parts.device)))
    steps, seconds = found.setup.num_steps, found.seconds.of_video(num_windows(size), found.setup.num_steps)
    return PresetRow(
        preset.name, steps, len(found.setup.passes), found.seconds, seconds, found.step.num_streamed,
        found.codec.is_tiled, found.peak_bytes, found.step.is_finite,
    )  # fmt: skip


def head_lines(slowest: str, price: float | None = None) -> list[str]:
    names = ["preset", "steps x passes", "a step", "VAE of a window", f"{SECONDS} s of video, derived",
             f"against {slowest}", "blocks that stream", "peak memory"]  # fmt: skip
    names += [] if price is None else [f"cost at {price:g} an hour"]
    return ["", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def preset_line(row: PresetRow, slowest_s: float | None, price: float | None = None) -> str:
    """Markdown. slowest_s: of the preset that others are compared with; None where it does not fit."""
    minutes = f"{int(row.seconds) // 60}:{int(row.seconds) % 60:02}"
    against = "" if slowest_s is None else f"{slowest_s / row.seconds:.1f}x"
    cells = [
        row.name, f"{row.steps} x {row.passes}", f"{row.parts.step:.2f} s",
        f"{row.parts.decode + row.parts.encode_overlap:.2f} s{' in tiles' if row.is_tiled else ''}", minutes, against,
        str(row.num_streamed), f"{row.peak_bytes / GIB:.1f} GiB" if row.peak_bytes else "",
    ]  # fmt: skip
    cells += [] if price is None else [f"{cost(row.seconds, price):.2f}"]
    return f"| {' | '.join(cells)} |" + ("" if row.is_finite else " not finite")
