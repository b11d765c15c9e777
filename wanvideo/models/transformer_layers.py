"""The layers of a transformer block: attention among video tokens, attention to prompt and picture, feed-forward.

Legend: L video tokens, D width, N heads, R regions of the first frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..ops.attention.dispatch import SDPA, dual_context_attention, self_attention
from ..ops.attention.operands import HeadNorm
from ..ops.attention.regions import FrameRegions, RegionShares
from ..ops.compiled import compile_disabled
from ..ops.linear.layer import Linear
from ..ops.norm import gelu, rms_norm_heads, rms_norm_keys
from ..ops.quantized import QuantizedRows

EPS = 1e-6

KeysValues = tuple[Tensor, Tensor]


@dataclass
class TextContext:
    """What all steps share about a prompt and the reference picture.

    text [n + 1, D]: the prompt's tokens and one token of padding, which stands there `pad_count` times; image [257, D]
    or None; keys_values is filled block by block. embeds: what text and image were made from; version: the weights that
    made them.
    """

    text: Tensor
    pad_count: int
    image: Tensor | None
    embeds: tuple[Tensor, Tensor | None]
    version: int
    keys_values: dict[int, ContextKeys] = field(default_factory=dict)


@dataclass
class ContextKeys:
    """A block's keys and values [tokens, N, D/N] of the prompt, and of the reference picture if there is one."""

    text: KeysValues
    image: KeysValues | None
    value_bound: Tensor  # what no result of attention to them exceeds


class SelfAttention(nn.Module):
    """Full attention over all video tokens, with normalized queries and keys and rotary positions."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend = SDPA
        self.q, self.k, self.v, self.o = (Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(dim, eps=EPS) for _ in range(2))

    def project(self, hidden: Tensor | QuantizedRows, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [L, D] -> query, key, value [1, L, N, D/N], each made as soon as its projection is there."""
        make, dtype, heads = self.backend.operands, self.backend.query_dtype, self.num_heads
        key = make.key(self.k(hidden), HeadNorm(self.norm_k.weight, EPS, heads, rope), dtype)
        value = make.value(self.v(hidden), heads)
        query = make.query(self.q(hidden), HeadNorm(self.norm_q.weight, EPS, heads, rope), dtype)
        return query, key, value

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, regions: FrameRegions | None
    ) -> tuple[Tensor, RegionShares | None]:
        """Also the shares [R, L] of each token's attention to the first frame that its regions get."""
        rows, shares = self_attention(query, key, value, regions, self.backend, self.o.input_dtype)
        return self.o(rows), shares


class CrossAttention(nn.Module):
    """Attention to the prompt and, with a second set of keys and values, to the reference picture."""

    def __init__(self, dim: int, num_heads: int, has_image: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_dtype: torch.dtype | None = None  # of queries and keys; None: as they are
        self.q, self.k, self.v, self.o = (Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(dim, eps=EPS) for _ in range(2))
        if has_image:
            self.k_img, self.v_img = Linear(dim, dim), Linear(dim, dim)
            self.norm_k_img = nn.RMSNorm(dim, eps=EPS)

    def keys_values(self, context: TextContext) -> ContextKeys:
        text = self._keys_values(context.text, self.k, self.v, self.norm_k)
        if context.image is None:
            return ContextKeys(text, None, _largest(text))
        image = self._keys_values(context.image, self.k_img, self.v_img, self.norm_k_img)
        return ContextKeys(text, image, _largest(text) + _largest(image))

    def _keys_values(self, tokens: Tensor, k: Linear, v: Linear, norm: nn.RMSNorm) -> KeysValues:
        key = rms_norm_keys(k(tokens), norm.weight, EPS, self.num_heads, dtype=self.query_dtype)
        return key, v(tokens).unflatten(-1, (self.num_heads, -1))

    def forward(self, hidden: Tensor | QuantizedRows, context: TextContext, keys_values: ContextKeys) -> Tensor:
        query = rms_norm_heads(self.q(hidden), self.norm_q.weight, EPS, self.num_heads, dtype=self.query_dtype)
        return self.o(_attend_context(query, context, keys_values, self.o.input_dtype))


def _largest(keys_values: KeysValues) -> Tensor:
    """The largest magnitude among the values, a float32 number."""
    return keys_values[1].abs().amax().float()


@compile_disabled  # compiled code would be made anew for a prompt of another length
def _attend_context(
    query: Tensor, context: TextContext, keys_values: ContextKeys, dtype: torch.dtype
) -> Tensor | QuantizedRows:
    return dual_context_attention(
        query, keys_values.text, keys_values.image, context.pad_count, keys_values.value_bound, dtype
    )


class FeedForward(nn.Sequential):
    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__(Linear(dim, ffn_dim), nn.GELU("tanh"), Linear(ffn_dim, dim))

    if TYPE_CHECKING:  # what is called of its layers; the one between them has its number in the files, `gelu` its work

        def __iter__(self) -> Iterator[Linear]: ...

        def __getitem__(self, idx: int | slice) -> Linear: ...

    def forward(self, hidden: Tensor | QuantizedRows) -> Tensor:
        widen, _, narrow = self
        return narrow(gelu(widen(hidden), narrow.input_dtype))
