"""The LoRA branch of a layer, from the changes of its matrix.

Legend: N output features, K input features, R the ranks of all LoRAs of a layer together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.linear import low_rank
from ..ops.linear.layer import Linear
from ..ops.linear.low_rank import LoraBranch, LoraSchedule, Strengths, strength_at
from .deltas import Full, Kronecker
from .plan import Change


def make_branch(
    layer: Linear, changes: Sequence[Change], dtype: torch.dtype, schedule: LoraSchedule | None
) -> LoraBranch:
    """One branch for all LoRAs of a layer, where the layer is and in the precision that it computes in."""
    tensors = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    device = tensors[0].device
    if layer.bias is not None:
        dtype = layer.bias.dtype
    downs, ups, fulls, pairs = [], [], [], []
    columns: list[list[Strengths]] = [[], [], []]  # of ranks, of whole matrices, of Kronecker products
    constant = None
    for change in changes:
        delta, once = change.delta, change.strengths[0] if change.is_constant else 1.0
        steps = (1.0,) if change.is_constant else change.strengths
        if isinstance(delta, Kronecker):
            first, second = delta.pair(device)
            pairs.append(low_rank.Kronecker((first * once).to(dtype), second.to(dtype)))
            columns[2].append(steps)
        elif isinstance(delta, Full) or delta.rank is None:
            whole = delta.dense(device).view(layer.out_features, layer.in_features) * once
            if not change.is_constant:
                fulls.append(whole.to(dtype))
                columns[1].append(steps)
            else:
                constant = whole if constant is None else constant + whole
        else:
            down, up = delta.factors(device)
            downs.append(down.to(dtype))
            ups.append((up * once).to(dtype))
            columns[0] += [steps] * down.shape[0]
    if constant is not None:
        fulls.append(constant.to(dtype))
        columns[1].append((1.0,))
    if schedule is not None and all(change.is_constant for change in changes):
        schedule = None
    table = None if schedule is None else _table([entry for group in columns for entry in group], schedule, device)
    down = torch.cat(downs) if downs else torch.empty(0, layer.in_features, dtype=dtype, device=device)
    up = torch.cat(ups, 1) if ups else torch.empty(layer.out_features, 0, dtype=dtype, device=device)
    return LoraBranch(down, up, fulls, pairs, table, schedule)


def _table(entries: Sequence[Strengths], schedule: LoraSchedule, device: torch.device) -> Tensor:
    rows = [[strength_at(strengths, step) for strengths in entries] for step in range(schedule.num_steps)]
    return torch.tensor(rows, dtype=torch.float32, device=device)
