"""What LoRAs add to a linear layer whose weight they are not merged into.

Legend: L rows of activations, K input features, N output features, R the ranks of all LoRAs of a layer together,
S sampling steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..quantized import QuantizedRows

QUANTIZED_ROWS = 8192  # rows that are widened at a time

Strengths = tuple[float, ...]  # a strength for each step; the last one stands for all later steps


def strength_at(strengths: Strengths, step: int) -> float:
    """The strength in a step."""
    return strengths[min(step, len(strengths) - 1)]


class LoraSchedule:
    """The step that sampling is at, for every LoRA whose strength changes from step to step.

    The number is kept on every device that asks for it, outside the weights: a new step moves no weight, allocates
    nothing and recompiles nothing.

    Args: strengths: every sequence of strengths that changes.
    """

    def __init__(self, strengths: Sequence[Strengths]) -> None:
        self.strengths = tuple(strengths)
        self.num_steps = max(map(len, self.strengths))
        self.step = 0
        self._on_device: dict[torch.device, Tensor] = {}

    def set_step(self, step: int) -> bool:
        """Go to a step, counted from 0. Returns: whether any strength is another one now."""
        step, last = min(step, self.num_steps - 1), self.step
        if step == last:
            return False
        self.step = step
        with torch.inference_mode():
            for number in self._on_device.values():
                number.fill_(step)
        return any(strength_at(strengths, step) != strength_at(strengths, last) for strengths in self.strengths)

    def on(self, device: torch.device) -> Tensor:
        """The step as an index tensor [1]."""
        if device not in self._on_device:
            with torch.inference_mode(False):
                self._on_device[device] = torch.tensor([self.step], device=device)
        return self._on_device[device]


@dataclass(frozen=True)
class Kronecker:
    """The matrix kron(first [A, B], second [C, D]) of N = A * C rows and K = B * D columns, never written out."""

    first: Tensor
    second: Tensor


class LoraBranch(nn.Module):
    """Adds x (up down)^T to what a layer computed, in that result's dtype.

    Args:
        down: [R, K]. up: [N, R], with constant strengths multiplied in.
        fulls: [N, K], differences that have no low rank. kroneckers: differences of that form.
        table: [S, R + number of fulls + number of kroneckers], their strengths by step, or None where all are constant.
        schedule: says which row of the table counts.
    """

    down: Tensor
    up: Tensor
    table: Tensor | None

    def __init__(
        self,
        down: Tensor,
        up: Tensor,
        fulls: Sequence[Tensor] = (),
        kroneckers: Sequence[Kronecker] = (),
        table: Tensor | None = None,
        schedule: LoraSchedule | None = None,
    ) -> None:
        super().__init__()
        self.rank, self.schedule = down.shape[0], schedule
        self.register_buffer("down", down)
        self.register_buffer("up", up)
        self.register_buffer("table", table)
        self.num_fulls, self.num_kroneckers = len(fulls), len(kroneckers)
        for number, full in enumerate(fulls):
            self.register_buffer(f"full_{number}", full)
        for number, pair in enumerate(kroneckers):
            self.register_buffer(f"first_{number}", pair.first)
            self.register_buffer(f"second_{number}", pair.second)

    def forward(self, x: Tensor | QuantizedRows, out: Tensor) -> Tensor:
        """x [..., K] and the layer's own result [..., N], which is written over -> [..., N]."""
        result, strengths = out.flatten(0, -2), None
        if self.table is not None and self.schedule is not None:
            strengths = self.table.index_select(0, self.schedule.on(self.table.device))[0].to(out.dtype)
        if isinstance(x, QuantizedRows):
            parts = (x.data.split(QUANTIZED_ROWS), x.scale.split(QUANTIZED_ROWS), result.split(QUANTIZED_ROWS))
            for data, scale, part in zip(*parts, strict=True):
                self._add(data, scale, part, strengths)
        else:
            self._add(x.to(out.dtype).flatten(0, -2), None, result, strengths)
        return result.view_as(out)

    def _add(self, rows: Tensor, scale: Tensor | None, result: Tensor, strengths: Tensor | None) -> None:
        """Add to result [L, N] what rows [L, K] give; with a scale [L, 1] the rows are 8-bit numbers."""
        if scale is not None and (self.num_fulls or self.num_kroneckers):
            rows, scale = QuantizedRows(rows, scale).dense(result.dtype), None
        if scale is not None:  # bf16 holds 8-bit numbers exactly, and their sums where fp16 would overflow
            rows = rows.to(torch.float32 if result.dtype == torch.float32 else torch.bfloat16)
        if self.rank:
            inner = rows @ self.down.to(rows.dtype).t()
            inner = inner if scale is None else (inner.float() * scale).to(result.dtype)
            inner = inner if strengths is None else inner * strengths[: self.rank]
            result.addmm_(inner, self.up.to(result.dtype).t())
        column = self.rank
        for number in range(self.num_fulls):
            whole = rows if strengths is None else rows * strengths[column + number]
            result.addmm_(whole, getattr(self, f"full_{number}").to(result.dtype).t())
        column += self.num_fulls
        for number in range(self.num_kroneckers):
            product = self._kronecker(rows, number)
            result += product if strengths is None else product * strengths[column + number]

    def _kronecker(self, rows: Tensor, number: int) -> Tensor:
        first, second = getattr(self, f"first_{number}").to(rows), getattr(self, f"second_{number}").to(rows)
        inner = rows.unflatten(-1, (first.shape[1], second.shape[1])) @ second.t()
        return (first @ inner).flatten(1)
