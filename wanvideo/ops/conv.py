"""The convolutions of the video VAE.

Tensors are [1, C, T, H, W] with channels last in memory: C channels, T frames, H W rows and columns; N output channels.
Where a kernel can do them, bias, residual, resizing and reordering are part of one pass.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels


def conv3d(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, has_edges: bool = False) -> Tensor:
    """x [1, C, T, H, W], weight [N, C, kt, kh, kw] -> [1, N, T - kt + 1, H, W], plus a residual of that shape.

    has_edges: x has the rows next to the H rows too, [1, C, T, H + 2, W], in place of zeros; kh is 3.
    """
    size, padding = tuple(weight.shape[2:]), (0 if has_edges else weight.shape[3] // 2, weight.shape[4] // 2)
    if _has_kernel(x):
        taps, pixels = _kernel().Taps(size, (-padding[0], -padding[1])), _pixels(x)
        added = None if residual is None else _pixels(residual)
        out = _empty(pixels, pixels.shape[0] - size[0] + 1, pixels.shape[1] - 2, weight.shape[0]) if has_edges else None
        return _clip(_kernel().conv(pixels, _kernel().weight_rows(weight), bias, taps, added, out))
    out = _plain(x, weight, bias, padding)
    return out if residual is None else out.add_(residual)


def conv3d_halving_frames(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [1, C, 1 + 2n, H, W], weight [N, C, 3, 1, 1] -> [1, N, n, H, W]."""
    if _has_kernel(x):
        taps = _kernel().Taps(tuple(weight.shape[2:]), step=2)
        return _clip(_kernel().conv(_pixels(x), _kernel().weight_rows(weight), bias, taps))
    return _plain(x, weight, bias, step=2)


def conv3d_doubling_frames(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [1, C, 2 + n, H, W], weight [2N, C, 3, 1, 1] -> [1, N, 2n, H, W]: the halves of the channels are two frames."""
    if _has_kernel(x):
        taps, pixels = _kernel().Taps(tuple(weight.shape[2:])), _pixels(x)
        num_out, frames = weight.shape[0] // 2, x.shape[2] - 2
        out = pixels.new_empty(2 * frames, *pixels.shape[1:3], num_out)
        rows, biases = _kernel().weight_rows(weight).chunk(2), bias.chunk(2)
        for half in range(2):
            _kernel().conv(pixels, rows[half], biases[half], taps, out=out[half::2])
        return _clip(out)
    pairs = _plain(x, weight, bias).unflatten(1, (2, -1))  # [1, 2, N, n, H, W]
    doubled = pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
    return doubled.contiguous(memory_format=torch.channels_last_3d)


def _plain(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int] = (0, 0), step: int = 1) -> Tensor:
    """Convolution of x [1, C, T, H, W], padded by rows and columns, of every `step`-th frame."""
    if x.device.type != "cpu":
        return F.conv3d(x, weight, bias, (step, 1, 1), padding=(0, *padding))
    # On a CPU the sum of one convolution of pictures for each frame of the filter is several times faster.
    pictures, length = _as_pictures(x), weight.shape[2]
    last = (x.shape[2] - length) // step * step

    def product(tap: int, bias: Tensor | None) -> Tensor:
        return F.conv2d(pictures[tap : tap + last + 1 : step], weight[:, :, tap], bias, padding=padding)

    out = product(0, bias)
    for tap in range(1, length):
        out.add_(product(tap, None))
    return _as_clip(out)


def conv2d_halving(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [1, C, T, H, W], weight [N, C, 3, 3] -> [1, N, T, H/2, W/2]; zeros stand below and to the right of x."""
    if _has_kernel(x):
        taps = _kernel().Taps((1, 3, 3), halve=True)
        return _clip(_kernel().conv(_pixels(x), _kernel().weight_rows(weight), bias, taps))
    return _as_clip(F.conv2d(F.pad(_as_pictures(x), (0, 1, 0, 1)), weight, bias, stride=2))


def conv2d_doubling(x: Tensor, weight: Tensor, bias: Tensor, has_edges: bool = False) -> Tensor:
    """x [1, C, T, H, W] with every pixel doubled, convolved by weight [N, C, 3, 3] -> [1, N, T, 2H, 2W].

    has_edges: as in `conv3d`, x is [1, C, T, H + 2, W].
    The kernel sums the taps that fall on one pixel first: 4 filters of 2 x 2, less than half of the products.
    """
    if _has_kernel(x):
        pixels = _pixels(x)
        frames, height, width, _ = pixels.shape
        height -= 2 * has_edges
        out = pixels.new_empty(frames, 2 * height, 2 * width, weight.shape[0])
        for down in range(2):
            for right in range(2):
                taps = _kernel().Taps((1, 2, 2), (down - 1 + has_edges, right - 1))
                rows = _kernel().weight_rows(_summed_taps(_summed_taps(weight, 2, down), 3, right))
                _kernel().conv(pixels, rows, bias, taps, out=out[:, down::2, right::2])
        return _clip(out)
    doubled = F.interpolate(_as_pictures(x), scale_factor=2, mode="nearest")
    if has_edges:
        return _as_clip(F.conv2d(doubled[:, :, 1:-1], weight, bias, padding=(0, 1)))
    return _as_clip(F.conv2d(doubled, weight, bias, padding=1))


def _summed_taps(weight: Tensor, axis: int, phase: int) -> Tensor:
    """The two taps that a 3-wide filter is for the first (phase 0) or second (1) of a pixel's two copies."""
    first, middle, last = weight.unbind(axis)
    return torch.stack((first + middle, last) if phase else (first, middle + last), axis)


def _kernel() -> ModuleType:
    return kernels.conv_kernels()


def _has_kernel(x: Tensor) -> bool:
    """Without a copy engine cuDNN is as fast."""
    return kernels.usable(x) and x.dtype in (torch.bfloat16, torch.float16) and kernels.has_copy_engine(x.device)


def _empty(pixels: Tensor, frames: int, rows: int, num_out: int) -> Tensor:
    """[frames, rows, W, N] like pixels [T, H, W, C]; a pixel's channels take a multiple of 16 bytes."""
    return pixels.new_empty(frames, rows, pixels.shape[2], -(-num_out // 8) * 8)[..., :num_out]


def _pixels(x: Tensor) -> Tensor:
    """[1, C, T, H, W] -> [T, H, W, C], the same memory if channels are last."""
    return x[0].permute(1, 2, 3, 0).contiguous()


def _clip(pixels: Tensor) -> Tensor:
    return pixels.permute(3, 0, 1, 2)[None]


def _as_pictures(x: Tensor) -> Tensor:
    """[1, C, T, H, W] -> [T, C, H, W], the same memory."""
    return x[0].transpose(0, 1)


def _as_clip(pictures: Tensor) -> Tensor:
    return pictures.transpose(0, 1)[None]
