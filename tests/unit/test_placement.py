"""The parameter invariant, broken on purpose in every way it can be."""

import pytest
import torch
from torch import nn

from wanvideo.memory.placement import PlacementError, check_parameters


def model():
    layers = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Conv3d(2, 4, 3))
    layers.register_buffer("scale", torch.ones(()))
    return layers


def unaligned(shape):
    size = torch.Size(shape).numel()
    return torch.arange(size + 1.0)[1:].view(shape)


def test_sound_models_pass():
    check_parameters(model())
    check_parameters(model(), "cpu")
    check_parameters(model().to(memory_format=torch.channels_last_3d))
    check_parameters(nn.Sequential())


@pytest.mark.parametrize(
    "tensor, reason",
    [
        (torch.empty(6, 8, device="meta"), "never loaded"),
        (torch.ones(8, 6).t(), "not contiguous"),
        (torch.ones(6, 16)[:, :8], "not contiguous"),
        (unaligned((6, 8)), "not aligned"),
        (torch.ones(6, 1).expand(6, 8), "not contiguous"),
    ],
)
def test_broken_parameters(tensor, reason):
    layers = model()
    layers[0].weight = nn.Parameter(tensor, requires_grad=False)
    with pytest.raises(PlacementError, match=f"0.weight .*{reason}"):
        check_parameters(layers)


def test_broken_buffers():
    layers = model()
    layers.register_buffer("table", unaligned((5,)))
    with pytest.raises(PlacementError, match="table .*not aligned"):
        check_parameters(layers)
    layers.register_buffer("table", torch.arange(5.0))
    layers.register_buffer("scale", torch.empty((), device="meta"), persistent=False)
    with pytest.raises(PlacementError, match="scale .*never loaded"):
        check_parameters(layers)


def test_wrong_device():
    with pytest.raises(PlacementError, match="is on cpu, the model runs on cuda:1"):
        check_parameters(model(), "cuda:1")
