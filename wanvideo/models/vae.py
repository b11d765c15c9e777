"""The Wan2.1 video VAE: causal in time, so a clip of any length streams through it a few frames at a time.

Legend: F pixel frames = 4(T - 1) + 1, T latent frames, H W rows and columns, C channels. Inside, tensors are
[1, C, frames, H, W] with channels last in memory. Module names are those of the official checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, InputError
from ..ops.conv import conv2d_doubling, conv2d_halving, conv3d, conv3d_doubling_frames, conv3d_halving_frames
from ..ops.pixel_norm import pixel_norm, pixel_norm_silu_
from ..protocols import RowSplit
from .vae_tiling import Tiling, over_tiles

LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
LATENT_CHANNELS = 16
NEEDED = "Use Wan2_1_VAE_bf16.safetensors or Wan2.1_VAE.pth."
WIDTHS = (1, 2, 4, 4)  # of the levels, in units of the base width
GROUP = 4  # pixel frames of a latent frame, but for the first
CHUNK, CPU_CHUNK = 2, 5  # latent frames that go through together; a CPU's convolutions need more to be efficient


@dataclass(frozen=True)
class VAEConfig:
    """dim: base width, 96 in the published VAE."""

    dim: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> VAEConfig:
        """Args: shapes of the tensors by their official names. Raises: CheckpointError when it cannot be this VAE."""
        try:
            latent, dim = shapes["conv2.weight"][0], shapes["encoder.conv1.weight"][0]
        except KeyError as missing:
            raise CheckpointError(f"This is no Wan2.1 VAE: the tensor {missing} is missing. {NEEDED}") from None
        if latent != LATENT_CHANNELS:
            raise CheckpointError(
                f"This VAE has {latent} latent channels (Wan2.2 has 48), a Wan2.1 VAE {LATENT_CHANNELS}. {NEEDED}"
            )
        return cls(dim)


class Stream:
    """What a clip's earlier frames left behind in each convolution, while its later ones pass.

    rows: who has the rows above and below, where a picture's rows are split.
    """

    def __init__(self, rows: RowSplit | None = None) -> None:
        self._frames: dict[nn.Module, Tensor] = {}
        self.rows = rows

    def knows(self, layer: nn.Module) -> bool:
        return layer in self._frames

    def remember(self, layer: nn.Module, frames: Tensor) -> None:
        self._frames[layer] = frames.clone(memory_format=torch.preserve_format)

    def recall(self, layer: nn.Module) -> Tensor | None:
        return self._frames.get(layer)


class CausalConv3d(nn.Module):
    """A convolution that looks back in time only; before the clip's first frame there is nothing but zeros."""

    def __init__(self, into: int, out: int, kernel: int | tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel_size = (kernel, kernel, kernel) if isinstance(kernel, int) else kernel
        self.weight = nn.Parameter(torch.empty(out, into, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out))

    def forward(
        self, x: Tensor, stream: Stream, norm: PixelNorm | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Convolve x [1, C, t, H, W], or SiLU of its norm, behind the frames that the stream remembers.

        residual: added to the result.
        """
        frames = self.behind_history(x, stream, norm)
        if stream.rows is None or self.kernel_size[1] == 1:
            return conv3d(frames, self.weight, self.bias, residual)
        return conv3d(_with_edges(frames, stream.rows), self.weight, self.bias, residual, has_edges=True)

    def behind_history(self, x: Tensor, stream: Stream, norm: PixelNorm | None = None) -> Tensor:
        """x or SiLU of its norm, and before it the earlier frames that the kernel reaches back to."""
        history = self.kernel_size[0] - 1
        if not history:
            return x
        frames = self._behind_history(x, stream, history)
        new = frames[:, :, history:]
        if norm is None:
            new.copy_(x)
        else:
            pixel_norm_silu_(new, x, norm.gamma)
        stream.remember(self, frames[:, :, -history:])
        return frames

    def _behind_history(self, x: Tensor, stream: Stream, history: int) -> Tensor:
        """A buffer for `history` earlier frames, which are filled in, and the frames of x."""
        size = (*x.shape[:2], history + x.shape[2], *x.shape[3:])
        frames = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
        earlier = stream.recall(self)
        if earlier is None:
            frames[:, :, :history].zero_()
        else:
            frames[:, :, :history].copy_(earlier)
        return frames


class PixelNorm(nn.Module):
    """RMS norm over the channels of each pixel; gamma [C, 1, 1(, 1)]."""

    def __init__(self, dim: int, axes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(dim, *(1,) * axes))

    def forward(self, x: Tensor) -> Tensor:
        return pixel_norm(x, self.gamma)


class ResidualBlock(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            PixelNorm(into, 3), nn.SiLU(), CausalConv3d(into, out, 3),
            PixelNorm(out, 3), nn.SiLU(), nn.Dropout(0), CausalConv3d(out, out, 3),
        )  # fmt: skip
        self.shortcut = CausalConv3d(into, out, 1) if into != out else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        norm_in, _, conv_in, norm_out, _, _, conv_out = self.residual
        hidden = conv_in(x, stream, norm_in)
        out: Tensor = conv_out(hidden, stream, norm_out, x if self.shortcut is None else self.shortcut(x, stream))
        return out


class AttentionBlock(nn.Module):
    """One-head attention among the pixels of each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = PixelNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        frames = _as_pictures(x)
        height, width = frames.shape[-2:]
        tokens = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2)
        query, key_value = tokens.tensor_split((x.shape[1],), -1)
        if stream.rows is not None:
            key_value = stream.rows.gather(key_value)
        out = F.scaled_dot_product_attention(query[:, None], *key_value[:, None].chunk(2, -1))[:, 0]
        out = out.transpose(1, 2).unflatten(2, (height, width))
        return _as_clip(frames + self.proj(out))


class Resample(nn.Module):
    """Halves or doubles rows and columns, and frames too at the levels that have a time_conv.

    In time the first frame of a clip stands for itself; frames are paired from the second on.
    """

    def __init__(self, dim: int, direction: str, in_time: bool) -> None:
        super().__init__()
        self.down = direction == "down"
        if self.down:
            self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
            self.time_conv = CausalConv3d(dim, dim, (3, 1, 1)) if in_time else None
        else:
            self.resample = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(dim, dim // 2, 3, padding=1)
            )
            self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1)) if in_time else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        if self.time_conv is not None and not self.down:
            x = self._double_frames(x, stream, self.time_conv)
        (weight, bias), rows = self._filters(), stream.rows
        if rows is None:
            x = (conv2d_halving if self.down else conv2d_doubling)(x, weight, bias)
        elif self.down:  # the row above belongs to the pair before, which is not asked for
            pairs = _with_edges(x, rows)[:, :, :, 1:]
            x = conv2d_halving(F.pad(pairs, (0, 0, 0, 1)), weight, bias)[:, :, :, :-1]
            x = x.contiguous(memory_format=torch.channels_last_3d)
        else:
            x = conv2d_doubling(_with_edges(x, rows), weight, bias, has_edges=True)
        return x if self.time_conv is None or not self.down else self._halve_frames(x, stream, self.time_conv)

    def _filters(self) -> tuple[Tensor, Tensor]:
        """Weight [N, C, 3, 3] and bias [N] of the convolution of rows and columns."""
        layer = self.resample[1]
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None, "as it was made"
        return layer.weight, layer.bias

    def _double_frames(self, x: Tensor, stream: Stream, conv: CausalConv3d) -> Tensor:
        if not stream.knows(self):
            stream.remember(self, x[:, :, :1])
            first, rest = x[:, :, :1], x[:, :, 1:]
            return torch.cat((first, self._double_frames(rest, stream, conv)), 2) if rest.shape[2] else first
        return conv3d_doubling_frames(conv.behind_history(x, stream), conv.weight, conv.bias)

    def _halve_frames(self, x: Tensor, stream: Stream, conv: CausalConv3d) -> Tensor:
        last = stream.recall(self)
        stream.remember(self, x[:, :, -1:])
        if last is None:
            first, rest = x[:, :, :1], x[:, :, 1:]
            return torch.cat((first, _halved(x, conv)), 2) if rest.shape[2] else first
        return _halved(torch.cat((last, x), 2), conv)


def _halved(frames: Tensor, conv: CausalConv3d) -> Tensor:
    """Frames behind the one before them: [1, C, 1 + 2n, H, W] -> [1, C, n, H, W]."""
    return conv3d_halving_frames(frames, conv.weight, conv.bias)


def _with_edges(x: Tensor, rows: RowSplit) -> Tensor:
    """Rows between those next to them: [1, C, t, H, W] -> [1, C, t, H + 2, W]."""
    size = (*x.shape[:3], x.shape[3] + 2, x.shape[4])
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    out[:, :, :, 1:-1] = x
    out[:, :, :, :1], out[:, :, :, -1:] = rows.edges(x)
    return out


def _as_pictures(x: Tensor) -> Tensor:
    """[1, C, t, H, W] -> [t, C, H, W], the same memory."""
    return x[0].transpose(0, 1)


def _as_clip(pictures: Tensor) -> Tensor:
    return pictures.transpose(0, 1)[None]


def _middle(dim: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim))


def _head(dim: int, out: int) -> nn.Sequential:
    return nn.Sequential(PixelNorm(dim, 3), nn.SiLU(), CausalConv3d(dim, out, 3))


class Encoder(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        widths = [dim * factor for factor in WIDTHS]
        self.conv1 = CausalConv3d(3, dim, 3)
        layers: list[nn.Module] = []
        width = dim
        for level, out in enumerate(widths):
            layers += [ResidualBlock(width, out), ResidualBlock(out, out)]
            width = out
            if level < len(widths) - 1:
                layers.append(Resample(out, "down", in_time=level > 0))
        self.downsamples = nn.Sequential(*layers)
        self.middle = _middle(width)
        self.head = _head(width, 2 * LATENT_CHANNELS)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = self.conv1(x, stream)
        for layer in (*self.downsamples, *self.middle):
            x = layer(x, stream)
        norm, _, conv = self.head
        out: Tensor = conv(x, stream, norm)
        return out


class Decoder(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        widths = [dim * factor for factor in reversed(WIDTHS)]
        self.conv1 = CausalConv3d(LATENT_CHANNELS, widths[0], 3)
        self.middle = _middle(widths[0])
        layers: list[nn.Module] = []
        width = widths[0]
        for level, out in enumerate(widths):
            layers += [ResidualBlock(width, out), ResidualBlock(out, out), ResidualBlock(out, out)]
            width = out
            if level < len(widths) - 1:
                layers.append(Resample(out, "up", in_time=level < 2))
                width = out // 2
        self.upsamples = nn.Sequential(*layers)
        self.head = _head(width, 3)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = self.conv1(x, stream)
        for layer in (*self.middle, *self.upsamples):
            x = layer(x, stream)
        norm, _, conv = self.head
        out: Tensor = conv(x, stream, norm)
        return out


class WanVAE(nn.Module):
    """Frames to latents and back.

    Source: Wan2.1's WanVAE, which it equals for any `chunk`: latent frames that go through together (None: as suits the
    device), a matter of speed and memory only.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.chunk: int | None = None
        self.row_split: RowSplit | None = None  # who work on a picture together is decided outside
        self.encoder, self.decoder = Encoder(config.dim), Decoder(config.dim)
        self.conv1 = CausalConv3d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)
        self.conv2 = CausalConv3d(LATENT_CHANNELS, LATENT_CHANNELS, 1)

    @property
    def device(self) -> torch.device:
        return self.conv2.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.conv2.weight.dtype

    def encode(self, pixels: Tensor, tiling: Tiling | None = None) -> Tensor:
        """pixels [3, F, H, W] in -1..1, F = 4n + 1 -> normalized latents [16, T, H/8, W/8] float32.

        Raises: InputError for other sizes.
        """
        channels, frames, height, width = pixels.shape
        if channels != 3 or frames % GROUP != 1 or height % 8 or width % 8:
            raise InputError(
                f"A clip of shape {list(pixels.shape)} cannot be encoded. Give [3, 4n + 1, rows, columns], rows "
                "and columns multiples of 8."
            )
        shape = (LATENT_CHANNELS, 1 + (frames - 1) // GROUP, height // 8, width // 8)
        if tiling is None and (rows := self._split(shape[2])) is not None:
            clips = (rows.take(clip, 8) for clip in _groups(pixels, self._chunk(rows)))
            own = torch.cat(list(self.encode_stream(clips, rows)), 1)
            return rows.join(own, 1)
        if tiling is None:
            return filled(shape, torch.float32, self.device, self.encode_stream(_groups(pixels, self._chunk())))
        return over_tiles(pixels.to(self.device), shape, tiling.cells(8), self.encode)

    def decode(self, latents: Tensor, tiling: Tiling | None = None) -> Tensor:
        """latents [16, T, H/8, W/8] -> pixels [3, F, H, W] in about -1..1, in the VAE's dtype."""
        if latents.shape[0] != LATENT_CHANNELS:
            raise InputError(
                f"Latents of shape {list(latents.shape)} cannot be decoded. Give [{LATENT_CHANNELS}, T, h, w]."
            )
        latents = latents.to(self.device)
        _, frames, rows, columns = latents.shape
        shape = (3, GROUP * (frames - 1) + 1, 8 * rows, 8 * columns)
        if tiling is None and (split := self._split(rows)) is not None:
            return split.join(torch.cat(list(self.decode_stream(split.take(latents, 1), split)), 1), 8)
        if tiling is None:
            return filled(shape, self.dtype, self.device, self.decode_stream(latents))
        return over_tiles(latents, shape, tiling.cells(8), self.decode, from_latents=True)

    def encode_stream(self, clips: Iterable[Tensor], rows: RowSplit | None = None) -> Iterator[Tensor]:
        """Clips [3, f, H, W] of one video, f a multiple of 4 but 1 more in the first -> [16, t, H/8, W/8] float32.

        rows: the clips' rows are those of this split.
        """
        stream, (mean, std) = self._stream(rows), self._statistics()
        for clip in clips:
            moments = self.conv1(self.encoder(self._inside(clip), stream), stream)
            yield (moments[0, :LATENT_CHANNELS].float() - mean) / std

    def decode_stream(self, latents: Tensor, rows: RowSplit | None = None) -> Iterator[Tensor]:
        """latents [16, T, H/8, W/8] -> pieces [3, f, H, W] of the video, in order; memory is that of one piece.

        rows: the latents' rows are those of this split.
        """
        stream, (mean, std) = self._stream(rows), self._statistics()
        for piece in latents.split(self._chunk(rows), 1):
            hidden = self.conv2(self._inside(piece.float() * std + mean), stream)
            yield self.decoder(hidden, stream)[0]

    def _chunk(self, rows: RowSplit | None = None) -> int:
        """Who has fewer rows takes more frames at once: as much memory, and fewer exchanges."""
        if self.chunk is not None or self.device.type == "cpu":
            return self.chunk or CPU_CHUNK
        return CHUNK if rows is None else CHUNK * rows.size

    def _split(self, num_rows: int) -> RowSplit | None:
        """Who work together on a picture of so many rows of latents, or None."""
        if self.row_split is None or not self.row_split.splits(num_rows):
            return None
        self.row_split.start(num_rows)
        return self.row_split

    def _stream(self, rows: RowSplit | None = None) -> Stream:
        """A stream for one clip; on a GPU the filters are first laid out as its convolutions read them, once."""
        if self.device.type == "cuda":
            with torch.inference_mode(False):
                for layer in self.modules():
                    if isinstance(layer, CausalConv3d | nn.Conv2d):
                        order = torch.channels_last_3d if isinstance(layer, CausalConv3d) else torch.channels_last
                        if not layer.weight.is_contiguous(memory_format=order):
                            weight = layer.weight.detach().contiguous(memory_format=order)
                            layer.weight = nn.Parameter(weight, requires_grad=False)
        return Stream(rows)

    def _inside(self, x: Tensor) -> Tensor:
        return x[None].to(self.device, self.dtype, memory_format=torch.channels_last_3d)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        values = torch.tensor((LATENT_MEAN, LATENT_STD), device=self.device)
        return tuple(values[:, :, None, None, None])


def _groups(pixels: Tensor, chunk: int) -> Iterator[Tensor]:
    """The frames of `chunk` latent frames at a time."""
    first = 1 + GROUP * (chunk - 1)
    yield pixels[:, :first]
    if pixels.shape[1] > first:
        yield from pixels[:, first:].split(GROUP * chunk, 1)


def filled(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, pieces: Iterator[Tensor]) -> Tensor:
    """Pieces along the frames, put into one tensor as they come."""
    out = torch.empty(shape, dtype=dtype, device=device)
    start = 0
    for piece in pieces:
        out[:, start : start + piece.shape[1]] = piece
        start += piece.shape[1]
    return out
