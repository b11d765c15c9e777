"""The registry of self-attention backends: what each needs, a probe against exact attention, and the choice by time.

A backend is one function over query, key, value [B, L, N, D] -> [B, L, N, D] and one row in `BACKENDS`. None is used
before it has been run at the model's head width and compared with exact attention on this device.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError
from .. import kernels
from ..quantized import FP8, LARGEST, QuantisedRows

logger = logging.getLogger("wanvideo")
PROBE_TOKENS, PROBE_HEADS = 1024, 4
TIMED_TOKENS = 16384


def _sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)


def _flash_2(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from flash_attn import flash_attn_func

    return flash_attn_func(query, key, value)


@cache
def _flash_3_function() -> Callable[..., Tensor]:
    for module in ("flash_attn_interface", "fa3_fwd_interface"):
        if importlib.util.find_spec(module):
            return importlib.import_module(module).flash_attn_func
    raise ImportError("neither flash_attn_interface nor fa3_fwd_interface is installed")


def _flash_3(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out = _flash_3_function()(query, key, value)
    return out[0] if isinstance(out, tuple) else out


def _hopper(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return kernels.hopper_kernels().attend(query, key, value)[0]


def _fp8(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key = (x if x.dtype == FP8 else x.clamp(-LARGEST[FP8], LARGEST[FP8]).to(FP8) for x in (query, key))
    return _hopper(query, key, value.bfloat16()).to(value.dtype)


def _hopper_rows(
    query: Tensor, key: Tensor, value: Tensor, regions: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | QuantisedRows, Tensor | None]:
    hopper, rounded = kernels.hopper_kernels(), query.dtype == dtype == FP8
    if regions is not None and len(regions) > hopper.MOST_REGIONS:
        regions = None
    out, shares = hopper.attend(query, key, value.bfloat16(), regions, rounded)
    rows = out if rounded else out[0].flatten(1).to(value.dtype)
    return rows, None if shares is None else shares[0]


def _sage(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from sageattention import sageattn

    return sageattn(query, key, value, tensor_layout="NHD")


def _sage_3(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from sageattn3 import sageattn3_blackwell

    heads_first = (x.transpose(1, 2).contiguous() for x in (query, key, value))
    return sageattn3_blackwell(*heads_first).transpose(1, 2)


def _needs(*modules: str, capability: tuple[int, int] | None = None, exactly: int | None = None):
    """A check for packages (any of `modules`) and for a GPU generation; it answers with the reason, or None."""

    def check(device: torch.device) -> str | None:
        if device.type != "cuda":
            return "it needs a CUDA device"
        have = torch.cuda.get_device_capability(device)
        if capability and have < capability:
            return f"it needs compute capability {capability[0]}.{capability[1]}, this GPU has {have[0]}.{have[1]}"
        if exactly and have[0] != exactly:
            return f"it needs compute capability {exactly}.x, this GPU has {have[0]}.{have[1]}"
        if not any(importlib.util.find_spec(module) for module in modules):
            return f"the package {' or '.join(modules)} is not installed"
        return None

    return check


@dataclass(frozen=True)
class Backend:
    """function over [B, L, N, D]; limits(device) -> why not, or None; error: largest relative error the probe allows.

    query_dtype: what queries and keys are best handed over in (None: as they are). exact: 16-bit arithmetic, so that
    `auto` may choose it. rows: `ops.attention.self_attention` in one pass, perhaps without the regions' shares.
    """

    name: str
    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    limits: Callable[[torch.device], str | None]
    error: float
    exact: bool = True
    query_dtype: torch.dtype | None = None
    rows: Callable[..., tuple[Tensor | QuantisedRows, Tensor | None]] | None = None


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("sdpa", _sdpa, lambda device: None, 0.01),
        Backend("flash_attn_2", _flash_2, _needs("flash_attn", capability=(8, 0)), 0.01),
        Backend("flash_attn_3", _flash_3, _needs("flash_attn_interface", "fa3_fwd_interface", exactly=9), 0.01),
        Backend("hopper", _hopper, _needs("triton", exactly=9), 0.01, rows=_hopper_rows),
        Backend("fp8", _fp8, _needs("triton", exactly=9), 0.06, exact=False, query_dtype=FP8, rows=_hopper_rows),
        Backend("sageattn", _sage, _needs("sageattention", capability=(8, 0)), 0.05, exact=False),
        Backend("sageattn_3", _sage_3, _needs("sageattn3", capability=(10, 0)), 0.25, exact=False),
    )
}  # fmt: skip
ATTENTION_MODES = ("auto", *BACKENDS)
# Names that users' graphs hold for backends that are not offered, and what is used in their place.
STAND_INS = {
    "comfy": "auto",
    "flash_attn_3_fp8": "fp8",
    "radial_sage_attention": "sageattn",
    "sageattn_compiled": "sageattn",
    "sageattn_ultravico": "sageattn",
    "xformers": "sdpa",
}


@cache
def refusal(name: str, device: torch.device, dtype: torch.dtype, head_width: int) -> str | None:
    """Why a backend must not be used on this device, or None: it is missing, it crashed, or its result is wrong."""
    backend = BACKENDS[name]
    reason = backend.limits(device)
    if reason or name == "sdpa":
        return reason
    generator = torch.Generator(device).manual_seed(1)
    shape = (1, PROBE_TOKENS, PROBE_HEADS, head_width)
    query, key, value = (torch.randn(shape, device=device, generator=generator).to(dtype) for _ in range(3))
    expected = _sdpa(query.float(), key.float(), value.float())
    try:
        ours = backend.function(query, key, value).float()
        error = float((ours - expected).norm() / expected.norm())
    except Exception as crash:  # noqa: BLE001 - a third-party kernel may fail in any way; the reason is passed on
        return f"it failed: {type(crash).__name__}: {str(crash).splitlines()[0] if str(crash) else ''}"
    if not error <= backend.error:
        return f"its result is off by {error:.3f}, at most {backend.error} is allowed"
    return None


@cache
def choose(name: str, device: torch.device, dtype: torch.dtype, head_width: int, num_heads: int) -> Backend:
    """The backend to use for a name of ATTENTION_MODES or STAND_INS, said once in the log.

    Raises: InputError for an unknown name.
    """
    wanted = STAND_INS.get(name, name)
    if wanted not in ATTENTION_MODES:
        raise InputError(f"attention_mode {name!r} is not known. Use one of {', '.join(ATTENTION_MODES)}.")
    if wanted != "auto":
        reason = refusal(wanted, device, dtype, head_width)
        if reason is None:
            return BACKENDS[wanted]
        logger.warning("Attention %s cannot be used here: %s.", wanted, reason)
    usable = [b for b in BACKENDS.values() if b.exact and refusal(b.name, device, dtype, head_width) is None]
    best = (
        usable[0] if len(usable) == 1 else min(usable, key=lambda b: _seconds(b, device, dtype, head_width, num_heads))
    )
    logger.info("Attention: %s is used.", best.name)
    return best


def _seconds(backend: Backend, device: torch.device, dtype: torch.dtype, head_width: int, num_heads: int) -> float:
    shape = (1, TIMED_TOKENS, min(num_heads, 8), head_width)
    query, key, value = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
    best = float("inf")
    for _ in range(4):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        backend.function(query, key, value)
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
