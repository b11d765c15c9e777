"""Self-attention by each library, all of one form: query, key, value [B, L, N, E] and whether lse is wanted.

Each gives out [B, L, N, E] and, where it is wanted, the log-sum-exp [B, N, L] float32, else None or a tensor nobody
reads. Legend: B batch, L query tokens, M key tokens, N heads, E head width, R regions.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from .. import kernels
from ..quantized import FP8, LARGEST, QuantizedRows
from .lse import eager_attention, of_shifted_keys
from .regions import FrameRegions, RegionShares

OutAndLse = tuple[Tensor, Tensor | None]


def sdpa(query: Tensor, key: Tensor, value: Tensor, needs_lse: bool = False) -> OutAndLse:
    heads_first = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if not needs_lse:
        return F.scaled_dot_product_attention(*heads_first).transpose(1, 2), None
    fused = _fused_sdpa(*heads_first)
    if fused is None:
        return eager_attention(query, key, value)
    out, lse = fused
    batch, length, heads, _ = query.shape
    return out.transpose(1, 2), lse.reshape(batch, heads, -1)[..., :length]  # some kernels pad their rows


def _fused_sdpa(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
    """What torch itself would run on [B, N, L, E], with its log-sum-exp; None where that is no fused kernel."""
    if not query.is_cuda or query.shape[-1] % 8:
        return None
    aten, choice = torch.ops.aten, torch._fused_sdp_choice(query, key, value)
    if choice == SDPBackend.FLASH_ATTENTION.value:
        return aten._scaled_dot_product_flash_attention(query, key, value)[:2]
    if choice == SDPBackend.CUDNN_ATTENTION.value:
        return aten._scaled_dot_product_cudnn_attention(query, key, value, None, True)[:2]
    if choice == SDPBackend.EFFICIENT_ATTENTION.value:
        return aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[:2]
    return None


def flash_2(query: Tensor, key: Tensor, value: Tensor, needs_lse: bool = False) -> OutAndLse:
    from flash_attn import flash_attn_func

    if not needs_lse:
        return flash_attn_func(query, key, value), None
    out, lse, _ = flash_attn_func(query, key, value, return_attn_probs=True)
    return out, lse[..., : query.shape[1]]  # older versions round the number of rows up


@cache
def _flash_3_function() -> tuple[Callable[..., Tensor], bool]:
    """The function, and whether it has to be asked for its log-sum-exp."""
    for module in ("flash_attn_interface", "fa3_fwd_interface"):
        if importlib.util.find_spec(module):
            function = importlib.import_module(module).flash_attn_func
            return function, "return_attn_probs" in inspect.signature(function).parameters
    raise ImportError("neither flash_attn_interface nor fa3_fwd_interface is installed")


def flash_3(query: Tensor, key: Tensor, value: Tensor, needs_lse: bool = False) -> OutAndLse:
    function, is_asked = _flash_3_function()
    if needs_lse and is_asked:
        made = function(query, key, value, return_attn_probs=True)
    else:
        made = function(query, key, value)
    return made[:2] if isinstance(made, tuple) else (made, None)


def hopper(query: Tensor, key: Tensor, value: Tensor, needs_lse: bool = False) -> OutAndLse:
    made = kernels.hopper_kernels().attend(query, key, value, needs_lse=needs_lse)
    return made.out, made.lse


def fp8(query: Tensor, key: Tensor, value: Tensor, needs_lse: bool = False) -> OutAndLse:
    """Keys that are not in fp8 yet lose their mean first; of those that are see `ops.norm.key_shift`."""
    rounded, shift = _to_fp8(query), None
    if key.dtype != FP8:
        shift = key.mean((0, 1), dtype=torch.float32)
        key = _to_fp8(key - shift)
    out, lse = hopper(rounded, key, value.bfloat16(), needs_lse)
    if lse is not None and shift is not None:
        lse = of_shifted_keys(lse, query, shift)
    return out.to(value.dtype), lse


def _to_fp8(x: Tensor) -> Tensor:
    return x if x.dtype == FP8 else x.clamp(-LARGEST[FP8], LARGEST[FP8]).to(FP8)


def hopper_rows(
    query: Tensor, key: Tensor, value: Tensor, regions: FrameRegions | None, dtype: torch.dtype,
    value_bound: Tensor | None = None,
) -> tuple[Tensor | QuantizedRows, RegionShares | None]:  # fmt: skip
    """`ops.attention.dispatch.self_attention` in one pass; more regions than the kernel counts get no shares here.

    value_bound: what no value exceeds, from which the scale of rows in fp8 is made; None: it is found here.
    """
    library, in_fp8 = kernels.hopper_kernels(), query.dtype == dtype == FP8
    if regions is not None and len(regions.members) > library.MAX_REGIONS:
        regions = None
    made = library.attend(query, key, value.bfloat16(), regions, in_fp8, value_bound=value_bound)
    rows = made.out if in_fp8 else made.out[0].flatten(1).to(value.dtype)
    return rows, None if made.shares is None else RegionShares.of_all(made.shares[0])


def sage(query: Tensor, key: Tensor, value: Tensor, needs_lse: bool = False) -> OutAndLse:
    from sageattention import sageattn

    if not needs_lse:
        return sageattn(query, key, value, tensor_layout="NHD"), None
    return sageattn(query, key, value, tensor_layout="NHD", return_lse=True)


def sage_3(query: Tensor, key: Tensor, value: Tensor, needs_lse: bool = False) -> OutAndLse:
    from sageattn3 import sageattn3_blackwell

    heads_first = (x.transpose(1, 2).contiguous() for x in (query, key, value))
    return sageattn3_blackwell(*heads_first).transpose(1, 2), None
