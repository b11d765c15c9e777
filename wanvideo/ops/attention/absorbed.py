"""Attention to a few keys with absorbed projections: keys times the query projection, values times the output's.

Source: q . k = x . (Wq^T k) and Wo (sum w v) = sum w (Wo v): with fewer keys in all heads than the model is wide, the
right sides are less work, and exact. Queries that are rotated to a label of their own keep their projection.
Legend: G groups, L tokens of a group, M keys of a group, N heads, E head width, D = N * E model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import kernels
from ..compiled import compile_disabled
from ..linear.layer import Linear, RowScaledLinear
from ..quantized import FP8, QuantizedRows

MIN_ROWS = 512  # with fewer tokens a group, absorbing costs more than it saves


@compile_disabled
def can_absorb(hidden: Tensor, key: Tensor, query: Linear, out: Linear) -> bool:
    """Whether `attend_absorbed` is the faster way for hidden [G * L, D] and key [G, M, N, E]."""
    groups, num_keys, heads, _ = key.shape
    if not (kernels.usable(hidden) and key.dtype in (torch.bfloat16, torch.float16)):
        return False
    plain = query.lora is None and out.lora is None
    fewer = 2 * heads * num_keys <= hidden.shape[1] and hidden.shape[0] >= MIN_ROWS * groups
    fits = kernels.has_copy_engine(hidden.device) and kernels.absorbed_kernels().fits(heads, num_keys, hidden.shape[1])
    return plain and fewer and fits


def absorbed_input_dtype(query: Linear) -> torch.dtype:
    """In what dtype `attend_absorbed` takes its rows: fp8 stays fp8, all else is absorbed in its own dtype."""
    return FP8 if query.input_dtype == FP8 else query.bias.dtype


@compile_disabled
def attend_absorbed(
    hidden: Tensor | QuantizedRows, key: Tensor, value: Tensor, query: Linear, out: Linear, labels: Tensor | None
) -> Tensor:
    """Exact attention of hidden [G * L, D] to its group's few keys, projections included: -> [G * L, D].

    Args: key, value [G, M, N, E]; query, out: the projections before and after, without unmerged LoRAs;
        labels: [G * L] float32 positions to which queries are rotated (see ops.rope.label_rope), or None.
    """
    library, (groups, num_keys, heads, width) = kernels.absorbed_kernels(), key.shape
    weight, scale = _matrix(out, value.dtype)
    dtype = value.dtype if scale is None else FP8
    if labels is None:
        keys = library.absorb_keys(
            key.contiguous(), *_matrix(query, key.dtype), query.bias, kernels.softmax_scale(width)
        )
        weights = library.absorbed_weights(hidden, keys, num_keys, dtype)
    else:
        projected = query(hidden).view(groups, -1, heads, width)
        grouped_weights = kernels.attention_kernels().grouped_weights
        weights = grouped_weights(projected, key.contiguous(), labels, dtype, library.full_weight(dtype))
    values = library.absorb_values(value.contiguous(), weight)
    return library.absorbed_sum(weights, values, scale, out.bias)


def _matrix(layer: Linear, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A layer's weight [out, in]: fp8 as it is stored, with its rows' scale, or in `dtype`."""
    if isinstance(layer, RowScaledLinear) and layer.input_dtype == FP8:
        return layer.weight, layer.weight_scale
    return layer.dense_weight(dtype), None
