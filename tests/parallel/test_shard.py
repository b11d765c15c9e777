"""Sharded weights: every format, LoRA branches and merged LoRAs, and a rank that reads only its own blocks."""

import copy

import pytest
import torch
from support import jobs, recipes
from support.ranks import CPU, run_ranks
from support.tiny import tiny_transformer

from wanvideo.checkpoints.quantize import pack_linears
from wanvideo.memory.streaming import block_bytes
from wanvideo.parallel.groups import Counter, Group
from wanvideo.parallel.layout import Layout
from wanvideo.parallel.shard import ShardedBlocks
from wanvideo.parallel.transform import split_tokens


def build(storage):
    model = tiny_transformer(num_layers=3)
    if storage is not None:
        for block in model.blocks:
            pack_linears(block, storage)
    return model


def sharded(mesh, storage, in_host):
    model, inputs = build(storage), recipes.transformer_inputs(3, 6, 6, 1, 700, 5)
    whole = sum(block_bytes(block) for block in model.blocks)
    split_tokens(model, mesh, "sdpa")
    model.block_provider = ShardedBlocks(model.blocks, mesh.everybody, CPU, in_host=in_host)
    held = sum(tensor.untyped_storage().nbytes() for tensor in model.blocks.parameters())
    return model(**inputs), model(**inputs), model.block_provider.part_bytes / whole, held


@pytest.mark.parametrize("storage", [None, "fp8", "int8", "fp4"])
@pytest.mark.parametrize("in_host", [False, True])
def test_shards_give_what_whole_weights_give(storage, in_host):
    expected = build(storage)(**recipes.transformer_inputs(3, 6, 6, 1, 700, 5))
    for first, second, share, held in run_ranks(Layout(ulysses=2), sharded, storage, in_host):
        assert (first - expected).abs().max() <= 1e-5 and torch.equal(first, second)
        assert share < 0.52 and held < 2000


def read_by_one(mesh):
    """Blocks that other ranks read are empty here."""
    model, whole = build("fp8"), copy.deepcopy(build("fp8"))
    for index, block in enumerate(model.blocks):
        if index % mesh.world != mesh.rank:
            block.to("meta")
    model.block_provider = ShardedBlocks(model.blocks, mesh.everybody, CPU, owner=lambda index: index % mesh.world)
    inputs = recipes.transformer_inputs(3, 6, 6, 1, 700, 5)
    return model(**inputs), whole(**inputs)


def test_a_rank_reads_only_its_own_blocks():
    for out, expected in run_ranks(Layout(ring=3), read_by_one):
        assert torch.equal(out, expected)


class OnCard:
    """A part that came over GPUs, which PyTorch does not page-lock where it lies."""

    def __init__(self, size):
        self.size = size

    def cpu(self):
        return torch.zeros(self.size, dtype=torch.uint8)


def test_parts_that_came_over_gpus_are_kept_in_host_memory(monkeypatch):
    monkeypatch.setattr(ShardedBlocks, "_scattered", lambda self, packed, size, source: OnCard(size))
    shards = ShardedBlocks(
        build("fp8").blocks, Group([0], 0, None, Counter()), CPU, owner=lambda index: 0, in_host=True
    )  # fmt: skip
    assert [type(part) for part in shards._parts] == [torch.Tensor] * 3


def with_lora(mesh, storage):
    from wanvideo.checkpoints.load import load_transformer
    from wanvideo.lora.apply import apply_loras
    from wanvideo.lora.use import LoraUse

    files = jobs.official_files()
    model = load_transformer(files.transformer, files.adapter, dtype=torch.float32, quantize=storage)
    if mesh is not None:
        split_tokens(model, mesh, "sdpa")
        model.block_provider = ShardedBlocks(model.blocks, mesh.everybody, CPU)
    inputs = recipes.transformer_inputs(3, 6, 6, 0, 700, 5, text_dim=model.config.text_dim)
    inputs["image_embeds"] = inputs["image_embeds"][..., : model.config.image_dim]
    plain = model(**inputs)
    apply_loras(model, [LoraUse(jobs.lora_file(), 0.7)])
    changed = model(**inputs)
    apply_loras(model, [])
    return plain, changed, model(**inputs)


@pytest.mark.parametrize("storage", [None, "fp8"])
def test_loras_are_applied_to_shards_and_taken_back(storage):
    expected = with_lora(None, storage)
    assert (expected[1] - expected[0]).abs().max() > 1e-4
    for result in run_ranks(Layout(ulysses=2), with_lora, storage):
        for ours, alone in zip(result, expected, strict=True):
            assert (ours - alone).abs().max() <= 1e-5
