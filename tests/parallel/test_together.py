"""Everything at once on eight ranks and in every layout of the documents: latents are those of one rank.

Ranks of one layout make all videos one after another, as a warm group does.
"""

import copy
import functools
from dataclasses import dataclass, replace

import pytest
import torch
from support import recipes
from support.ranks import CPU, run_ranks
from support.sampling import SETTINGS, conditioning
from support.tiny import tiny_transformer, tiny_vae

from wanvideo import run_windows
from wanvideo.checkpoints.quantize import pack_linears
from wanvideo.lora.apply import apply_loras
from wanvideo.lora.use import LoraUse
from wanvideo.memory.residency import Residency
from wanvideo.parallel.layout import Layout
from wanvideo.parallel.residency import ShardedResidency
from wanvideo.parallel.team import Team
from wanvideo.parallel.transform import split_rows, split_tokens
from wanvideo.request import StepCache
from wanvideo.sampling.setup import SamplingSetup

WIDTH = 1024  # 8 heads, which Ulysses splits by 8
LAYOUTS = [
    Layout(ulysses=8), Layout(ulysses=4, ring=2), Layout(ulysses=2, ring=4), Layout(ring=8),
    Layout(cfg=2, ulysses=2, ring=2),
]  # fmt: skip
TWO_PASSES = replace(SETTINGS, guidance_scale=3.0)
THREE_PASSES = replace(SETTINGS, guidance_scale=3.0, audio_guidance_scale=2.0)


@dataclass(frozen=True)
class Case:
    """A video of a window or two, and what holds its weights. size: rows and columns of tokens."""

    settings: object
    speakers: int
    size: tuple[int, int]
    frames: int = 9
    storage: str | None = None
    has_lora: bool = False
    shard: bool = False
    num_streamed: int = 0


CASES = {
    "one pass": Case(SETTINGS, 1, (3, 3), 13),
    "two passes, streamed fp8": Case(TWO_PASSES, 2, (2, 5), storage="fp8", num_streamed=1),
    "three passes, a step cache, shards in fp8, a LoRA": Case(
        replace(THREE_PASSES, steps=3, step_cache=StepCache("magcache", 3.0, start_step=1, max_skips=100)), 2, (3, 3),
        storage="fp8", has_lora=True, shard=True,
    ),
    "one pass, streamed shards, a LoRA": Case(SETTINGS, 1, (2, 5), has_lora=True, shard=True, num_streamed=1),
}  # fmt: skip


def lora():
    name = "diffusion_model.blocks.1.self_attn.q.lora_{}.weight"
    shapes = {"down": (4, WIDTH), "up": (WIDTH, 4)}
    return {name.format(kind): recipes.tensor(f"lora.{kind}", shape, 5, 0.1) for kind, shape in shapes.items()}


@functools.cache
def models():
    return tiny_transformer(dim=WIDTH), tiny_vae()


def model_of(case, mesh):
    model = copy.deepcopy(models()[0])
    for block in model.blocks if case.storage else ():
        pack_linears(block, case.storage)
    is_sharded = mesh is not None and case.shard
    residency = ShardedResidency(model, CPU, mesh.sequence) if is_sharded else Residency(model, CPU)
    if is_sharded:
        residency.owner = lambda block: block % mesh.sequence.size
    residency.place(case.num_streamed if mesh is not None else 0)
    apply_loras(model, [LoraUse(lora(), 0.5)] if case.has_lora else [])
    return model


def latents(case, mesh=None, team=None):
    """Of all windows."""
    model, decoder = model_of(case, mesh), models()[1]
    if mesh is not None:
        split_tokens(model, mesh, "sdpa")
        split_rows(decoder, mesh)
    height, width = (16 * side for side in case.size)
    picture = recipes.tensor("in.image", (1, 3, height, width), 5, 0.4).clamp(-1, 1)
    given = conditioning(
        case.frames, case.speakers, references=picture,
        speaker_masks=recipes.speaker_masks(height // 8, width // 8, case.speakers),
    )  # fmt: skip
    windows = run_windows(model, decoder, given, case.settings, 3, ranks=team)
    return torch.cat([window.latents for window in windows], 1)


@functools.cache
def alone(name):
    return latents(CASES[name])


def errors(mesh):
    """The largest differences of a rank's latents, relative to the largest latent; of videos with enough passes."""
    team, found = Team(mesh), {}
    for name, case in CASES.items():
        if len(SamplingSetup.of(case.settings, True).passes) < mesh.layout.cfg:
            continue
        team.begin()
        found[name] = (latents(case, mesh, team) - alone(name)).abs().max() / alone(name).abs().max()
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: f"{one.cfg}x{one.ulysses}x{one.ring}")
def test_videos_of_every_layout_are_those_of_one_rank(layout):
    for name in CASES:
        alone(name)  # once, for all ranks and layouts
    for found in run_ranks(layout, errors):
        assert len(found) == (4 if layout.cfg == 1 else 2) and max(found.values()) <= 1e-5, found
