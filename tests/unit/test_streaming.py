"""Streamed blocks compute what resident blocks compute, whatever their number; on a GPU with real streams."""

import pytest
import torch
from support import recipes
from support.tiny import tiny_transformer

from wanvideo.memory.streaming import BlockStreamer, block_bytes, block_tensors

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAYERS = 5


def build():
    return tiny_transformer(num_layers=LAYERS)


@pytest.fixture(scope="module")
def expected():
    inputs = {k: v if v is None else v.to(DEVICE) for k, v in recipes.transformer_inputs(2, 4, 4, 1, 500, 9).items()}
    return inputs, build().to(DEVICE)(**inputs)


def stream(model, num_streamed, **options):
    blocks, model.blocks = model.blocks, torch.nn.ModuleList()
    model.to(DEVICE)
    model.blocks = blocks
    model.block_provider = BlockStreamer(blocks, DEVICE, num_streamed, **options)
    return model


@pytest.mark.parametrize("num_streamed", [0, 1, 3, LAYERS])
@pytest.mark.parametrize("prefetch", [0, 1, 2, 9])
def test_any_number_of_streamed_blocks_gives_the_same(expected, num_streamed, prefetch):
    inputs, velocity = expected
    model = stream(build(), num_streamed, prefetch=prefetch)
    for _ in range(3):
        assert torch.equal(model(**inputs), velocity)
    assert model.block_provider.num_streamed == num_streamed


def test_an_interrupted_forward_does_not_spoil_the_next(expected):
    inputs, velocity = expected
    model = stream(build(), LAYERS, prefetch=1)
    for position, _ in enumerate(model.block_provider(model.blocks)):
        if position == 2:
            break
    assert torch.equal(model(**inputs), velocity)


def test_weights_are_in_one_aligned_host_buffer_between_forwards(expected):
    inputs, _ = expected
    model = stream(build(), LAYERS)
    model(**inputs)
    for block in model.blocks:
        tensors = block_tensors(block)
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
        assert all(t.device.type == "cpu" and t.is_contiguous() and t.data_ptr() % 16 == 0 for t in tensors)
    packed = model.block_provider.packed.values()
    assert [block.host.numel() for block in packed] == [block_bytes(model.blocks[0])] * LAYERS
    model.block_provider.close()
    assert torch.equal(model(**inputs), expected[1])


def test_streamed_blocks_are_spread_evenly():
    assert BlockStreamer([torch.nn.Linear(2, 2) for _ in range(10)], DEVICE, 5).order == [1, 3, 5, 7, 9]


def test_inference_mode(expected):
    inputs, velocity = expected
    model = stream(build(), 3)
    with torch.inference_mode():
        assert torch.equal(model(**inputs), velocity)
    assert torch.equal(model(**inputs), velocity)
