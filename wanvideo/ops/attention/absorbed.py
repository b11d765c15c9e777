"""Attention to a few keys with the projections folded in: keys times the query projection, values times the output's.

Source: q . k = x . (Wq^T k) and Wo (sum w v) = sum w (Wo v): with fewer keys in all heads than the model is wide, the
right sides are less work, and exact. Queries that are turned to a label of their own keep their projection.
Legend: G groups, L tokens of a group, M keys of a group, N heads, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import kernels
from ..compiled import opaque
from ..linear.layer import Linear
from ..quantized import FP8, QuantisedRows

FOLDED_ROWS = 512  # with fewer tokens a group, folding costs more than it saves


@opaque
def can_fold(hidden: Tensor, key: Tensor, query: Linear, out: Linear) -> bool:
    """Whether `attend_folded` is the faster way for hidden [G * L, D] and key [G, M, N, D/N]."""
    groups, num_keys, heads, _ = key.shape
    if not (kernels.usable(hidden) and key.dtype in (torch.bfloat16, torch.float16)):
        return False
    plain = query.lora is None and out.lora is None
    fewer = 2 * heads * num_keys <= hidden.shape[1] and hidden.shape[0] >= FOLDED_ROWS * groups
    fits = kernels.has_copy_engine(hidden.device) and kernels.folded_kernels().fits(heads, num_keys, hidden.shape[1])
    return plain and fewer and fits


def folded_input(query: Linear) -> torch.dtype:
    """In what dtype `attend_folded` takes its rows: fp8 stays fp8, all else is folded as plain numbers."""
    return FP8 if query.input_dtype == FP8 else query.bias.dtype


@opaque
def attend_folded(
    hidden: Tensor | QuantisedRows, key: Tensor, value: Tensor, query: Linear, out: Linear, labels: Tensor | None
) -> Tensor:
    """Exact attention of hidden [G * L, D] to its group's few keys, projections included: -> [G * L, D].

    Args: key, value [G, M, N, D/N]; query, out: the projections before and after, without LoRAs at their sides;
        labels: [G * L] float32 positions to which queries are turned (see ops.rope.label_rope), or None.
    """
    folded, (groups, num_keys, heads, width) = kernels.folded_kernels(), key.shape
    weight, scale = _matrix(out, value.dtype)
    dtype = value.dtype if scale is None else FP8
    if labels is None:
        keys = folded.fold_keys(key.contiguous(), *_matrix(query, key.dtype), query.bias, kernels.softmax_scale(width))
        weights = folded.folded_weights(hidden, keys, num_keys, dtype)
    else:
        turned = query(hidden).view(groups, -1, heads, width)
        few_weights = kernels.attention_kernels().few_weights
        weights = few_weights(turned, key.contiguous(), labels, dtype, folded.full_weight(dtype))
    values = folded.fold_values(value.contiguous(), weight)
    return folded.folded_sum(weights, values, scale, out.bias)


def _matrix(layer: Linear, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A layer's weight [out, in]: fp8 as it is stored, with its rows' scale, or in `dtype`."""
    if layer.input_dtype == FP8:
        return layer.weight, layer.weight_scale
    return layer.dense_weight(dtype), None
