"""The VAE's convolution kernels against plain convolutions; on a machine without a GPU in Triton's interpreter."""

import pytest
import torch
from support.checks import draw

from wanvideo.ops import conv

pytest.importorskip("triton", reason="Triton is not installed; the eager references are used everywhere")
pytest.importorskip("triton.tools.tensor_descriptor", reason="this Triton has no tensor descriptors; cuDNN is used")

DTYPE, TOLERANCE = (torch.float16, 2e-3) if torch.cuda.is_available() else (torch.float32, 1e-5)
WIDE = (10, 18)  # neither side a multiple of a tile's


def numbers(*shape):
    return draw(*shape).to(DTYPE)


def clip(channels, frames, height, width):
    return numbers(1, channels, frames, height, width).contiguous(memory_format=torch.channels_last_3d)


def filters(out, into, *size):
    return numbers(out, into, *size) / (into * size[-1] ** 2) ** 0.5


def compare(monkeypatch, function, *arguments):
    monkeypatch.setattr(conv, "_has_kernel", lambda x: False)
    eager = function(*arguments).float()
    monkeypatch.setattr(conv, "_has_kernel", lambda x: True)
    ours = function(*arguments).float()
    assert ours.shape == eager.shape
    assert (ours - eager).abs().max() <= TOLERANCE * eager.abs().max()


@pytest.mark.parametrize(("into", "out"), [(3, 96), (16, 24), (32, 3), (64, 32), (16, 192), (48, 16)])
def test_conv3d(monkeypatch, into, out):
    compare(monkeypatch, conv.conv3d, clip(into, 4, *WIDE), filters(out, into, 3, 3, 3), numbers(out))


@pytest.mark.parametrize("out", [24, 96, 192])
def test_a_residual_is_added(monkeypatch, out):
    compare(monkeypatch, conv.conv3d, clip(16, 4, *WIDE), filters(out, 16, 3, 3, 3), numbers(out), clip(out, 2, *WIDE))


def test_a_single_tap(monkeypatch):
    compare(monkeypatch, conv.conv3d, clip(16, 2, *WIDE), filters(32, 16, 1, 1, 1), numbers(32))


def test_frames_are_halved(monkeypatch):
    x = clip(32, 7, 9, 17)
    compare(monkeypatch, conv.conv3d_halving_frames, x, filters(32, 32, 3, 1, 1), numbers(32))


def test_frames_are_doubled(monkeypatch):
    x = clip(16, 5, 9, 17)
    compare(monkeypatch, conv.conv3d_doubling_frames, x, filters(32, 16, 3, 1, 1), numbers(32))


def test_rows_and_columns_are_halved(monkeypatch):
    compare(monkeypatch, conv.conv2d_halving, clip(32, 2, *WIDE), filters(32, 32, 3, 3), numbers(32))


def test_rows_and_columns_are_doubled(monkeypatch):
    compare(monkeypatch, conv.conv2d_doubling, clip(32, 2, *WIDE), filters(16, 32, 3, 3), numbers(16))


def test_rows_next_to_the_picture_s_own(monkeypatch):
    """Of a picture whose rows are split over GPUs: they are read and not made, with a residual and without."""
    x = clip(16, 4, *WIDE)
    height, width = WIDE
    for residual in (None, clip(24, 2, height - 2, width)):
        compare(monkeypatch, conv.conv3d, x, filters(24, 16, 3, 3, 3), numbers(24), residual, True)
    compare(monkeypatch, conv.conv3d, x, filters(3, 16, 3, 3, 3), numbers(3), None, True)
    compare(monkeypatch, conv.conv2d_doubling, clip(32, 2, *WIDE), filters(16, 32, 3, 3), numbers(16), True)


def test_filters_are_read_where_they_lie():
    weight = filters(16, 32, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    assert conv.kernels.conv_kernels().weight_rows(weight).data_ptr() == weight.data_ptr()
