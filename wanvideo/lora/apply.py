"""LoRAs on a loaded transformer: merged into its weights or unmerged, changed and taken back without loading it again.

A weight that is dense takes the difference in (float32 sum, rounded once); one that is quantized keeps its exact value
and its layer gets a LoRA branch. Everything else that a LoRA changes (biases, norms, modulation, the patch embedding)
is added to the parameter. Taking back is exact to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from ..checkpoints.reader import few
from ..memory.placement import check_parameters
from ..models.transformer import WanTransformer
from .file import check_lora, read_lora
from .plan import linear_layers, make_plan, plain_shapes, report
from .state import LoraState
from .use import LoraReport, LoraUse

logger = logging.getLogger("wanvideo")


def apply_loras(transformer: WanTransformer, loras: Sequence[LoraUse]) -> tuple[LoraReport, ...]:
    """Give a transformer exactly these LoRAs: those that it had before and that are not named again are taken back.

    Call it while no forward runs, wherever the blocks' weights are. Contexts that were made before stay usable. Files
    that are applied already, unchanged and with the same strengths, cost nothing.
    Returns: what became of each, which is also logged where anything changed.
    Raises: before anything is changed, CheckpointError or UnsupportedError for a file that is no usable LoRA, of which
        nothing fits, or that has values which are not finite.
    """
    state, identities = LoraState.of(transformer), tuple(use.identity for use in loras)
    if state.has(identities):
        return state.reports
    with transformer.block_provider.editing(transformer.blocks), torch.no_grad():
        layers = linear_layers(transformer)
        shapes = plain_shapes(transformer, layers)
        read = [(use, read_lora(check_lora(use.file), shapes)) for use in loras]
        branch_bytes = state.change(transformer, layers, make_plan(read, layers))
        check_parameters(transformer)
    transformer.weights_version += 1
    reports = tuple(report(use, lora, layers, branch_bytes) for use, lora in read)
    state.confirm(identities, reports)
    for entry in reports:
        _log(entry)
    return reports


def _log(entry: LoraReport) -> None:
    logger.info("%s", entry)
    if entry.unmatched:
        why = f" ({'; '.join(entry.notes[:2])})" if entry.notes else ""
        count, names = len(entry.unmatched), few(entry.unmatched)
        logger.warning("%s: %d differences fit nothing here and are left out: %s%s.", entry.name, count, names, why)
