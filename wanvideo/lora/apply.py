"""LoRAs on a loaded transformer: merged or beside the weights, changed and taken back without loading it again.

A weight that is dense takes the difference in (float32 sum, rounded once); one that is quantised keeps its exact value
and gets a low-rank side path. Everything else that a LoRA changes (biases, norms, modulation, the patch embedding) is
added to the parameter. Taking back is exact to the bit: merged matrices are read from the model's files again, and all
other parameters are kept as they were, a few MB. Where the weights came from memory and not from files, merged matrices
are kept too, in host memory: as many bytes as the matrices that LoRAs touch.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoints.load import source_of
from ..checkpoints.reader import PackedTensor, TensorSource, few
from ..errors import CheckpointError, InputError
from ..memory.placement import check_parameters
from ..models.transformer import WanTransformer
from ..ops.linear import low_rank
from ..ops.linear.layer import Linear
from ..ops.linear.low_rank import LowRankSide, Schedule, StepClock, strength_at
from .deltas import Delta, Full, Kronecker, add_delta
from .file import Lora, open_lora, read_lora

logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class LoraUse:
    """A LoRA and how it is used.

    Args:
        file: path, state dict or source.
        strength: factor of its differences; a tuple has one for each step, and the last one stands for all later steps.
        blocks: numbers of the blocks that it may change; None: all. What lies outside the blocks is always changed.
        skip_layers: parts of names; what has one of them in its name is left as it is.
        merge: False: nothing is merged into matrices. Otherwise they are merged where they are dense and the strength
            is one number.
    """

    file: str | Path | Mapping[str, Tensor] | TensorSource
    strength: float | tuple[float, ...] = 1.0
    blocks: frozenset[int] | None = None
    skip_layers: tuple[str, ...] = ()
    merge: bool = True

    def __post_init__(self) -> None:
        given = self.strength if isinstance(self.strength, tuple) else (self.strength,)
        if not given or not all(isinstance(value, int | float) and math.isfinite(value) for value in given):
            raise InputError(f"A LoRA's strength is {self.strength!r}. Give a number, or one number for each step.")

    @property
    def schedule(self) -> Schedule:
        """The strength by step, in one entry where it is always the same."""
        given = self.strength if isinstance(self.strength, tuple) else (self.strength,)
        return given if len(set(given)) > 1 else given[:1]

    def changes(self, name: str) -> bool:
        """Whether the filters let a parameter through."""
        parts = name.split(".")
        inside = parts[0] != "blocks" or self.blocks is None or int(parts[1]) in self.blocks
        return inside and not any(part in name for part in self.skip_layers)


@dataclass(frozen=True)
class LoraReport:
    """What became of a LoRA: of `total` parameters that it changes the model has `matched`, and the filters left out
    `filtered` of those. side_bytes: memory that its side paths share with those of other LoRAs."""

    name: str
    strength: float | tuple[float, ...]
    total: int
    matched: int
    merged: int
    beside: int
    added: int
    filtered: int
    ranks: tuple[int, ...]
    side_bytes: int
    unmatched: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        ways = ((self.merged, "merged"), (self.beside, "side path"), (self.added, "added to small parameters"))
        parts = [f"{count} {way}" for count, way in ways if count]
        if self.filtered:
            parts.append(f"{self.filtered} left out by its filter")
        if self.ranks:
            low, high = min(self.ranks), max(self.ranks)
            parts.append(f"rank {low}" if low == high else f"ranks {low} to {high}")
        parts.append(f"+{self.side_bytes / 1e6:.0f} MB")
        return f"LoRA {self.name} at {self.strength}: matched {self.matched}/{self.total}, {', '.join(parts)}."


@dataclass(frozen=True)
class _Change:
    """One difference of one parameter, at its strength."""

    delta: Delta
    schedule: Schedule

    @property
    def is_constant(self) -> bool:
        return len(self.schedule) == 1


@dataclass
class _Plan:
    """All changes by parameter: those that go into it, and those that go beside it."""

    into: dict[str, list[_Change]] = field(default_factory=dict)
    beside: dict[str, list[_Change]] = field(default_factory=dict)


@dataclass
class _Originals:
    """How a transformer was before its LoRAs. kept: parameters by name, in host memory; sums: of matrices that are in
    the model's files, to know them again; sided: layers with a side path."""

    kept: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, int] = field(default_factory=dict)
    sided: set[str] = field(default_factory=set)

    @property
    def names(self) -> list[str]:
        return [*self.kept, *self.sums]


_ORIGINALS: weakref.WeakKeyDictionary[nn.Module, _Originals] = weakref.WeakKeyDictionary()


def apply_loras(transformer: WanTransformer, loras: Sequence[LoraUse]) -> tuple[LoraReport, ...]:
    """Give a transformer exactly these LoRAs: those that it had before and that are not named again are taken back.

    Call it while no forward runs; blocks may be streamed. Contexts that were made before stay usable.
    Returns: what became of each, which is also logged.
    Raises: before anything is changed, CheckpointError or UnsupportedError for a file that is no usable LoRA.
    """
    layers = {name: module for name, module in transformer.named_modules() if isinstance(module, Linear)}
    shapes = _shapes(transformer, layers)
    read = [(use, read_lora(open_lora(use.file), shapes)) for use in loras]
    plan = _plan(read, layers)
    originals = _ORIGINALS.setdefault(transformer, _Originals())
    with transformer.block_provider.editing(transformer.blocks), torch.no_grad():
        scheduled = _write_parameters(transformer, originals, plan.into)
        transformer.clock = _clock(transformer, originals, plan, scheduled)
        sizes = _set_sides(transformer, originals, plan.beside, layers)
    transformer.weights_version += 1
    check_parameters(transformer)
    reports = tuple(_report(use, lora, layers, sizes) for use, lora in read)
    for report in reports:
        logger.info("%s", report)
        if report.unmatched:
            why = f" ({'; '.join(report.notes[:2])})" if report.notes else ""
            count, names = len(report.unmatched), few(report.unmatched)
            logger.warning(
                "%s: %d differences fit nothing here and are left out: %s%s.", report.name, count, names, why
            )
    return reports


def _shapes(transformer: WanTransformer, layers: Mapping[str, Linear]) -> dict[str, tuple[int, ...]]:
    """Every parameter that a LoRA can change, in the shape that it has unquantised."""
    inside = tuple(f"{name}." for name in layers)
    shapes = {
        name: tuple(parameter.shape)
        for name, parameter in transformer.named_parameters()
        if not name.startswith(inside)
    }
    for name, layer in layers.items():
        shapes[f"{name}.weight"] = (layer.out_features, layer.in_features)
        if layer.bias is not None:
            shapes[f"{name}.bias"] = (layer.out_features,)
    return shapes


def _is_merged(use: LoraUse, layer: Linear | None) -> bool:
    """Whether a difference of this layer's matrix is merged. None: it is no matrix of a linear layer."""
    return layer is None or (use.merge and len(use.schedule) == 1 and type(layer) is Linear)


def _layer_of(name: str, layers: Mapping[str, Linear]) -> Linear | None:
    return layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None


def _plan(read: Sequence[tuple[LoraUse, Lora]], layers: Mapping[str, Linear]) -> _Plan:
    plan = _Plan()
    for use, lora in read:
        if not any(use.schedule):
            continue
        for name, deltas in lora.entries.items():
            if use.changes(name):
                place = plan.into if _is_merged(use, _layer_of(name, layers)) else plan.beside
                place.setdefault(name, []).extend(_Change(delta, use.schedule) for delta in deltas)
    return plan


def _write_parameters(
    transformer: WanTransformer, originals: _Originals, into: Mapping[str, list[_Change]]
) -> dict[str, list[tuple[Tensor, Schedule]]]:
    """Original values and differences into the parameters.

    Returns: by name, the differences whose strength changes from step to step.
    """
    scheduled: dict[str, list[tuple[Tensor, Schedule]]] = {}
    for name in dict.fromkeys((*originals.names, *into)):
        parameter, changes = transformer.get_parameter(name), into.get(name, [])
        value = _original(transformer, originals, name)
        if not all(change.is_constant for change in changes):
            scheduled[name] = [(change.delta.dense("cpu"), change.schedule) for change in changes]
            value = _at_step(value, scheduled[name], 0)
        elif changes:
            value = value.to(transformer.device, torch.float32, copy=True)
            for change in changes:
                add_delta(value, change.delta, change.schedule[0])
        else:
            originals.kept.pop(name, None)
            originals.sums.pop(name, None)
        _write(parameter, value)
    return scheduled


def _write(parameter: Tensor, value: Tensor) -> None:
    with torch.inference_mode():  # in which alone tensors that were made in it may be written
        parameter.copy_(value)


def _at_step(original: Tensor, changes: Sequence[tuple[Tensor, Schedule]], step: int) -> Tensor:
    value = original.float()
    for difference, schedule in changes:
        value = value + strength_at(schedule, step) * difference.view_as(value)
    return value


def _original(transformer: WanTransformer, originals: _Originals, name: str) -> Tensor:
    """A parameter's value without LoRAs; at the first time it is made sure that it can be had again."""
    if name in originals.kept:
        return originals.kept[name]
    parameter, source = transformer.get_parameter(name), source_of(transformer)
    if name in originals.sums:
        value = _from_file(source, name, parameter.dtype)
        if _sum(value) != originals.sums[name]:
            raise CheckpointError(
                f"{source.name} has changed since it was loaded, so LoRAs cannot be taken out of {name} again. "
                "Load the model again."
            )
        return value
    stored = source.get(name) if source is not None else None
    if parameter.dim() == 2 and stored is not None and stored.shape == tuple(parameter.shape):
        originals.sums[name] = _sum(parameter)
        return parameter.detach()
    originals.kept[name] = parameter.detach().to("cpu", copy=True)
    return originals.kept[name]


def _from_file(source: TensorSource, name: str, dtype: torch.dtype) -> Tensor:
    stored = source[name]
    value = stored.dense(dtype) if isinstance(stored, PackedTensor) else stored.read().to(dtype, copy=True)
    stored.release()
    return value


def _sum(tensor: Tensor) -> int:
    """A number that tells two versions of a matrix apart, the same on every device."""
    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    words = data[: data.numel() // 8 * 8].view(torch.int64)
    return int(words.sum()) + 31 * int(words[::7].sum())


def _clock(
    transformer: WanTransformer,
    originals: _Originals,
    plan: _Plan,
    scheduled: Mapping[str, list[tuple[Tensor, Schedule]]],
) -> StepClock | None:
    changes = [change for part in (plan.into, plan.beside) for listed in part.values() for change in listed]
    schedules = dict.fromkeys(change.schedule for change in changes if not change.is_constant)
    if not schedules:
        return None
    if not scheduled:
        return StepClock(tuple(schedules))
    kept = {name: originals.kept[name] for name in scheduled}
    return StepClock(tuple(schedules), partial(_rewrite, weakref.ref(transformer), kept, scheduled))


def _rewrite(
    reference: weakref.ref[WanTransformer],
    kept: Mapping[str, Tensor],
    scheduled: Mapping[str, list[tuple[Tensor, Schedule]]],
    step: int,
) -> None:
    """Small parameters that have no side path are written anew where their strength changes."""
    transformer = reference()
    with transformer.block_provider.editing(transformer.blocks), torch.no_grad():
        for name, changes in scheduled.items():
            _write(transformer.get_parameter(name), _at_step(kept[name], changes, step))


def _set_sides(
    transformer: WanTransformer,
    originals: _Originals,
    beside: Mapping[str, list[_Change]],
    layers: Mapping[str, Linear],
) -> dict[str, int]:
    """Side paths as planned, and no others. Returns: their bytes by parameter name."""
    for name in originals.sided:
        layers[name].side = None
    originals.sided.clear()
    sizes = {}
    with torch.inference_mode(False), torch.no_grad():
        for name, changes in beside.items():
            path = name.removesuffix(".weight")
            side = _side(layers[path], changes, transformer.dtype, transformer.clock)
            layers[path].side = side
            originals.sided.add(path)
            sizes[name] = sum(tensor.numel() * tensor.element_size() for tensor in side.buffers())
    return sizes


def _side(layer: Linear, changes: Sequence[_Change], dtype: torch.dtype, clock: StepClock | None) -> LowRankSide:
    """One path for all LoRAs of a layer, where the layer is and in the precision that it computes in."""
    tensors = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    device = tensors[0].device
    if layer.bias is not None:
        dtype = layer.bias.dtype
    downs, ups, fulls, pairs = [], [], [], []
    columns: list[list[Schedule]] = [[], [], []]  # strengths of ranks, of whole matrices, of Kronecker products
    constant = None
    for change in changes:
        delta, once = change.delta, change.schedule[0] if change.is_constant else 1.0
        steps = (1.0,) if change.is_constant else change.schedule
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
    table = None
    if any(not change.is_constant for change in changes):
        entries = [schedule for group in columns for schedule in group]
        rows = [[strength_at(schedule, step) for schedule in entries] for step in range(clock.num_steps)]
        table = torch.tensor(rows, dtype=torch.float32, device=device)
    down = torch.cat(downs) if downs else torch.empty(0, layer.in_features, dtype=dtype, device=device)
    up = torch.cat(ups, 1) if ups else torch.empty(layer.out_features, 0, dtype=dtype, device=device)
    return LowRankSide(down, up, fulls, pairs, table, clock if table is not None else None)


def _report(use: LoraUse, lora: Lora, layers: Mapping[str, Linear], sizes: Mapping[str, int]) -> LoraReport:
    used = [name for name in lora.entries if use.changes(name)] if any(use.schedule) else []
    matrices = {name: _layer_of(name, layers) for name in used}
    merged = [name for name, layer in matrices.items() if layer is not None and _is_merged(use, layer)]
    beside = [name for name, layer in matrices.items() if layer is not None and not _is_merged(use, layer)]
    ranks = {delta.rank for name in used for delta in lora.entries[name] if delta.rank is not None}
    return LoraReport(
        name=lora.name,
        strength=use.strength,
        total=lora.total,
        matched=len(lora.entries),
        merged=len(merged),
        beside=len(beside),
        added=len(used) - len(merged) - len(beside),
        filtered=len(lora.entries) - len(used) if any(use.schedule) else 0,
        ranks=tuple(sorted(ranks)),
        side_bytes=sum(sizes.get(name, 0) for name in beside),
        unmatched=lora.unmatched,
        notes=lora.notes,
    )
