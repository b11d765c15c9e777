"""The UMT5 text encoder."""

from __future__ import annotations

import html
import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 512
FIRST = "encoder.block.0.layer.0.SelfAttention"
LOOK_ALIKES = str.maketrans(
    {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in (*range(0xFF01, 0xFFF0), *range(0xFB00, 0xFB07))}
    | dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
)  # full-width forms and ligatures; quotes that are curly
logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of a UMT5 encoder, read from its tensors."""

    vocab_size: int
    dim: int
    head_width: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    num_buckets: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> TextEncoderConfig:
        """Args: shapes by the names of transformers' UMT5EncoderModel. Raises: CheckpointError for anything else."""
        try:
            vocab, dim = shapes["shared.weight"]
            buckets, heads = shapes[f"{FIRST}.relative_attention_bias.weight"]
            layers = [int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block.")]
            return cls(
                vocab_size=vocab,
                dim=dim,
                head_width=shapes[f"{FIRST}.q.weight"][0] // heads,
                ffn_dim=shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
                num_heads=heads,
                num_layers=1 + max(layers),
                num_buckets=buckets,
            )
        except KeyError as missing:
            raise CheckpointError(
                f"This is no UMT5 text encoder: the tensor {missing} is missing. "
                "Use umt5-xxl-enc-bf16.safetensors or models_t5_umt5-xxl-enc-bf16.pth."
            ) from None


class TextEncoder(nn.Module):
    """transformers' UMT5 encoder; the state dict's names are those of UMT5EncoderModel, the embedding once."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        with torch.device("cpu"):  # not on "meta", where parts of PyTorch 2.6 that come along cannot be imported
            from transformers import UMT5Config, UMT5EncoderModel

        self.config = config
        model = UMT5EncoderModel(
            UMT5Config(
                vocab_size=config.vocab_size,
                d_model=config.dim,
                d_kv=config.head_width,
                d_ff=config.ffn_dim,
                num_heads=config.num_heads,
                num_layers=config.num_layers,
                relative_attention_num_buckets=config.num_buckets,
                relative_attention_max_distance=128,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
            )
        )
        self.shared, self.encoder = model.shared, model.encoder
        # The stack holds the same embedding under a name of its own; it is handed embedded tokens instead.
        self.encoder.embed_tokens = None  # type: ignore[assignment]  # as said

    @property
    def device(self) -> torch.device:
        return self.shared.weight.device

    def encode(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """ids and mask [B, n] int64 -> for each text its real tokens [n_i, dim]."""
        highest = int(ids.max())
        if highest >= self.config.vocab_size:
            raise CheckpointError(
                f"The tokenizer does not belong to the text encoder: it gives token {highest}, and the encoder has "
                f"{self.config.vocab_size}. Use the tokenizer of google/umt5-xxl."
            )
        ids, mask = ids.to(self.device), mask.to(self.device)
        hidden = self.encoder(inputs_embeds=self.shared(ids), attention_mask=mask)[0]
        return [row[:length] for row, length in zip(hidden, mask.sum(1).tolist(), strict=True)]


def clean(prompt: str) -> str:
    """As the model's training texts were: entities resolved, look-alikes made plain, white space collapsed.

    Source: Wan2.1, where ftfy does the second of these; unlike there, text that was read in a wrong encoding stays.
    """
    plain = html.unescape(html.unescape(prompt)).translate(LOOK_ALIKES)
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", plain)).strip()


def encode_prompts(
    encoder: TextEncoder, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_tokens: int = MAX_TOKENS
) -> list[Tensor]:
    """Embeddings [n_i, dim] of each prompt; one that has more than `max_tokens` tokens is cut, and the log says so."""
    embeds = []
    for prompt in prompts:
        ids = tokenizer(clean(prompt), add_special_tokens=True)["input_ids"]
        if len(ids) > max_tokens:
            logger.warning("A prompt of %d tokens is cut to %d: %.60s...", len(ids), max_tokens, prompt)
            ids = [*ids[: max_tokens - 1], ids[-1]]
        tokens = torch.tensor([ids])
        embeds += encoder.encode(tokens, torch.ones_like(tokens))
    return embeds


def without_padding(embeds: Tensor) -> Tensor:
    """embeds [n, dim] up to the last row that is not zero, at least one row; zero rows are what others pad with."""
    filled = embeds.abs().amax(1).nonzero()
    return embeds[: int(filled[-1]) + 1 if len(filled) else 1]
