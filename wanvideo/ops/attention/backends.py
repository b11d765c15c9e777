"""The registry of self-attention backends: what each needs, a probe against exact attention, and the choice by time.

A backend is a function of `functions` and one row in `BACKENDS`. None is used before it has been run at the model's
head width and compared with exact attention on this device.
Legend: B batch, L query tokens, M key tokens, N heads, E head width.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ...errors import UnsupportedError
from ..quantized import FP8, QuantizedRows
from . import functions
from .lse import eager_attention
from .names import known
from .operands import Operands, OwnOperands
from .regions import RegionShares

logger = logging.getLogger("wanvideo")
PROBE_TOKENS, PROBE_HEADS = 1024, 4
TIMED_TOKENS = 16384


def _needs(
    *modules: str, capability: tuple[int, int] | None = None, exactly: int | None = None
) -> Callable[[torch.device], str | None]:
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
    """One way to compute attention of query [B, L, N, E] to key and value [B, M, N, E]: -> [B, L, N, E].

    Order of tokens: any, as long as key and value agree in theirs; positions are in queries and keys already (rope is
    applied before). The result has the query's order. So keys may be split over GPUs in any way, and joined in any.

    function(query, key, value, needs_lse) -> out, and where it is asked for the log-sum-exp of the scaled scores
    [B, N, L] float32, a natural logarithm, by which `lse.merge` joins attention to parts of the keys.
    limits(device) -> why not, or None. error: the largest relative error of out, and absolute one of the log-sum-exp,
    that the probe allows. exact: 16-bit arithmetic, so that `auto` may choose it. query_dtype: what queries and keys
    are best handed over in (None: as they are). lse_limit: why it has no log-sum-exp. rows:
    `dispatch.self_attention` in one pass, perhaps without the regions' shares.
    operands: makes what `function` and `rows` take; where attention is that of several GPUs, with the others.
    """

    name: str
    function: Callable[[Tensor, Tensor, Tensor, bool], functions.OutAndLse]
    limits: Callable[[torch.device], str | None]
    error: float
    exact: bool = True
    query_dtype: torch.dtype | None = None
    lse_limit: str | None = None
    rows: Callable[..., tuple[Tensor | QuantizedRows, RegionShares | None]] | None = None
    operands: Operands = OwnOperands()

    @property
    def has_lse(self) -> bool:
        return self.lse_limit is None

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.function(query, key, value, False)[0]

    def attend_with_lse(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Raises: UnsupportedError where this backend, or the installed version of its package, does not give it."""
        lse = None
        if self.has_lse:
            out, lse = self.function(query, key, value, True)
        if lse is None:
            reason = self.lse_limit or "the installed version does not return it"
            raise UnsupportedError(f"attention {self.name} gives no log-sum-exp ({reason}). Choose another one.")
        return out, lse


_FLASH_3 = ("flash_attn_interface", "fa3_fwd_interface")
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("sdpa", functions.sdpa, lambda device: None, 0.01),
        Backend("flash_attn_2", functions.flash_2, _needs("flash_attn", capability=(8, 0)), 0.01),
        Backend("flash_attn_3", functions.flash_3, _needs(*_FLASH_3, exactly=9), 0.01),
        Backend("hopper", functions.hopper, _needs("triton", exactly=9), 0.01, rows=functions.hopper_rows),
        Backend(
            "fp8", functions.fp8, _needs("triton", exactly=9), 0.06,
            exact=False, query_dtype=FP8, rows=functions.hopper_rows,
        ),
        Backend("sageattn", functions.sage, _needs("sageattention", capability=(8, 0)), 0.05, exact=False),
        Backend(
            "sageattn_3", functions.sage_3, _needs("sageattn3", capability=(10, 0)), 0.25,
            exact=False, lse_limit="the package sageattn3 does not return it",
        ),
    )
}  # fmt: skip


@cache
def refusal(
    name: str, device: torch.device, dtype: torch.dtype, head_width: int, needs_lse: bool = False
) -> str | None:
    """Why a backend must not be used on this device, or None: it is missing, it crashed, or its result is wrong.

    needs_lse: its log-sum-exp is needed, and held to the exact one too.
    """
    backend = BACKENDS[name]
    reason = backend.limits(device)
    if reason is None and needs_lse and not backend.has_lse:
        reason = f"the log-sum-exp is needed, and {backend.lse_limit}"
    if reason or (name == "sdpa" and not needs_lse):
        return reason
    generator = torch.Generator(device).manual_seed(1)
    shape = (1, PROBE_TOKENS, PROBE_HEADS, head_width)
    query, key, value = (torch.randn(shape, device=device, generator=generator).to(dtype) for _ in range(3))
    if needs_lse:
        key = key + 0.5  # a mean that a backend takes out of its keys is missing in their log-sum-exp
    expected, expected_lse = eager_attention(query.float(), key.float(), value.float())
    lse_error = 0.0
    try:
        if needs_lse:
            out, lse = backend.attend_with_lse(query, key, value)
            lse_error = float((lse - expected_lse).abs().max())
        else:
            out = backend.attend(query, key, value)
        error = float((out.float() - expected).norm() / expected.norm())
    except Exception as crash:  # noqa: BLE001 - a third-party kernel may fail in any way; the reason is passed on
        return f"it failed: {type(crash).__name__}: {str(crash).splitlines()[0] if str(crash) else ''}"
    if not error <= backend.error:
        return f"its result is off by {error:.3f}, at most {backend.error} is allowed"
    if not lse_error <= backend.error:
        return f"its log-sum-exp is off by {lse_error:.3f}, at most {backend.error} is allowed"
    return None


@cache
def choose(
    name: str, device: torch.device, dtype: torch.dtype, head_width: int, num_heads: int, needs_lse: bool = False
) -> Backend:
    """The backend to use for a name of ATTENTION_MODES or STAND_INS, said once in the log.

    needs_lse: only one that gives the log-sum-exp, which ring attention merges parts by.
    Raises: InputError for an unknown name; UnsupportedError where no backend is right on this device.
    """
    _check_dtype(device, dtype)
    wanted = known(name)
    if wanted != "auto":
        reason = refusal(wanted, device, dtype, head_width, needs_lse)
        if reason is None:
            return BACKENDS[wanted]
        logger.warning("Attention %s cannot be used here: %s.", wanted, reason)
    usable = [b for b in BACKENDS.values() if b.exact and refusal(b.name, device, dtype, head_width, needs_lse) is None]
    if not usable:
        reason = refusal("sdpa", device, dtype, head_width, needs_lse)
        raise UnsupportedError(f"No attention can be used on {device} ({reason}). Choose another device.")
    best = usable[0]
    if len(usable) > 1:
        best = min(usable, key=lambda b: seconds_of(b, device, dtype, head_width, num_heads))
    logger.info("Attention: %s is used.", best.name)
    return best


def _check_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Before Ampere no attention is fused in bf16: torch would hold the scores of all pairs of tokens at once."""
    if device.type != "cuda" or dtype != torch.bfloat16 or torch.version.cuda is None:
        return
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise UnsupportedError(
            f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor}) has no bf16. "
            "Use fp16: --dtype fp16, or base_precision fp16 where the model is loaded, and fp16 for the VAE."
        )


def seconds_of(
    backend: Backend, device: torch.device, dtype: torch.dtype, head_width: int, num_heads: int,
    num_tokens: int = TIMED_TOKENS,
) -> float:  # fmt: skip
    """The least of a few times of attention among `num_tokens` tokens, in at most 8 heads."""
    shape = (1, num_tokens, min(num_heads, 8), head_width)
    query, key, value = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
    best = float("inf")
    for _ in range(4):
        _wait_for(device)
        start = time.perf_counter()
        backend.attend(query, key, value)
        _wait_for(device)
        best = min(best, time.perf_counter() - start)
    return best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
