"""wav2vec 2.0 as MultiTalk / InfiniteTalk use it: its transformer runs at the video's frame rate.

Legend: N samples at 16 kHz, F video frames, C channels of the convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError

CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)  # 320 samples a step
HEAD_WIDTH = 64
NEEDED = "Use TencentGameMate/chinese-wav2vec2-base, whatever the language: the adapter was trained with it."
PIECE_STEPS = 500  # steps convolved at once: 10 s, some 100 MB
POSITION = "encoder.pos_conv_embed.conv"


class Samples(Protocol):
    """A waveform [N] float32 at 16 kHz: a tensor, or whatever gives parts of one when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice, /) -> Tensor: ...


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
                "This is a wav2vec2 of another layout (large-lv60, XLSR): it normalizes after every convolution. "
                f"{NEEDED}"
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
                f"This is no wav2vec2-base encoder: the tensor {missing} is missing. {NEEDED}"
            ) from None


class AudioEncoder(nn.Module):
    """transformers' Wav2Vec2Model with an interpolation between its convolutions and its transformer.

    Source: the audio encoder of InfiniteTalk. The state dict's names are those of Wav2Vec2Model, weight norm spelled
    `parametrizations.weight.original0/1`.
    """

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        with torch.device("cpu"):  # see text_encoder.py
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
                attn_implementation="sdpa",  # type: ignore[call-arg]  # its base class takes it
            )
        )
        self.feature_extractor = model.feature_extractor
        self.feature_projection = model.feature_projection
        self.encoder = model.encoder
        self.encoder.pos_conv_embed = PositionalConvolution(model.encoder.pos_conv_embed.conv)
        self.masked_spec_embed = model.masked_spec_embed

    @property
    def device(self) -> torch.device:
        return self.masked_spec_embed.device

    @property
    def dtype(self) -> torch.dtype:
        return self.masked_spec_embed.dtype

    def features(self, waveform: Samples, num_frames: int) -> Tensor:
        """Layer outputs [num_frames, layers, hidden] of a waveform [N], which is taken as it is."""
        return self.encode(self.extract(waveform, num_frames).frames(0, num_frames))

    def extract(self, waveform: Samples, num_frames: int) -> ConvFeatures:
        """What the convolutions make of a waveform [N], interpolated to `num_frames`; made when it is asked for.

        Sound shorter than one step (25 ms) is filled with silence.
        """
        return ConvFeatures(self, waveform, num_frames)

    def encode(self, frames: Tensor) -> Tensor:
        """Layer outputs [F, layers, hidden] of frames [F, C], each of which attends to all the others."""
        outputs: list[Tensor] = []
        self.encode_layers(frames, lambda layer, output: outputs.append(output))
        return torch.stack(outputs, 1)

    def encode_layers(self, frames: Tensor, store: Callable[[int, Tensor], None]) -> None:
        """The same layer by layer, as they are made: store(index, [F, hidden])."""
        hidden, _ = self.feature_projection(frames[None])
        hooks = [layer.register_forward_hook(_storing(store, i)) for i, layer in enumerate(self.encoder.layers)]
        try:
            self.encoder(hidden)
        finally:
            for hook in hooks:
                hook.remove()


class PositionalConvolution(nn.Module):
    """transformers' Wav2Vec2PositionalConvEmbedding, computed in float32 on CPUs.

    There oneDNN 3.12 (torch 2.13) makes something else of some grouped convolutions in bf16, where it uses AMX.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[1, F, hidden] -> the same shape."""
        conv, length = self.conv, hidden_states.shape[1]
        dtype = torch.float32 if hidden_states.device.type == "cpu" else hidden_states.dtype
        bias = None if conv.bias is None else conv.bias.to(dtype)
        out = F.conv1d(
            hidden_states.mT.to(dtype), conv.weight.to(dtype), bias, padding=conv.padding, groups=conv.groups
        )
        return F.gelu(out[..., :length]).to(hidden_states.dtype).mT  # an even kernel gives one frame too many


class ConvFeatures:
    """Convolutional features of a clip at the video's frame rate.

    They do not depend on how the sound is cut into blocks, which bound the memory that is used.
    """

    def __init__(self, encoder: AudioEncoder, waveform: Samples, num_frames: int) -> None:
        self._encoder, self._config, self._num_frames = encoder, encoder.config, num_frames
        shortest = self._num_samples(1)
        self._waveform = F.pad(waveform[:], (0, shortest - len(waveform))) if len(waveform) < shortest else waveform
        self._num_steps = (len(self._waveform) - shortest) // math.prod(CONV_STRIDES) + 1
        self._block_frames = max(1, PIECE_STEPS * num_frames // self._num_steps)
        self._scale, self._shift = self._normalization()
        self._blocks: dict[int, Tensor] = {}

    def frames(self, start: int, stop: int) -> Tensor:
        """Frames start..stop [stop - start, C]. What the next call may share with this one is kept until then."""
        size = self._block_frames
        indices = range(start // size, -(-stop // size))
        self._blocks = {i: self._blocks[i] if i in self._blocks else self._block(i) for i in indices}
        offset = indices.start * size
        return torch.cat(tuple(self._blocks.values()))[start - offset : stop - offset]

    def _block(self, index: int) -> Tensor:
        first = index * self._block_frames
        last = min(first + self._block_frames, self._num_frames)
        # float32, as torch.nn.functional.interpolate(align_corners=True) does it
        stretch = (self._num_steps - 1) / max(1, self._num_frames - 1)
        here = torch.arange(first, last, dtype=torch.float32) * stretch
        before, after = int(here[0]), min(int(here[-1]) + 1, self._num_steps - 1)
        steps = self._convolve(before, after + 1).float()
        low = here.long().clamp(max=after)
        weight = (here - low)[:, None].to(steps)
        low = (low - before).to(steps.device)
        high = (low + 1).clamp(max=after - before)
        return torch.lerp(steps[low], steps[high], weight).to(self._encoder.dtype)

    def _num_samples(self, steps: int) -> int:
        """Samples from the first that is in the first of so many steps to the last that is in the last."""
        for kernel, stride in zip(reversed(self._config.conv_kernels), reversed(CONV_STRIDES), strict=True):
            steps = (steps - 1) * stride + kernel
        return steps

    def _first_convolution(self, piece: Tensor) -> Tensor:
        piece = piece[None, None].to(self._encoder.device, self._encoder.dtype)
        frames: Tensor = self._encoder.feature_extractor.conv_layers[0].conv(piece)
        return frames

    def _normalization(self) -> tuple[Tensor, Tensor]:
        """Factor and offset [C, 1] of the only norm among the convolutions; its moments are those of the whole clip."""
        kernel, device = self._config.conv_kernels[0], self._encoder.device
        counts, means, variances = [], [], []
        for piece in _pieces(self._waveform, PIECE_STEPS * math.prod(CONV_STRIDES), kernel):
            variance, mean = torch.var_mean(self._first_convolution(piece)[0].float(), 1, correction=0)
            counts.append((piece.shape[0] - kernel) // CONV_STRIDES[0] + 1)
            means.append(mean.double().cpu())
            variances.append(variance.double().cpu())
        share = torch.tensor(counts, dtype=torch.float64)[:, None] / sum(counts)
        mean = (share * torch.stack(means)).sum(0)
        variance = (share * (torch.stack(variances) + (torch.stack(means) - mean).square())).sum(0)
        norm = self._encoder.feature_extractor.conv_layers[0].layer_norm
        scale = (variance + norm.eps).rsqrt().float().to(device) * norm.weight.float()
        return scale[:, None], (norm.bias.float() - mean.float().to(device) * scale)[:, None]

    def _convolve(self, first: int, last: int) -> Tensor:
        """Steps first .. last - 1 of the clip, [last - first, C]."""
        start = first * math.prod(CONV_STRIDES)
        hidden = self._first_convolution(self._waveform[start : start + self._num_samples(last - first)])
        hidden = F.gelu((hidden.float() * self._scale + self._shift).to(self._encoder.dtype))
        for layer in self._encoder.feature_extractor.conv_layers[1:]:
            hidden = layer(hidden)
        return hidden[0].T


def _pieces(waveform: Samples, size: int, kernel: int) -> Iterator[Tensor]:
    """Parts from which a first convolution makes each of its outputs once; `size` is a multiple of its stride."""
    for start in range(0, len(waveform), size):
        piece = waveform[start : start + size + kernel - CONV_STRIDES[0]]
        if piece.shape[0] >= kernel:
            yield piece


def _storing(store: Callable[[int, Tensor], None], index: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        store(index, (output[0] if isinstance(output, tuple) else output)[0])

    return hook
