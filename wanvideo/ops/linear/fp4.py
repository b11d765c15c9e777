"""NVFP4: 4-bit weights (e2m1), an fp8 scale for every 16 of a row, and one scale for the tensor.

Legend: N output features, K input features, both padded to multiples of 16 in storage. Source: the layout of ComfyUI's
checkpoints: the earlier of two weights in the high half of a byte, block scales in the tiles of 128 x 4 in which the
tensor cores read them.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..quantized import QuantizedRows, divided
from ..row_blocks import row_blocks
from .layer import FEW_ROWS, Linear
from .trial import agrees

BLOCK = 16  # weights under one scale
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST_FP4, LARGEST_FP8 = 6.0, 448.0
SMALLEST_SCALE = 1e-30  # a matrix of zeros still needs a scale that is not zero


def padded_sizes(rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of the packed weight and of its block scales for a matrix of this shape."""
    packed = -(-rows // BLOCK) * BLOCK, -(-columns // BLOCK) * BLOCK // 2
    return packed, (-(-rows // 128) * 128, -(-columns // BLOCK // 4) * 4)


def tile_scales(scales: Tensor) -> Tensor:
    """Block scales [N, K / 16] in the order of the tensor cores, padded: [ceil N to 128, ceil K / 16 to 4]."""
    rows, columns = scales.shape
    scales = F.pad(scales.view(torch.uint8), (0, -columns % 4, 0, -rows % 128))
    tiles = scales.view(scales.shape[0] // 128, 4, 32, scales.shape[1] // 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(scales.shape).view(torch.float8_e4m3fn)


def untile_scales(scales: Tensor) -> Tensor:
    """The way back; padding stays."""
    tiles = scales.view(torch.uint8).view(scales.shape[0] // 128, scales.shape[1] // 4, 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(scales.shape).view(torch.float8_e4m3fn)


def quantize_fp4(weight: Tensor) -> dict[str, Tensor]:
    """weight [N, K] float to the tensors of an `FP4Linear`, a few rows at a time."""
    rows, columns = weight.shape
    packed_shape, _ = padded_sizes(rows, columns)
    scale_2 = torch.zeros(1, dtype=torch.float32, device=weight.device)
    for start, stop in row_blocks(rows, columns, weight.device):
        scale_2 = torch.maximum(scale_2, weight[start:stop].abs().amax().float())
    scale_2 = divided(scale_2, LARGEST_FP4 * LARGEST_FP8).clamp_min(SMALLEST_SCALE)
    packed = torch.zeros(packed_shape, dtype=torch.uint8, device=weight.device)
    scales = torch.zeros(packed_shape[0], packed_shape[1] * 2 // BLOCK, dtype=torch.float8_e4m3fn, device=weight.device)
    for start, stop in row_blocks(rows, columns, weight.device):
        blocks = F.pad(weight[start:stop].float(), (0, -columns % BLOCK)).unflatten(1, (-1, BLOCK))
        scale = (divided(blocks.abs().amax(-1), LARGEST_FP4) / scale_2).clamp_max(LARGEST_FP8).to(torch.float8_e4m3fn)
        scales[start:stop] = scale
        steps = (scale.float() * scale_2)[..., None]
        codes = _codes(torch.where(steps > 0, blocks / steps, 0.0)).flatten(1)
        packed[start:stop] = codes[:, ::2] << 4 | codes[:, 1::2]
    return {"weight": packed, "weight_scale": tile_scales(scales), "weight_scale_2": scale_2}


def _codes(x: Tensor) -> Tensor:
    """The 4-bit codes of float32 numbers, rounded to the nearest, ties to even, larger ones to the largest."""
    size = x.abs()
    # Codes count halves up to 2, from there ones up to 4, from there twos: three lines, of which the lowest counts.
    codes = torch.minimum((size * 2).round_(), size.round().add_(2))
    codes = torch.minimum(codes, (size / 2).round_().add_(4)).clamp_max_(len(MAGNITUDES) - 1)
    return codes.to(torch.uint8) | (x.signbit().to(torch.uint8) << 3)


class FP4Linear(Linear):
    """weight [N, K / 2] uint8, weight_scale [N to 128, K / 16 to 4] float8 in tiles, weight_scale_2 [1] float32.

    Multiplied in 4 bits where the device can (compute capability 10 and a product that proved right), else exactly
    widened a few rows at a time for each call.
    """

    weight_scale: Tensor
    weight_scale_2: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias)
        packed, scales = padded_sizes(out_features, in_features)
        self.weight = nn.Parameter(torch.empty(packed, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("weight_scale", torch.empty(scales, dtype=torch.float8_e4m3fn))
        self.register_buffer("weight_scale_2", torch.empty(1, dtype=torch.float32))

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        device = self.weight.device
        values = torch.tensor((*MAGNITUDES, *(-size for size in MAGNITUDES)), device=device)
        pairs = torch.cartesian_prod(values, values)
        steps = untile_scales(self.weight_scale)[:, : self.weight.shape[1] * 2 // BLOCK]
        dense = torch.empty(self.out_features, self.in_features, dtype=dtype, device=device)
        for start, stop in row_blocks(self.out_features, self.in_features, device):
            codes = pairs[self.weight[start:stop].int()].view(stop - start, -1, BLOCK)
            step = steps[start:stop].float() * self.weight_scale_2
            dense[start:stop] = (codes * step[..., None]).flatten(1)[:, : self.in_features]
        return dense

    def product(self, x: Tensor | QuantizedRows) -> Tensor:
        if isinstance(x, QuantizedRows) or x.numel() < FEW_ROWS * self.in_features:
            return super().product(x)
        if not multiplies_fp4(self.weight.device):
            return super().product(x)
        out = self.multiply_fp4(x.flatten(0, -2))
        return out.view(*x.shape[:-1], self.out_features)

    def multiply_fp4(self, x: Tensor) -> Tensor:
        """x [L, K] -> [L, N], both factors in 4 bits."""
        rows = quantize_fp4(x)
        out = torch._scaled_mm(
            rows["weight"].view(torch.float4_e2m1fn_x2), self.weight.view(torch.float4_e2m1fn_x2).t(),
            rows["weight_scale"].flatten(), self.weight_scale.flatten(), out_dtype=torch.bfloat16,
        )  # fmt: skip
        out = out[: x.shape[0], : self.out_features].float() * (rows["weight_scale_2"] * self.weight_scale_2)
        return (out if self.bias is None else out + self.bias.float()).to(x.dtype)


@cache
def multiplies_fp4(device: torch.device) -> bool:
    """Whether 4-bit products work on a device: tried once against the same numbers in float32."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (10, 0):
        return False
    with torch.device(device), torch.inference_mode(False):
        layer, x = FP4Linear(256, 128, bias=False), torch.randn(128, 256)
        for name, tensor in quantize_fp4(torch.randn(128, 256)).items():
            getattr(layer, name).data = tensor
        widened = FP4Linear(256, 128, bias=False)
        for name, tensor in quantize_fp4(x).items():
            getattr(widened, name).data = tensor
        exact = widened.dense_weight(torch.float32) @ layer.dense_weight(torch.float32).t()
        return agrees("fp4", lambda: layer.multiply_fp4(x), exact, 0.01)
