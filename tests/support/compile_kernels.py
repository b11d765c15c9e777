"""Compile every fused kernel for a GPU that is not here: `python compile_kernels.py 89` prints what each one needs.

Kernels are called as the engine calls them, on tensors in host memory; Triton then compiles to machine code and nothing
is launched. The last line is JSON: kernel -> most shared memory of any of its forms, in bytes. bf16 stands for fp16
too; float32 and the forms for one and four speakers, which need the same everywhere and take long, are compiled for
GPUs without a copy engine only.
"""

import json
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from wanvideo.ops import kernels
from wanvideo.ops.quantized import QuantizedRows

GENERATION = int(sys.argv[1])
CAPABILITY = divmod(GENERATION, 10)
BF16, FP32, FP8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
WIDTH, WIDE, HEADS, HEAD, TOKENS = 5120, 13824, 40, 128, 128
SHARED: dict[str, int] = {}


class Absent:
    """The driver of a GPU that only the compiler knows of."""

    def get_current_target(self):
        return GPUTarget("cuda", GENERATION, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


def compile_only(self, *args, grid, warmup, **options):
    compiled = launch(self, *args, grid=grid, warmup=True, **options)
    SHARED[self.__name__] = max(SHARED.get(self.__name__, 0), compiled.metadata.shared)


driver.set_active(Absent())
launch, JITFunction.run = JITFunction.run, compile_only
kernels._capability = lambda device: CAPABILITY


def empty(*shape, dtype=BF16):
    return torch.zeros(shape, dtype=dtype)


def row_kernels(stores):
    rows = kernels.row_kernels()
    stream, change, vector = empty(4, WIDTH, dtype=FP32), empty(4, WIDTH), empty(WIDTH, dtype=FP32)
    table = empty(4, HEAD // 2, 2, dtype=FP32)
    for store in (BF16, *stores):
        rows.layer_norm(stream, vector, vector, 1e-6, store)
        for gate in (vector, 1.0):
            rows.add_layer_norm(stream, change, gate, vector, vector, 1e-6, store)
        rows.gelu(empty(4, WIDE), store)
    for store in stores:
        rows.quantize_rows(change, store)
        rows.widen_rows(empty(4, WIDTH, dtype=FP32).to(store), vector[:4, None], BF16)
    rows.add_gated(stream, change, vector)
    rows.rms_norm_heads(change, vector, 1e-6, HEADS, table, None)
    if FP8 in stores:
        shift = rows.key_mean(change, vector, 1e-6, HEADS, table, torch.arange(4))
        rows.rms_norm_heads(change, vector, 1e-6, HEADS, table, FP8, shift)
    rows.scale_products(empty(4, WIDTH, dtype=torch.int32), vector[:4, None], vector[:, None], change[0], BF16)
    pixels = empty(1, 96, 1, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    rows.pixel_norm_silu(torch.empty_like(pixels), pixels, empty(96))


def attention_kernels(stores):
    attention = kernels.attention_kernels()
    regions, labels = empty(3, 1560, dtype=FP32), empty(TOKENS, dtype=FP32)
    forms = ((BF16, (2,)),) if kernels.has_copy_engine(regions.device) else ((BF16, (1, 2, 4)), (FP32, (4,)))
    for dtype, numbers in forms:
        query, picture = empty(TOKENS, HEADS, HEAD, dtype=dtype), empty(257, HEADS, HEAD, dtype=dtype)
        for speakers in numbers:
            keys = empty(2, 32 * speakers, HEADS, HEAD, dtype=dtype)
            grouped, positions = query.view(2, -1, HEADS, HEAD), labels if speakers > 1 else None
            attention.grouped_attention(grouped, keys, keys, positions)
            attention.grouped_weights(grouped, keys, positions, dtype, 1.0)
        for second in ((picture, picture), None):
            attention.dual_context_attention(query, (picture[:61], picture[:61]), second, 1.0)
        attention.region_shares(query, empty(1560, HEADS, HEAD, dtype=dtype), regions)
    if FP8 in stores:
        query, key = (empty(n, HEADS, HEAD, dtype=FP32).to(FP8) for n in (TOKENS, 1560))
        attention.region_shares(query, key, regions)
        text, picture = ((key[:n], empty(n, HEADS, HEAD)) for n in (61, 257))
        attention.dual_context_attention(query, text, picture, 1.0, empty(dtype=FP32))
        query, key = empty(2, TOKENS, HEADS, HEAD), empty(2, 64, HEADS, HEAD)
        attention.grouped_weights(query, key, empty(2 * TOKENS, dtype=FP32), FP8, 256.0)
        hopper_kernels()


def hopper_kernels():
    """Also as ranks use them that put their heads into the memory of two."""
    values, rows = kernels.value_kernels(), kernels.row_kernels()
    value, places = empty(TOKENS, HEADS, HEAD), torch.zeros(2, dtype=torch.int64)
    vector, table = empty(WIDTH, dtype=FP32), empty(TOKENS, HEAD // 2, 2, dtype=FP32)
    scaling = values.fp8_values(value[None], True).scaling
    values.value_scaling(empty(2, 3, WIDTH, dtype=FP32), 2 * TOKENS, True)
    values.put_value_ranges(value.flatten(1), empty(2, 3, WIDTH, dtype=FP32), places)
    values.put_fp8_values(value, scaling, 3, 2 * TOKENS, empty(TOKENS * WIDTH, dtype=FP32).to(FP8), places)
    values.put_copies(vector, vector, places)
    values.put_heads(value, value, places)
    for out in (value, value.to(FP8)):
        rows.put_normed_heads(value.flatten(1), vector, 1e-6, HEADS, table, vector, out, places)


def copy_engine_kernels():
    conv, absorbed = kernels.conv_kernels(), kernels.absorbed_kernels()
    for outputs, channels in ((3, 96), (16, 384), (96, 96), (192, 192), (384, 384), (384, 16)):
        weight, bias = empty(outputs, 27 * channels), empty(outputs)
        conv.conv(empty(3, 16, 32, channels), weight, bias, conv.Taps((3, 3, 3), (-1, -1)))
    conv.conv(empty(1, 16, 32, 192), empty(192, 9 * 192), empty(192), conv.Taps((1, 3, 3), halve=True))
    for keys, storage in ((32, BF16), (64, BF16), (32, FP8)):
        number, matrix = empty(1, keys, HEADS, HEAD), empty(WIDTH, WIDTH, dtype=FP32).to(storage)
        scale = empty(WIDTH, 1, dtype=FP32) if storage == FP8 else None
        tokens = empty(TOKENS, WIDTH, dtype=FP32).to(storage)
        rows_in = tokens if scale is None else QuantizedRows(tokens, scale[:TOKENS])
        weights = absorbed.absorbed_weights(
            rows_in, absorbed.absorb_keys(number, matrix, scale, number.flatten(), 1.0), keys, storage
        )
        absorbed.absorbed_sum(weights, absorbed.absorb_values(number, matrix), scale, empty(WIDTH))


if __name__ == "__main__":
    formats = (torch.int8, FP8) if CAPABILITY >= (8, 9) else (torch.int8,)
    row_kernels(formats)
    attention_kernels(formats)
    if kernels.has_copy_engine(torch.device("cpu")):
        copy_engine_kernels()
    print(json.dumps(SHARED))
