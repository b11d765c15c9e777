"""How long a forward and a window take on GPUs that were measured; nothing is guessed for others.

`speeds.json` holds for each GPU what one was measured to do inside this model: TFLOP/s of the matrices by the format of
their weights and of self-attention by its backend, megapixels a second of the VAE, GB/s from page-locked host memory.
Legend: L video tokens, D width, F feed-forward width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .budget import IMAGE_TOKENS, PROMPT_TOKENS

TABLE = Path(__file__).with_name("speeds.json")


@dataclass(frozen=True)
class Flops:
    """Of one forward: in the matrices of the blocks, and in all attention."""

    matmul: float
    attention: float

    @property
    def total(self) -> float:
        return self.matmul + self.attention


def forward_flops(
    num_tokens: int, dim: int, ffn_dim: int, num_layers: int, *, audio_tokens: int = 32, num_speakers: int = 1
) -> Flops:
    """What one pass over a window of `num_tokens` costs; keys and values of prompt, picture and speech are kept."""
    has_audio = num_speakers > 0
    matmul = num_tokens * dim * (8 * dim + 4 * dim + 4 * ffn_dim + (4 * dim if has_audio else 0))
    attention = 4 * num_tokens * dim * (num_tokens + IMAGE_TOKENS + PROMPT_TOKENS + audio_tokens * num_speakers)
    return Flops(float(matmul * num_layers), float(attention * num_layers))


@dataclass(frozen=True)
class Speeds:
    """What one GPU was measured to do; operations, bytes and pixels a second."""

    matmul: dict[str, float]
    attention: dict[str, float]
    decode: float
    encode: float
    host_bytes: float

    def forward_seconds(self, flops: Flops, weights: str, attention: str, streamed_bytes: int = 0) -> float | None:
        """Seconds of one pass, or None where the format of the weights was not measured.

        weights: bf16, fp8 ...; attention: name of a backend. streamed_bytes: of the blocks that stream.
        """
        if weights not in self.matmul:
            return None
        rate = self.attention.get(attention, self.attention["sdpa"])
        return max(flops.matmul / self.matmul[weights] + flops.attention / rate, streamed_bytes / self.host_bytes)


@dataclass(frozen=True)
class PartSeconds:
    """Seconds of what the windows of a video consist of, measured or estimated.

    Args:
        step: with all of its passes. decode: of a window.
        encode: of as many frames as a window has. encode_overlap: of those that it shares with the one before.
    """

    step: float
    decode: float = 0.0
    encode: float = 0.0
    encode_overlap: float = 0.0

    def of_video(self, num_windows: int, num_steps: int, num_references: int = 1) -> float:
        """Of windows one after another, for which each reference picture is encoded once."""
        windows = num_windows * (num_steps * self.step + self.decode)
        return windows + num_references * self.encode + (num_windows - 1) * self.encode_overlap


def speeds_of(device_name: str) -> Speeds | None:
    """The measured speeds of a GPU by the name that CUDA gives it (`NVIDIA H200`); None if it was not measured."""
    for entry in json.loads(TABLE.read_text(encoding="utf-8"))["devices"]:
        if entry["name"].lower() in device_name.lower():
            tera = {kind: {k: v * 1e12 for k, v in entry[f"{kind}_tflops"].items()} for kind in ("matmul", "attention")}
            pixels = entry["vae_mpixels"]
            return Speeds(**tera, decode=pixels["decode"] * 1e6, encode=pixels["encode"] * 1e6,
                          host_bytes=entry["host_gbytes"] * 1e9)  # fmt: skip
    return None
