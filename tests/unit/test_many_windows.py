"""Hours of video: what many windows, scenes and pictures cost does not grow with their number."""

import pickle
import time
from types import SimpleNamespace

import pytest
import torch
from support import host_memory

from wanvideo.engine.encoders import SpooledEmbeds, encode_references
from wanvideo.engine.shared import Beginning, share_beginning
from wanvideo.fleet.messages import Question
from wanvideo.fleet.remote import RemoteRender
from wanvideo.geometry import WindowPlan
from wanvideo.parallel.layout import WantedRanks
from wanvideo.request import EngineOptions, LoopSettings
from wanvideo.runs.identity import digest_of, digest_of_each
from wanvideo.sampling.conditioning import Conditioning
from wanvideo.sampling.setup import SamplingSetup

PICTURES = torch.rand(5, 3, 8, 8)
CODE = """
import sys
import torch
from support import host_memory
from wanvideo.engine.encoders import encode_references

class Pictures:
    def __len__(self):
        return int(sys.argv[1])

    def __getitem__(self, index):
        return torch.full((3, 8, 8), float(index))

with host_memory.Peak() as peak:
    embeds = encode_references(lambda pictures: pictures.mean() * torch.ones(1, 257, 1280), Pictures())
    assert all(float(embeds[index].mean()) == index for index in range(len(embeds)))
print(peak.grown)
"""


def encode(pictures):
    return (pictures.flatten(1)[:, None, :12] * 3).to(torch.bfloat16)


def test_embeddings_of_many_pictures_are_read_as_they_were_made():
    embeds = encode_references(encode, PICTURES)
    expected = encode(PICTURES)
    assert isinstance(embeds, SpooledEmbeds) and len(embeds) == 5
    assert all(torch.equal(embeds[index], expected[index]) for index in range(5)) and embeds[0].dtype == torch.bfloat16
    assert digest_of_each(embeds[index] for index in range(5)) == digest_of(*expected)
    with pytest.raises(IndexError):
        embeds[5]
    assert torch.equal(encode_references(encode, PICTURES[:1]), expected[:1])


@host_memory.NEEDS_PROC
def test_embeddings_of_200_pictures_take_the_memory_of_60():
    few, many = (host_memory.run(CODE, count)[0] for count in (60, 200))
    assert many < few + 20e6, (few, many)


class Alone:
    """A team's first rank, whose messages could go to others."""

    index = 0

    def share(self, value):
        self.num_bytes = len(pickle.dumps(value))
        return value


def conditioning():
    embeds = encode_references(encode, PICTURES)
    return Conditioning(PICTURES, [torch.zeros(1, 4)], image_embeds=embeds, num_frames=200)


def test_other_ranks_get_embeddings_when_they_ask_for_them():
    given = conditioning()
    shared = share_beginning(Alone(), lambda: Beginning(given, 1)).conditioning.image_embeds
    assert len(shared) == 5 and torch.equal(shared[3], given.image_embeds[3])


def test_workers_get_embeddings_when_they_ask_for_them():
    class Group:
        def run(self, task, answer, poll):
            self.task = pickle.loads(pickle.dumps(task))
            self.answer = answer(Question("embeds", (3,)))
            yield from ()

    group, given = Group(), conditioning()
    checkpoints = dict.fromkeys(("transformer", "adapter"))
    engine = SimpleNamespace(checkpoints=checkpoints, loras=(), options=EngineOptions(device="cpu", dtype="fp32"))
    vae = SimpleNamespace(checkpoint=None, precision="fp32")
    render = RemoteRender(group, WantedRanks(), vae, lambda: None, lambda: None)
    setup = SamplingSetup.of(LoopSettings(steps=1), has_audio=False)
    assert list(render(engine, given, setup, 1)) == []
    assert group.task.num_embeds == 5 and group.task.conditioning.image_embeds is None
    assert torch.equal(group.answer, given.image_embeds[3])


def test_a_film_of_thousands_of_scenes_is_planned_in_no_time():
    cuts = tuple(range(100, 2_000_000, 100))
    started = time.process_time()  # which other processes do not move
    plan = WindowPlan(2_000_000, 81, 9, cuts)
    spans = list(plan)
    assert len(spans) == len(plan) == 2 * 20_000 and sum(span.num_new for span in spans) == 2_000_000
    assert [span.index for span in spans if span.begins_scene] == list(range(0, 40_000, 2))
    assert plan.start_of(39_999) == spans[-1].start == 1_999_972 and plan.scene_first(39_999) == 39_998
    assert time.process_time() - started < 10, "for each window all scenes were looked through"
