"""The MultiTalk / InfiniteTalk audio adapter: audio features to tokens, and the attention to them.

Legend: S speakers, F pixel frames, T latent frames, A audio tokens a frame and speaker, C their width,
L video tokens, N heads, D head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..ops.attention.absorbed import absorbed_input_dtype, attend_absorbed, can_absorb
from ..ops.attention.dispatch import grouped_attention
from ..ops.attention.regions import FrameRegions, RegionShares
from ..ops.attention.rope import label_rope, rotate
from ..ops.linear.layer import Linear
from ..ops.quantized import QuantizedRows

LABEL_RANGE, LABEL_INTERVAL = 24.0, 4.0  # speaker labels of the published weights


@dataclass(frozen=True)
class AudioConfig:
    """Sizes of the adapter: features a frame, audio window of a frame in frames, tokens a frame and their width."""

    feature_dim: int
    window: int
    hidden_dim: int
    num_tokens: int
    token_dim: int
    group: int = 4  # pixel frames of a latent frame

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> AudioConfig:
        hidden, first = shapes["audio_proj.proj1.weight"]
        grouped = shapes["audio_proj.proj1_vf.weight"][1]
        feature = (grouped - first) // (cls.group - 1)
        width = shapes["audio_proj.norm.weight"][0]
        tokens = shapes["audio_proj.proj3.weight"][0] // width
        return cls(feature, first // feature, hidden, tokens, width)


class AudioProjection(nn.Module):
    """Turns windows of audio features into the tokens of each latent frame.

    Source: AudioProjModel of MultiTalk. Latent frame 0 takes the window of pixel frame 0; a later one takes the left
    half of its first frame's window, the centers of the middle frames and the right half of its last frame's.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.proj1 = Linear(config.window * config.feature_dim, config.hidden_dim)
        self.proj1_vf = Linear((config.window + config.group - 1) * config.feature_dim, config.hidden_dim)
        self.proj2 = Linear(config.hidden_dim, config.hidden_dim)
        self.proj3 = Linear(config.hidden_dim, config.num_tokens * config.token_dim)
        self.norm = nn.LayerNorm(config.token_dim)

    def forward(self, audio: Tensor) -> Tensor:
        """audio [S, F, window, layers, channels] with F = 4(T - 1) + 1 -> tokens [S, T, A, C]."""
        config, middle = self.config, self.config.window // 2
        audio = audio.to(self.proj1.weight.dtype).flatten(3)
        speakers = audio.shape[0]
        first = audio[:, :1].flatten(2)
        groups = audio[:, 1:].unflatten(1, (-1, config.group))
        later = torch.cat(
            (
                groups[:, :, 0, : middle + 1].flatten(2),
                groups[:, :, 1:-1, middle].flatten(2),
                groups[:, :, -1, middle:].flatten(2),
            ),
            -1,
        )
        hidden = torch.cat((F.relu(self.proj1(first)), F.relu(self.proj1_vf(later))), 1)
        tokens = self.proj3(F.relu(self.proj2(hidden)))
        tokens = tokens.view(speakers, -1, config.num_tokens, config.token_dim)
        normed: Tensor = self.norm(tokens.to(self.norm.weight.dtype))
        return normed.to(audio.dtype)


@dataclass
class AudioContext:
    """What all steps of a window share about sound.

    tokens [T, S * A, C]; regions: S + 1 of the first frame, the background last (None for one speaker); scale
    multiplies the attention's output; keys_values is filled block by block. features: what the tokens were made from;
    version: the weights that made them.
    """

    tokens: Tensor
    num_speakers: int
    regions: FrameRegions | None
    scale: float
    features: Tensor
    version: int
    keys_values: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def labels(self, shares: RegionShares) -> Tensor:
        """The speaker label of every video token, from the shares [R, L] of a block's own self-attention: [L] float32.

        Source: MultiTalk's label rotary embedding: a token is scored by the attention that it pays to each speaker's
        region of the reference frame, averaged over the region and the heads; the best region's score, stretched to
        that speaker's label range, is its position. Tokens that attend to the background get the middle label.
        """
        sizes, lows, ranges = self._label_ranges
        scores, least, most = (part / sizes for part in shares)
        positions = torch.addcmul(lows, scores - least, ranges / (most - least).clamp_min(1e-20))
        return positions.gather(0, scores.argmax(0, keepdim=True))[0]

    @cached_property
    def _label_ranges(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each region its tokens, its first label and how far its labels reach, [R, 1]: the background has one."""
        assert self.regions is not None, "only speakers who share a picture have labels"
        sizes = self.regions.members.sum(1, keepdim=True).clamp_min(1)
        lows, ranges = torch.full_like(sizes, LABEL_RANGE / 2), torch.zeros_like(sizes)
        lows[: self.num_speakers, 0] = _label_starts(self.num_speakers, sizes.device)
        ranges[: self.num_speakers] = LABEL_INTERVAL
        return sizes, lows, ranges


def _label_starts(num_speakers: int, device: torch.device) -> Tensor:
    """Two speakers sit at the ends of the label range, as trained; more take neighboring intervals."""
    distance = LABEL_RANGE - LABEL_INTERVAL if num_speakers == 2 else LABEL_INTERVAL
    return torch.arange(num_speakers, device=device) * distance  # made there: a copy would make the host wait


def speaker_regions(masks: Tensor, num_speakers: int, height: int, width: int) -> Tensor:
    """Speaker masks [S + 1, rows, columns] -> regions [S + 1, height * width] of zeros and ones.

    Raises: InputError when a mask is empty on the token grid, or their number does not fit the speakers.
    """
    if masks.shape[0] != num_speakers + 1:
        raise InputError(
            f"{masks.shape[0]} speaker masks are given for {num_speakers} speakers. "
            f"Give {num_speakers + 1}: one for each speaker and the background last."
        )
    grid = F.interpolate(masks[None].float(), (height, width), mode="nearest")[0].flatten(1).gt(0).float()
    for number, size in enumerate(grid.sum(1)[:num_speakers].tolist(), 1):
        if size == 0:
            raise InputError(
                f"The mask of speaker {number} covers none of the {height} x {width} tokens. Paint a larger region."
            )
    return grid


class AudioCrossAttention(nn.Module):
    """Every latent frame's video tokens attend to the audio tokens of the same latent frame."""

    def __init__(self, dim: int, num_heads: int, token_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = Linear(dim, dim)
        self.kv_linear = Linear(token_dim, 2 * dim)
        self.proj = Linear(dim, dim)

    def keys_values(self, context: AudioContext) -> tuple[Tensor, Tensor]:
        """Keys and values [T, S * A, N, D] of a window's audio tokens, keys rotated to their speaker's label."""
        key, value = self.kv_linear(context.tokens).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        if context.regions is not None:
            starts = _label_starts(context.num_speakers, key.device)
            labels = (starts + LABEL_INTERVAL / 2).repeat_interleave(key.shape[1] // context.num_speakers)
            table = label_rope(labels, key.shape[-1]).repeat(key.shape[0], 1, 1)
            key = rotate(key.flatten(0, 1), table).view_as(key)
        return key, value

    def absorbs(self, hidden: Tensor, keys_values: tuple[Tensor, Tensor]) -> bool:
        """Whether projections of hidden [L, dim] are absorbed into the keys and values."""
        return can_absorb(hidden, keys_values[0], self.q_linear, self.proj)

    def input_dtype(self, absorbed: bool) -> torch.dtype:
        """In what dtype `forward` takes its tokens fastest."""
        return absorbed_input_dtype(self.q_linear) if absorbed else self.q_linear.input_dtype

    def forward(
        self,
        hidden: Tensor | QuantizedRows,
        keys_values: tuple[Tensor, Tensor],
        labels: Tensor | None,
        absorbed: bool = False,
    ) -> Tensor:
        """hidden [L, dim] frame-major, keys and values of `keys_values`, labels [L] or None -> [L, dim].

        absorbed: what `absorbs` says.
        """
        key, value = keys_values
        if absorbed:
            return attend_absorbed(hidden, key, value, self.q_linear, self.proj, labels)
        query = self.q_linear(hidden).unflatten(-1, (self.num_heads, -1))
        out = grouped_attention(query.unflatten(0, (key.shape[0], -1)), key, value, labels)
        return self.proj(out.flatten(2).flatten(0, 1))
