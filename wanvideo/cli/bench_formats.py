"""What every format of weights loses and gains: a few blocks of the model in each, against the same blocks in bf16."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..geometry import VideoGeometry
from ..memory.residency import module_bytes
from ..request import QUANTIZERS, LoopSettings
from ..sampling.setup import SamplingSetup
from ..synthetic.random_weights import random_transformer
from .measure import Clock, Size
from .measure_parts import StepInputs

NUM_BLOCKS = 4
REPEATS = 3
DENSE, AUTO = "bf16", "auto"
FORMATS = ((DENSE, AUTO), *((quantize, AUTO) for quantize in QUANTIZERS), ("fp8", "fp8"))
GAIN = 1.05  # from here on a format counts as faster


@dataclass(frozen=True)
class FormatRow:
    """A format of the blocks' matrices with an attention.

    bits: a weight of the blocks takes. error, cosine: of the output to that of bf16. seconds: of a pass.
    """

    name: str
    bits: float
    error: float
    cosine: float
    seconds: float
    is_finite: bool


class FormatBench:
    """A model of few blocks, the same random weights in every format, and a window of a video of noise."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.config = replace(size.transformer, num_layers=min(NUM_BLOCKS, size.transformer.num_layers))
        self.geometry, self.device, self.clock = VideoGeometry(*size.video, size.frames), device, Clock(device)
        self._dense: Tensor | None = None
        self._num_weights = 0

    @torch.no_grad()
    def row(self, storage: str, attention: str) -> FormatRow | None:
        """Measure a format; the first one has to be dense. None: this device does not have the attention."""
        quantize = None if storage == DENSE else storage
        model = random_transformer(self.config, self.device, torch.bfloat16, quantize)
        if attention not in (AUTO, model.set_attention(attention)):
            return None
        setup = SamplingSetup.of(LoopSettings(guidance_scale=1.0, audio_guidance_scale=1.0), has_audio=True)
        inputs = StepInputs.of(model, self.geometry, setup)
        out, times = inputs.run(model).float(), list[float]()
        run = self.clock.timed(lambda: inputs.run(model), times)
        for _ in range(REPEATS):
            run()
        if self._dense is None:
            self._dense = out
            self._num_weights = sum(parameter.numel() for parameter in model.blocks.parameters())
        dense = self._dense
        name = storage if attention == AUTO else f"{storage}, attention too"
        bits = 8 * module_bytes(model.blocks) / self._num_weights
        cosine = nn.functional.cosine_similarity(out.flatten(), dense.flatten(), 0)
        error = (out - dense).norm() / dense.norm()
        return FormatRow(name, bits, float(error), float(cosine), min(times), bool(out.isfinite().all()))


def print_formats(size: Size, device: torch.device) -> bool:
    """A row for each format as soon as it is measured. Returns: whether everything is finite."""
    bench, is_finite, dense_s = FormatBench(size, device), True, 0.0
    count = bench.config.num_layers
    print(f"\n| weights | bits a weight | error | cosine | {count} blocks | against {DENSE} |")
    print("|---|---|---|---|---|---|", flush=True)
    for storage, attention in FORMATS:
        row = bench.row(storage, attention)
        if row is None:
            print(f"| {storage}, attention too | not on this device |", flush=True)
            continue
        dense_s = dense_s or row.seconds
        is_finite = is_finite and row.is_finite
        print(format_line(row, dense_s), flush=True)
        gc.collect()
    print(f"\nError and cosine are those of {count} blocks of random weights; more blocks add to them.", flush=True)
    return is_finite


def format_line(row: FormatRow, dense_s: float) -> str:
    """Markdown; a format that is no faster than bf16 says so. dense_s: seconds of bf16."""
    speed = dense_s / row.seconds
    note = "" if row.name == DENSE or speed >= GAIN else ": no gain in speed on this device, only in memory"
    cells = [
        row.name, f"{row.bits:.1f}", f"{row.error:.2%}", f"{row.cosine:.5f}", f"{row.seconds:.3f} s",
        f"{speed:.2f}x{note}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |" + ("" if row.is_finite else " not finite")
