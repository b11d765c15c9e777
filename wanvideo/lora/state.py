"""What LoRAs have done to one transformer, and how it is undone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..models.transformer import WanTransformer
from ..ops.linear.low_rank import LoraSchedule, Strengths, strength_at
from ..protocols import BlockModel
from .branch import make_branch
from .deltas import add_delta
from .originals import Originals
from .plan import Change, Layers, Plan
from .use import LoraReport

Identities = tuple[object, ...]  # of uses, see LoraUse.identity
Scheduled = dict[str, list[tuple[Tensor, Strengths]]]


class LoraState:
    """The LoRAs of one transformer: its originals, the strengths by step, and what is applied now.

    The transformer carries it as `loras`. It holds no reference to the transformer, which is freed when its user lets
    go of it.
    """

    def __init__(self, originals: Originals) -> None:
        self.originals = originals
        self.schedule: LoraSchedule | None = None
        self.reports: tuple[LoraReport, ...] = ()
        self._scheduled: Scheduled = {}  # small parameters whose strength changes, which have no branch
        self._branches: set[str] = set()  # layers that have one
        self._applied: Identities | None = ()  # None while they are being changed

    @classmethod
    def of(cls, transformer: WanTransformer) -> LoraState:
        """The state that a transformer carries, made when it gets its first LoRAs."""
        if not isinstance(transformer.loras, LoraState):
            transformer.loras = cls(Originals(transformer.source))
        return transformer.loras

    def has(self, identities: Identities) -> bool:
        """Whether exactly the uses of these identities are applied, so that applying them would change nothing."""
        return identities == self._applied and None not in identities

    def change(self, transformer: WanTransformer, layers: Layers, plan: Plan) -> dict[str, int]:
        """Bring the transformer's weights to what is planned, whatever LoRAs it has.

        Called while its blocks may be edited; if it fails, the next call repairs what was left undone.
        Returns: bytes of LoRA branches by parameter name.
        """
        self._applied, self.reports, self._scheduled = None, (), {}
        self._scheduled = self._write_parameters(transformer, plan.merged)
        strengths = dict.fromkeys(change.strengths for change in plan if not change.is_constant)
        self.schedule = LoraSchedule(tuple(strengths)) if strengths else None
        return self._set_branches(transformer, layers, plan.unmerged)

    def confirm(self, identities: Identities, reports: tuple[LoraReport, ...]) -> None:
        """What was planned is applied now, as a whole."""
        self._applied, self.reports = identities, reports

    @property
    def applied(self) -> tuple[str, ...]:
        """Names and strengths of what is applied."""
        return tuple(f"{report.name} at {report.strength}" for report in self.reports)

    def prepare(self, device: torch.device) -> None:
        """Have the step's number on the device before compiled code asks: it must find what it finds later."""
        if self.schedule is not None:
            self.schedule.on(device)

    def set_step(self, model: BlockModel, step: int) -> bool:
        """Go to a step, counted from 0. Returns: whether any strength is another one now."""
        if self.schedule is None or not self.schedule.set_step(step):
            return False
        if self._scheduled:
            with model.block_provider.editing(model.blocks), torch.no_grad():
                for name, changes in self._scheduled.items():
                    _write(model.get_parameter(name), _at_step(self.originals.kept[name], changes, step))
        return True

    def _write_parameters(self, transformer: WanTransformer, merged: Mapping[str, list[Change]]) -> Scheduled:
        """Original values and differences into the parameters.

        Returns: by name, the differences whose strength changes from step to step.
        """
        scheduled: Scheduled = {}
        for name in dict.fromkeys((*self.originals.names, *merged)):
            changes = merged.get(name, [])
            value = self.originals.value(transformer, name)
            if not all(change.is_constant for change in changes):
                scheduled[name] = [(change.delta.dense("cpu"), change.strengths) for change in changes]
                value = _at_step(value, scheduled[name], 0)
            elif changes:
                value = value.to(transformer.device, torch.float32, copy=True)
                for change in changes:
                    add_delta(value, change.delta, change.strengths[0])
            _write(transformer.get_parameter(name), value)
            if not changes:
                self.originals.forget(name)
        return scheduled

    def _set_branches(
        self, transformer: WanTransformer, layers: Layers, unmerged: Mapping[str, list[Change]]
    ) -> dict[str, int]:
        """Branches as planned, and no others."""
        for path in self._branches:
            layers[path].lora = None
        self._branches.clear()
        sizes = {}
        with torch.inference_mode(False), torch.no_grad():
            for name, changes in unmerged.items():
                path = name.removesuffix(".weight")
                branch = make_branch(layers[path], changes, transformer.dtype, self.schedule)
                layers[path].lora = branch
                self._branches.add(path)
                sizes[name] = sum(tensor.numel() * tensor.element_size() for tensor in branch.buffers())
        return sizes


def _write(parameter: Tensor, value: Tensor) -> None:
    with torch.inference_mode():  # in which alone tensors that were made in it may be written
        parameter.copy_(value)


def _at_step(original: Tensor, changes: Sequence[tuple[Tensor, Strengths]], step: int) -> Tensor:
    value = original.float()
    for difference, strengths in changes:
        value = value + strength_at(strengths, step) * difference.view_as(value)
    return value
