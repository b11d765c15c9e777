"""torch.compile of the transformer's blocks: the same numbers, and one compilation for everything that changes."""

import shutil

import pytest
import torch
from support import recipes
from support.packed import packed_transformer
from support.tiny import tiny_transformer

from wanvideo.errors import InputError
from wanvideo.lora.apply import apply_loras
from wanvideo.lora.use import LoraUse
from wanvideo.memory.residency import Residency
from wanvideo.request import EngineOptions

QUERY, WIDEN = "diffusion_model.blocks.{}.self_attn.q", "diffusion_model.blocks.{}.ffn.0"


def inputs(speakers=1, timestep=500, tokens=37, seed=9, frames=2):
    given = recipes.transformer_inputs(frames, 8, 8, speakers, timestep, seed)
    return given | {"text_embeds": recipes.tensor("text", (tokens, recipes.TINY["text_dim"]), seed)}


def lora(seed=1, rank=4):
    state = {}
    for n in range(2):
        for name, rows in ((QUERY, 256), (WIDEN, 384)):
            down, up = ((rank, 256), (rows, rank))
            layer = name.format(n)
            state[f"{layer}.lora_A.weight"] = recipes.tensor(f"{layer}.a", down, seed, 0.05)
            state[f"{layer}.lora_B.weight"] = recipes.tensor(f"{layer}.b", up, seed, 0.05)
    return state


@pytest.fixture
def graphs():
    """What has been compiled since the test began."""
    torch._dynamo.reset()
    yield (found := Graphs())
    found.seen.clear()
    torch._dynamo.reset()


class Graphs:
    def __init__(self):
        self.seen = []

    def __call__(self, graph, example_inputs):
        self.seen.append(graph)
        return graph.forward

    def __len__(self):
        return len(self.seen)


@torch.no_grad()
def both(model, plain, **changes):
    """A call of the compiled model, which must be that of the plain one to the bit."""
    given = inputs(**changes)
    found = model(**given)
    assert torch.equal(found, plain(**given))
    return found


@pytest.mark.parametrize("name", ["dense", "fp8", "fp8_e5m2", "int8", "fp4", "Q8_0", "Q4_K"])
def test_formats_compile_once(name, graphs):
    make = tiny_transformer if name == "dense" else lambda: packed_transformer(name)
    model, plain = make(), make()
    model.compile_blocks("default", graphs)
    both(model, plain)
    once = len(graphs)
    model.compile_blocks("default", graphs)  # again, as for every run
    assert 0 < once < 12  # what lies between attentions, for both blocks together
    for timestep, tokens, seed in ((900, 37, 1), (100, 12, 2), (3, 512, 3), (3, 1, 4)):
        both(model, plain, timestep=timestep, tokens=tokens, seed=seed)
    residency = Residency(model, "cpu")
    for num_streamed in (2, 1, 0):
        residency.place(num_streamed)
        both(model, plain, tokens=20)
    residency.offload()
    both(model, plain)
    assert len(graphs) == once


def test_another_shape_compiles_once_more(graphs):
    model, plain = tiny_transformer(), tiny_transformer()
    model.compile_blocks("default", graphs)
    both(model, plain, frames=2)
    both(model, plain, frames=3)
    twice = len(graphs)
    for frames in (4, 2):
        both(model, plain, frames=frames)
    assert len(graphs) == twice


def test_numbers_of_speakers_take_turns(graphs):
    model, plain = tiny_transformer(), tiny_transformer()
    model.compile_blocks("default", graphs)
    both(model, plain, speakers=1)
    both(model, plain, speakers=2)
    twice = len(graphs)
    for speakers in (1, 2, 1, 2):
        both(model, plain, speakers=speakers, tokens=20 + speakers)
    assert len(graphs) == twice


@pytest.mark.parametrize("name", ["int8", "Q8_0"])
@pytest.mark.parametrize("strengths", [(0.5, 1.0, -2.0), ((1.0, 0.5, 0.25), (0.0, 2.0, 1.0))])
def test_strengths_compile_nothing(name, strengths, graphs):
    model, plain = packed_transformer(name), packed_transformer(name)
    model.compile_blocks("default", graphs)
    seen, results = [], []
    for strength in strengths:
        for each in (model, plain):
            apply_loras(each, [LoraUse(lora(), strength)])
        for step in range(3):
            for each in (model, plain):
                each.set_step(step)
            results.append(both(model, plain))
            seen.append(len(graphs))
    assert len(set(seen)) == 1 and any(not torch.equal(results[0], result) for result in results)
    residency = Residency(model, "cpu")
    residency.place(2)
    both(model, plain)
    assert len(graphs) == seen[0]


def test_off_is_off(graphs):
    model, plain = tiny_transformer(), tiny_transformer()
    model.compile_blocks("default", graphs)
    model.compile_blocks(None)
    both(model, plain)
    assert not len(graphs)
    assert EngineOptions().compile is None


def test_recorded_addresses_are_not_used(caplog):
    with caplog.at_level("INFO", "wanvideo"):
        tiny_transformer().compile_blocks("max-autotune", "cudagraphs")
    assert "'inductor' is used" in caplog.text and "as 'max-autotune-no-cudagraphs'" in caplog.text


def test_unknown_modes_are_refused():
    with pytest.raises(InputError, match="'fast'.*default, max-autotune"):
        EngineOptions(compile="fast")
    with pytest.raises(InputError, match="'fast'.*default, max-autotune"):
        tiny_transformer().compile_blocks("fast")


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_inductor(caplog):
    """The real compiler: CUDA graphs are left out, and the numbers differ in the order of float32 sums only."""
    torch._dynamo.reset()
    model, plain = packed_transformer("Q8_0"), packed_transformer("Q8_0")
    model.blocks, plain.blocks = model.blocks[:1], plain.blocks[:1]
    with caplog.at_level("INFO", "wanvideo"):
        model.compile_blocks("reduce-overhead")
    assert "'reduce-overhead' is used without CUDA graphs, as 'default'" in caplog.text
    with torch.no_grad():
        for changes in ({}, {"timestep": 100, "tokens": 11}):
            found, expected = model(**inputs(**changes)), plain(**inputs(**changes))
            assert float((found - expected).norm() / expected.norm()) < 1e-5
    torch._dynamo.reset()
