"""Residency keeps results, and the planner streams as little as fits."""

import pytest
import torch
from support import recipes
from support.tiny import tiny_transformer

from wanvideo.errors import InputError
from wanvideo.memory.budget import free_host_bytes, window_need
from wanvideo.memory.planner import plan_blocks
from wanvideo.memory.residency import Residency, module_bytes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GIB = 2**30
BLOCK, OTHER = int(0.465 * 1e9), int(0.66 * 1e9)


def test_residency_changes_nothing_but_the_place():
    model = tiny_transformer(num_layers=4)
    residency = Residency(model, DEVICE)
    inputs = {k: v if v is None else v.to(DEVICE) for k, v in recipes.transformer_inputs(2, 4, 4, 1, 500, 9).items()}
    assert residency.num_streamed is None and residency.device_bytes == 0
    residency.place(0)
    expected = model(**inputs)
    for num_streamed in (2, 4, 1, 0, 9):
        residency.place(num_streamed)
        assert residency.num_streamed == min(num_streamed, 4)
        assert torch.equal(model(**inputs), expected)
    residency.offload()
    assert residency.num_streamed is None
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    residency.place(3)
    assert torch.equal(model(**inputs), expected)


def need(width=832, height=480):
    tokens = 21 * width * height // 256
    return window_need(tokens, 21, 5120, 13824, 40)


@pytest.mark.parametrize(("free", "low", "high"), [(40, 0, 0), (22, 1, 8), (16, 14, 22), (12, 24, 32), (8, 33, 40)])
def test_14b_in_fp8_streams_what_does_not_fit(free, low, high):
    plan = plan_blocks(free * GIB, 40, BLOCK, OTHER, need())
    assert low <= plan.num_streamed <= high and plan.device_bytes <= free * GIB


def test_a_wish_is_kept_and_the_impossible_refused():
    assert plan_blocks(40 * GIB, 40, BLOCK, OTHER, need(), wanted=30).num_streamed == 30
    assert plan_blocks(40 * GIB, 40, BLOCK, OTHER, need(), wanted=99).num_streamed == 40
    with pytest.raises(InputError, match="smaller size"):
        plan_blocks(4 * GIB, 40, BLOCK, OTHER, need(1280, 720))


def test_host_memory_is_known_here():
    assert 2**28 < free_host_bytes() < 2**62


def test_weights_loaded_straight_to_the_device_count_from_the_start():
    """Else a plan that is made right after the load takes their memory for someone else's."""
    model = tiny_transformer().to("meta")
    residency = Residency(model, "meta")
    assert residency.num_streamed == 0
    assert module_bytes(model) <= residency.device_bytes <= 1.01 * module_bytes(model)
