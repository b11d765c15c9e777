"""A number of streamed blocks that was asked for is tried wherever it may fit, and only there."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from support import jobs

from wanvideo import TalkingVideoPipeline
from wanvideo.engine import engine as module
from wanvideo.engine.engine import Engine
from wanvideo.errors import InputError
from wanvideo.memory.budget import CONTEXT_SLACK, GIB, window_need
from wanvideo.memory.planner import Device, plan_blocks

BLOCK, OTHER = GIB // 2, GIB


def test_the_slack_of_an_estimate_refuses_no_number_that_was_asked_for():
    need = window_need(32_760, 21, 5120, 13824, 40)
    least = plan_blocks(2**62, 40, BLOCK, OTHER, need, wanted=40).device_bytes
    made = plan_blocks(least - CONTEXT_SLACK, 40, BLOCK, OTHER, need, wanted=40)
    assert (made.num_streamed, made.device_bytes) == (40, least)
    for free, wanted in ((least - CONTEXT_SLACK, -1), (least - CONTEXT_SLACK - 1, 40)):
        with pytest.raises(InputError, match="with every block streaming"):
            plan_blocks(free, 40, BLOCK, OTHER, need, wanted=wanted)


@pytest.mark.parametrize("wanted", [-1, 1])
def test_room_that_others_did_not_make_refuses_no_number_that_was_asked_for(wanted, tmp_path, monkeypatch):
    """What the first plan was promised, a ComfyUI whose other nodes hold tensors of their own may not give."""
    monkeypatch.setattr(
        Engine, "_here", lambda engine, count: Device("GPU", 1000 if isinstance(count, partial) else 64 * GIB)
    )
    pipeline = TalkingVideoPipeline(jobs.official_files(), replace(jobs.OPTIONS, blocks_to_stream=wanted))
    if wanted < 0:
        with pytest.raises(InputError, match="with every block streaming"):
            list(pipeline.run(jobs.request(tmp_path)))
    else:
        assert list(pipeline.run(jobs.request(tmp_path))) and pipeline.engine.residency.num_streamed == wanted


def test_a_plan_counts_on_no_more_than_the_card_has(tmp_path, monkeypatch):
    """A host that promises the whole card counts what this run's models hold of it already."""
    engine = TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS).engine
    monkeypatch.setattr(engine, "host", SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(engine._transformer, "residency", SimpleNamespace(device_bytes=20 * GIB))
    monkeypatch.setattr(module, "choose", lambda *_: SimpleNamespace(name="sdpa"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=24 * GIB))
    assert engine._here(lambda: 24 * GIB).free_bytes == 24 * GIB
    assert engine._here(lambda: 2 * GIB).free_bytes == 22 * GIB
