"""`bench --table`: what every preset takes for half a minute of video, and what every format of weights loses.

Legend: L rows of activations; N output and K input features of a matrix.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..checkpoints.quantize import pack_linears
from ..errors import UnsupportedError
from ..geometry import FPS, VideoGeometry, WindowPlan
from ..memory.budget import GIB
from ..ops.linear.layer import Linear
from ..presets import Preset, load_preset, preset_names
from ..request import QUANTIZERS
from .costs import cost
from .measure import Measured, Size, measure

SECONDS = 30
MEASURED_STEPS = 2
SIZES = {"infinitetalk-480": (832, 480), "infinitetalk-720": (1280, 720)}
REPEATS = 10


@dataclass(frozen=True)
class PresetRow:
    """A preset: seconds of a video of `SECONDS`, how many blocks streamed, the peak of device memory."""

    name: str
    steps: int
    passes: int
    seconds: float
    num_streamed: int
    peak_bytes: int


@dataclass(frozen=True)
class FormatRow:
    """A format of a block's largest matrix. error: of the result, relative to the dense one; speed: against bf16."""

    name: str
    bits: float
    error: float
    cosine: float
    seconds: float


def print_tables(size: Size, device: torch.device, price: float | None = None) -> int:
    """Measure and print both tables. Args: price: of the GPU for an hour. Raises: UnsupportedError without one."""
    if device.type != "cuda":
        raise UnsupportedError(
            "--table needs a GPU: on a CPU the presets would take days. Leave it out to measure --size tiny."
        )
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, random weights of the published sizes")
    print(preset_table([preset_row(load_preset(name), size, device) for name in preset_names()], price))
    rows = 32760  # of a window at 832x480
    config = size.transformer
    print(format_table([format_row(to, rows, config.ffn_dim, config.dim, device) for to in (None, *QUANTIZERS)]))
    return 0


def preset_row(preset: Preset, size: Size, device: torch.device) -> PresetRow:
    """Measure a preset with few of its steps; all steps cost the same. What does not fit streams all blocks."""
    wanted, blocks = preset.options.blocks_to_stream, size.transformer.num_layers
    width, height = (
        SIZES[preset.size] if size.frames == preset.settings.window_frames else map(int, size.video.split("x"))
    )
    geometry = VideoGeometry(width, height, size.frames)
    settings = replace(
        preset.settings, steps=MEASURED_STEPS, scheduler="multitalk", window_frames=size.frames,
        motion_frames=size.motion,
    )  # fmt: skip
    for streamed in dict.fromkeys((min(max(wanted, 0), blocks), blocks)):
        options = replace(preset.options, device=str(device), blocks_to_stream=streamed)
        try:
            found = measure(size, geometry, settings, options)
        except torch.OutOfMemoryError:
            if streamed == blocks:
                raise
            gc.collect()
            torch.cuda.empty_cache()
            continue
        break
    passes = 1 + (preset.settings.guidance_scale != 1) + (preset.settings.audio_guidance_scale != 1)
    return PresetRow(
        preset.name, preset.settings.steps, passes, video_seconds(found, preset, size), streamed, found.peak_bytes
    )


def video_seconds(found: Measured, preset: Preset, size: Size) -> float:
    """Seconds of a video of `SECONDS`, from windows of fewer steps."""
    windows = len(WindowPlan(round(SECONDS * FPS), size.frames, size.motion))
    more = (preset.settings.steps - MEASURED_STEPS) * found.step
    first, later = found.windows[0] + more, found.windows[-1] + more
    return first + (windows - 1) * later


def preset_table(rows: list[PresetRow], price: float | None = None) -> str:
    """Markdown: time, time against the slowest preset, memory, and what a video costs at a price an hour."""
    slowest = max(row.seconds for row in rows)
    lines = [f"| preset | steps x passes | {SECONDS} s of video | against the slowest | streaming | peak memory |"]
    lines.append("|---|---|---|---|---|---|")
    if price is not None:
        lines = [lines[0] + f" cost at {price:g} an hour |", lines[1] + "---|"]
    for row in rows:
        minutes = f"{int(row.seconds) // 60}:{int(row.seconds) % 60:02}"
        lines.append(
            f"| {row.name} | {row.steps} x {row.passes} | {minutes} | {slowest / row.seconds:.1f}x "
            f"| {row.num_streamed} blocks | {row.peak_bytes / GIB:.1f} GiB |"
            + ("" if price is None else f" {cost(row.seconds, price):.2f} |")
        )
    return "\n".join(lines)


@torch.no_grad()
def format_row(to: str | None, rows: int, out_features: int, in_features: int, device: torch.device) -> FormatRow:
    """One matrix [N, K] with activations [L, K], dense in bf16 (None) or in a format of QUANTIZERS."""
    generator = torch.Generator(device).manual_seed(3)
    layer = Linear(in_features, out_features).to(device, torch.bfloat16)
    layer.weight.data = (torch.randn(out_features, in_features, device=device, generator=generator) * 0.02).bfloat16()
    layer.bias.data.zero_()
    hidden = torch.randn(rows, in_features, device=device, generator=generator).bfloat16()
    expected = layer(hidden).float()
    holder = nn.ModuleList([layer])
    if to is not None:
        pack_linears(holder, to)
    out = holder[0](hidden).float()
    held = sum(tensor.numel() * tensor.element_size() for tensor in holder.state_dict().values())
    return FormatRow(
        to or "bf16", 8 * held / (out_features * in_features), float((out - expected).norm() / expected.norm()),
        float(nn.functional.cosine_similarity(out.flatten(), expected.flatten(), 0)), _seconds(holder[0], hidden),
    )  # fmt: skip


def _seconds(layer: nn.Module, hidden: Tensor) -> float:
    """The least of a few times of a layer."""
    times = []
    for _ in range(REPEATS):
        start = _now(hidden.device)
        layer(hidden)
        times.append(_now(hidden.device) - start)
    return min(times)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def format_table(rows: list[FormatRow]) -> str:
    """Markdown: what a format loses, and how much faster it is than bf16 here; one that is slower says so."""
    dense = next(row.seconds for row in rows if row.name == "bf16")
    lines = ["| weights | bits a weight | error | cosine | speed against bf16 |", "|---|---|---|---|---|"]
    for row in rows:
        speed = dense / row.seconds
        note = "" if row.name == "bf16" or speed >= 1.05 else ": no gain in speed on this device, only in memory"
        lines.append(f"| {row.name} | {row.bits:.1f} | {row.error:.2%} | {row.cosine:.5f} | {speed:.2f}x{note} |")
    return "\n".join(lines)
