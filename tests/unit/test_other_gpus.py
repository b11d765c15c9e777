"""What depends on GPUs that are not here: which of several is used, and products that not every one has."""

import torch

from wanvideo.engine import host
from wanvideo.memory.streaming import BlockStreamer

CPU, SECOND = torch.device("cpu"), torch.device("cuda", 1)


def test_the_gpu_of_a_process_is_that_of_the_thread_that_asks_for_it(monkeypatch):
    """Triton launches on the thread's own GPU, and other threads begin with the first one."""
    own = []
    monkeypatch.setattr(torch.cuda, "set_device", own.append)
    monkeypatch.setattr(host, "_device", lambda name: SECOND)
    assert host.ProcessHost("cuda:1").device == SECOND and own == [SECOND]
    for other in (CPU, torch.device("cuda")):
        monkeypatch.setattr(host, "_device", lambda name, other=other: other)
        assert host.ProcessHost().device == other and own == [SECOND]


def test_slots_are_free_on_the_gpu_that_they_are_on(monkeypatch):
    """An event belongs to the GPU on whose stream it was first recorded, and can be recorded on no other one's."""
    recorded = []

    class Event:
        def record(self, stream=None):
            recorded.append(stream)

    streamer = BlockStreamer([torch.nn.Linear(2, 2) for _ in range(3)], CPU, 3)
    monkeypatch.setattr(streamer, "on_gpu", True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"of {device}")
    streamer._open()
    assert recorded == ["of cpu"] * 2
