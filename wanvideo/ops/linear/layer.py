"""Linear layers. How a weight is stored is the layer's own business; the models only see y = x W^T + b.

Legend: L rows of activations, K input features, N output features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..compiled import compile_disabled
from ..norm import quantize_rows
from ..quantized import FP8, LARGEST, QuantizedRows
from ..row_blocks import row_blocks
from .low_rank import LoraBranch
from .trial import agrees

INT8_ROWS = 8192  # rows whose 32-bit products are held at a time
FEW_ROWS = 2048  # with fewer rows widening the weight costs nothing that counts, and activations keep their precision
LARGEST_ERROR = 0.05  # of products that are rounded to bf16
_MULTIPLIED: dict[tuple[torch.dtype, torch.device], bool] = {}


class Linear(nn.Linear):
    """The dense storage format, and the base of the others: float32, bf16 or fp16, as the checkpoint or caller has it.

    Every format accepts both plain tensors and `QuantizedRows`. lora: LoRAs that are not merged into the weight, added
    to what any format computes; so formats override `product` and leave `forward` alone.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.lora: LoraBranch | None = None

    if TYPE_CHECKING:  # torch's own says nothing of what goes in and comes out

        def __call__(self, x: Tensor | QuantizedRows) -> Tensor: ...

    def reset_parameters(self) -> None:
        """Weights always come from a checkpoint."""

    @property
    def input_dtype(self) -> torch.dtype:
        """In what a layer with a bias takes its rows fastest; an 8-bit dtype stands for `QuantizedRows`."""
        return self.bias.dtype

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight [N, K] as plain numbers."""
        return self.weight.to(dtype)

    def forward(self, x: Tensor | QuantizedRows) -> Tensor:
        """x [..., K] -> [..., N]."""
        out = self.product(x)
        return out if self.lora is None else self.lora(x, out)

    def product(self, x: Tensor | QuantizedRows) -> Tensor:
        """x W^T + b of the stored weight alone, in new memory."""
        if isinstance(x, QuantizedRows):
            x = x.dense(self.bias.dtype)
        return F.linear(x, self.dense_weight(x.dtype), self.bias)


class RowScaledLinear(Linear):
    """8-bit weights (fp8 e4m3 or e5m2, int8) with one float32 scale a row: weight [N, K], weight_scale [N, 1].

    Where the device can, rows of activations are brought to 8 bits too and multiplied as such; elsewhere the weight is
    widened for each call.
    """

    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool, storage: torch.dtype) -> None:
        super().__init__(in_features, out_features, bias)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=storage), requires_grad=False)
        self.register_buffer("weight_scale", torch.empty(out_features, 1, dtype=torch.float32))

    @property
    def multiplies_stored(self) -> bool:
        """Whether the device multiplies the weight as it is stored: known once the weight is there."""
        dtype, device = self.weight.dtype, self.weight.device
        if device.type != "cuda" or self.in_features % 16 or self.out_features % 16 or dtype not in LARGEST:
            return False
        return multiplies_rows(dtype, device)

    @property
    def input_dtype(self) -> torch.dtype:
        return self.weight.dtype if self.multiplies_stored else self.bias.dtype

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        if self.multiplies_stored and kernels.usable(self.weight):
            return kernels.row_kernels().widen_rows(self.weight, self.weight_scale, dtype)
        dense = torch.empty(self.weight.shape, dtype=dtype, device=self.weight.device)
        for start, stop in row_blocks(self.out_features, self.in_features, self.weight.device):
            dense[start:stop] = self.weight[start:stop].float() * self.weight_scale[start:stop]
        return dense

    def product(self, x: Tensor | QuantizedRows) -> Tensor:
        if not self.multiplies_stored:
            return super().product(x)
        if isinstance(x, QuantizedRows):
            return self.multiply(x, self.bias.dtype)
        if x.numel() < FEW_ROWS * self.in_features:
            return super().product(x)
        out = self.multiply(quantize_rows(x.flatten(0, -2), self.weight.dtype), x.dtype)
        return out.view(*x.shape[:-1], self.out_features)

    def multiply(self, x: QuantizedRows, dtype: torch.dtype) -> Tensor:
        """Rows and weight as they are stored -> [L, N], with the bias."""
        if self.weight.dtype == torch.int8:
            parts = zip(x.data.split(INT8_ROWS), x.scale.split(INT8_ROWS), strict=True)
            return torch.cat([self._multiply_int8(data, scale, dtype) for data, scale in parts])
        bias = None if self.bias is None else self.bias.bfloat16()
        return torch._scaled_mm(
            x.data, self.weight.t(), x.scale, self.weight_scale.t(), bias=bias,
            out_dtype=torch.bfloat16, use_fast_accum=True,
        ).to(dtype)  # fmt: skip

    def _multiply_int8(self, data: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        rows = data.shape[0]
        if rows <= 16:  # the kernel's smallest size
            data = F.pad(data, (0, 0, 0, 17 - rows))
        products = torch._int_mm(data, self.weight.t())[:rows]
        if kernels.usable(products):
            return kernels.row_kernels().scale_products(products, scale, self.weight_scale, self.bias, dtype)
        out = products.float() * scale * self.weight_scale.t()
        return (out if self.bias is None else out + self.bias.float()).to(dtype)


def multiplies_rows(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products of 8-bit rows work on a GPU, tried once: builds of PyTorch lack those in fp8 for some, and for
    all on Windows.
    """
    if (dtype, device) not in _MULTIPLIED:  # a dict, which compiled code looks into
        is_known = dtype != FP8 or torch.cuda.get_device_capability(device) >= (8, 9)
        _MULTIPLIED[dtype, device] = is_known and multiplies_right(dtype, device)
    return _MULTIPLIED[dtype, device]


@compile_disabled
def multiplies_right(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether 8-bit products on a device are near those of the same numbers in float32."""
    generator = torch.Generator(device).manual_seed(1)
    size, steps = 256, torch.linspace(0.5, 2, 256, device=device)[:, None]
    with torch.inference_mode(False):
        x, weight = (
            (torch.randn(size, size, device=device, generator=generator) * LARGEST[dtype] / 8).to(dtype)
            for _ in range(2)
        )
        layer = RowScaledLinear(size, size, False, dtype).to(device)
        layer.weight.data, layer.weight_scale.data = weight, steps.flip(0).contiguous()
        exact = (x.float() * steps) @ (weight.float() * layer.weight_scale).t()
        rows = QuantizedRows(x, steps)
        return agrees(str(dtype), lambda: layer.multiply(rows, torch.bfloat16), exact, LARGEST_ERROR)
