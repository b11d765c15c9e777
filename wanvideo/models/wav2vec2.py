"""wav2vec 2.0 as MultiTalk / InfiniteTalk hear through it: its transformer runs at the video's frame rate.

Legend: N samples at 16 kHz, F video frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError

CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)  # 320 samples a step
HEAD_WIDTH = 64
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
        steps = self.convolve(waveform)
        steps = F.interpolate(steps.float(), num_frames, mode="linear", align_corners=True)
        hidden, _ = self.feature_projection(steps.transpose(1, 2).to(self.dtype))
        outputs: list[Tensor] = []
        hooks = [layer.register_forward_hook(_collector(outputs)) for layer in self.encoder.layers]
        try:
            self.encoder(hidden)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(outputs).transpose(0, 1)

    def convolve(self, waveform: Tensor) -> Tensor:
        """waveform [N] -> [1, channels, steps], 50 steps a second; sound shorter than a step is filled with silence."""
        shortest = 400
        waveform = F.pad(waveform, (0, max(0, shortest - waveform.shape[0])))
        return self.feature_extractor(waveform[None].to(self.device, self.dtype))


def _collector(outputs: list[Tensor]):
    def collect(module: nn.Module, args: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    return collect
