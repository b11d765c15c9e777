"""wav2vec 2.0 as MultiTalk / InfiniteTalk hear through it: its transformer runs at the video's frame rate.

Legend: N samples at 16 kHz, F video frames, C channels of the convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError

CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)  # 320 samples a step
HEAD_WIDTH = 64
PIECE_STEPS = 500  # steps convolved at once: 10 s, some 100 MB
POSITION = "encoder.pos_conv_embed.conv"


@dataclass(frozen=True)
class AudioEncoderConfig:
    """Sizes of a wav2vec 2.0 encoder (base), read from its tensors."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    conv_dims: tuple[int, ...]
    conv_kernels: tuple[int, ...]
    position_kernel: int
    position_groups: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> AudioEncoderConfig:
        """Args: shapes by the names of transformers' Wav2Vec2Model. Raises: CheckpointError for anything else."""
        if "feature_extractor.conv_layers.1.layer_norm.weight" in shapes:
            raise CheckpointError(
                "This is a wav2vec2 of another layout (large-lv60, XLSR): it normalises after every convolution. "
                "The adapter was trained with TencentGameMate/chinese-wav2vec2-base, whatever the language."
            )
        try:
            convs = [shapes[f"feature_extractor.conv_layers.{i}.conv.weight"] for i in range(len(CONV_STRIDES))]
            hidden = shapes["feature_projection.projection.weight"][0]
            position = shapes[f"{POSITION}.parametrizations.weight.original1"]
            layers = [int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers.")]
            return cls(
                hidden_size=hidden,
                num_layers=1 + max(layers),
                num_heads=max(1, hidden // HEAD_WIDTH) if hidden >= 2 * HEAD_WIDTH else 2,
                intermediate_size=shapes["encoder.layers.0.feed_forward.intermediate_dense.weight"][0],
                conv_dims=tuple(shape[0] for shape in convs),
                conv_kernels=tuple(shape[2] for shape in convs),
                position_kernel=position[2],
                position_groups=hidden // position[1],
            )
        except KeyError as missing:
            raise CheckpointError(
                f"This is no wav2vec2-base encoder: the tensor {missing} is missing. "
                "The adapter was trained with TencentGameMate/chinese-wav2vec2-base, whatever the language."
            ) from None


class AudioEncoder(nn.Module):
    """transformers' Wav2Vec2Model with an interpolation between its convolutions and its transformer.

    Source: the audio encoder of InfiniteTalk. The state dict's names are those of Wav2Vec2Model, weight norm spelled
    `parametrizations.weight.original0/1`.
    """

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        self.config = config
        model = Wav2Vec2Model(
            Wav2Vec2Config(
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                intermediate_size=config.intermediate_size,
                conv_dim=list(config.conv_dims),
                conv_kernel=list(config.conv_kernels),
                conv_stride=list(CONV_STRIDES),
                num_conv_pos_embeddings=config.position_kernel,
                num_conv_pos_embedding_groups=config.position_groups,
                attn_implementation="sdpa",
            )
        )
        self.feature_extractor = model.feature_extractor
        self.feature_projection = model.feature_projection
        self.encoder = model.encoder
        self.masked_spec_embed = model.masked_spec_embed

    @property
    def device(self) -> torch.device:
        return self.masked_spec_embed.device

    @property
    def dtype(self) -> torch.dtype:
        return self.masked_spec_embed.dtype

    def features(self, waveform: Tensor, num_frames: int) -> Tensor:
        """Layer outputs [num_frames, layers, hidden] of a waveform [N], which is heard as it is."""
        return self.understand(self.listen(waveform, num_frames))

    def listen(self, waveform: Tensor, num_frames: int) -> Tensor:
        """What the convolutions make of a whole waveform [N], interpolated to [num_frames, C].

        The result does not depend on how the sound is cut into pieces, which bound the memory that is used. Sound
        shorter than one step (25 ms) is filled with silence.
        """
        waveform = F.pad(waveform, (0, max(0, self._samples(1) - waveform.shape[0])))
        num_steps = (waveform.shape[0] - self._samples(1)) // math.prod(CONV_STRIDES) + 1
        scale, shift = self._normalisation(waveform)
        frames = torch.empty(num_frames, self.config.conv_dims[-1], device=self.device, dtype=self.dtype)
        # float32, as torch.nn.functional.interpolate(align_corners=True) does it
        positions = torch.arange(num_frames, dtype=torch.float32) * ((num_steps - 1) / max(1, num_frames - 1))
        size = max(1, PIECE_STEPS * num_frames // num_steps)
        for first in range(0, num_frames, size):
            here = positions[first : first + size]
            before, after = int(here[0]), min(int(here[-1]) + 1, num_steps - 1)
            steps = self._convolve(waveform, before, after + 1, scale, shift).float()
            low = here.long().clamp(max=after)
            weight = (here - low)[:, None].to(steps)
            low = (low - before).to(steps.device)
            high = (low + 1).clamp(max=after - before)
            frames[first : first + size] = torch.lerp(steps[low], steps[high], weight)
        return frames

    def understand(self, frames: Tensor) -> Tensor:
        """Layer outputs [F, layers, hidden] of frames [F, C], each of which attends to all the others."""
        hidden, _ = self.feature_projection(frames[None])
        outputs: list[Tensor] = []
        hooks = [layer.register_forward_hook(_collector(outputs)) for layer in self.encoder.layers]
        try:
            self.encoder(hidden)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(outputs).transpose(0, 1)

    def _samples(self, steps: int) -> int:
        """Samples from the first that is heard in the first of so many steps to the last that is in the last."""
        for kernel, stride in zip(reversed(self.config.conv_kernels), reversed(CONV_STRIDES), strict=True):
            steps = (steps - 1) * stride + kernel
        return steps

    def _first_convolution(self, waveform: Tensor) -> Tensor:
        return self.feature_extractor.conv_layers[0].conv(waveform[None, None].to(self.device, self.dtype))

    def _normalisation(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and offset [C, 1] of the only norm among the convolutions; its moments are those of the whole clip."""
        counts, means, variances = [], [], []
        for piece in _pieces(waveform, PIECE_STEPS * math.prod(CONV_STRIDES), self.config.conv_kernels[0]):
            variance, mean = torch.var_mean(self._first_convolution(piece)[0].float(), 1, correction=0)
            counts.append((piece.shape[0] - self.config.conv_kernels[0]) // CONV_STRIDES[0] + 1)
            means.append(mean.double().cpu())
            variances.append(variance.double().cpu())
        share = torch.tensor(counts, dtype=torch.float64)[:, None] / sum(counts)
        mean = (share * torch.stack(means)).sum(0)
        variance = (share * (torch.stack(variances) + (torch.stack(means) - mean).square())).sum(0)
        norm = self.feature_extractor.conv_layers[0].layer_norm
        scale = (variance + norm.eps).rsqrt().float().to(self.device) * norm.weight.float()
        return scale[:, None], (norm.bias.float() - mean.float().to(self.device) * scale)[:, None]

    def _convolve(self, waveform: Tensor, first: int, last: int, scale: Tensor, shift: Tensor) -> Tensor:
        """Steps first .. last - 1 of a whole waveform, [last - first, C]."""
        start = first * math.prod(CONV_STRIDES)
        hidden = self._first_convolution(waveform[start : start + self._samples(last - first)])
        hidden = F.gelu((hidden.float() * scale + shift).to(self.dtype))
        for layer in self.feature_extractor.conv_layers[1:]:
            hidden = layer(hidden)
        return hidden[0].T


def _pieces(waveform: Tensor, size: int, kernel: int) -> Iterator[Tensor]:
    """Parts from which a first convolution makes each of its outputs once; `size` is a multiple of its stride."""
    for start in range(0, waveform.shape[0], size):
        piece = waveform[start : start + size + kernel - CONV_STRIDES[0]]
        if piece.shape[0] >= kernel:
            yield piece


def _collector(outputs: list[Tensor]):
    def collect(module: nn.Module, args: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    return collect
