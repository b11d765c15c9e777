"""What LoRAs change of a transformer, by parameter, and which way: merged into it, or as a branch of its layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..models.transformer import WanTransformer
from ..ops.linear.layer import Linear
from ..ops.linear.low_rank import Strengths
from .deltas import Delta
from .file import Lora
from .use import LoraReport, LoraUse

Layers = Mapping[str, Linear]


@dataclass(frozen=True)
class Change:
    """One difference of one parameter, at its strength."""

    delta: Delta
    strengths: Strengths

    @property
    def is_constant(self) -> bool:
        return len(self.strengths) == 1


@dataclass(frozen=True)
class Plan:
    """All changes by parameter name. merged: those that are added to the parameter; unmerged: of matrices whose layer
    gets a LoRA branch."""

    merged: dict[str, list[Change]] = field(default_factory=dict)
    unmerged: dict[str, list[Change]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Change]:
        for part in (self.merged, self.unmerged):
            for changes in part.values():
                yield from changes


def make_plan(read: Sequence[tuple[LoraUse, Lora]], layers: Layers) -> Plan:
    """Args: read: uses, and what their files change."""
    plan = Plan()
    for use, lora in read:
        if not any(use.strengths):
            continue
        for name, deltas in lora.entries.items():
            if use.changes(name):
                part = plan.merged if _is_merged(use, _layer_of(name, layers)) else plan.unmerged
                part.setdefault(name, []).extend(Change(delta, use.strengths) for delta in deltas)
    return plan


def linear_layers(transformer: WanTransformer) -> Layers:
    """The layers by name whose matrices a LoRA can change."""
    return {name: module for name, module in transformer.named_modules() if isinstance(module, Linear)}


def plain_shapes(transformer: WanTransformer, layers: Layers) -> dict[str, tuple[int, ...]]:
    """Every parameter that a LoRA can change, in the shape that it has unquantized."""
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


def report(use: LoraUse, lora: Lora, layers: Layers, branch_bytes: Mapping[str, int]) -> LoraReport:
    """Args: branch_bytes: of all LoRAs' branches, by parameter name."""
    used = [name for name in lora.entries if use.changes(name)] if any(use.strengths) else []
    matrices = {name: _layer_of(name, layers) for name in used}
    merged = [name for name, layer in matrices.items() if layer is not None and _is_merged(use, layer)]
    unmerged = [name for name, layer in matrices.items() if layer is not None and not _is_merged(use, layer)]
    ranks = {delta.rank for name in used for delta in lora.entries[name] if delta.rank is not None}
    return LoraReport(
        name=lora.name,
        strength=use.strength,
        total=lora.total,
        matched=len(lora.entries),
        merged=len(merged),
        unmerged=len(unmerged),
        added=len(used) - len(merged) - len(unmerged),
        filtered=len(lora.entries) - len(used) if any(use.strengths) else 0,
        ranks=tuple(sorted(ranks)),
        branch_bytes=sum(branch_bytes.get(name, 0) for name in unmerged),
        unmatched=lora.unmatched,
        notes=lora.notes,
    )


def _is_merged(use: LoraUse, layer: Linear | None) -> bool:
    """Whether a difference of this layer's matrix is merged. None: it is no matrix of a linear layer."""
    return layer is None or (use.merge and len(use.strengths) == 1 and type(layer) is Linear)


def _layer_of(name: str, layers: Layers) -> Linear | None:
    return layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
