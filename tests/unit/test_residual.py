"""The residual stream adds every change once, wherever it is read."""

import torch

from wanvideo.ops.norm import layer_norm
from wanvideo.ops.residual import Residual

TOKENS, WIDTH, EPS = 5, 32, 1e-6


def test_changes_are_added_where_the_stream_is_read():
    generator = torch.Generator().manual_seed(3)
    hidden, first, second = (torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(3))
    gate, scale, shift = (torch.randn(WIDTH, generator=generator) for _ in range(3))
    stream = Residual(hidden.clone(), torch.bfloat16)
    assert torch.equal(stream.norm(scale, shift, EPS, torch.float32), layer_norm(hidden, scale, shift, EPS))
    stream.add(first, gate)
    expected = hidden + first * gate
    assert torch.allclose(stream.norm(scale, shift, EPS, torch.float32), layer_norm(expected, scale, shift, EPS))
    stream.add(second)
    assert torch.allclose(stream.sum(), expected + second)
