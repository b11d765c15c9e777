"""What depends on GPUs that are not here: which of several is used, and products that not every one has."""

from types import SimpleNamespace

import pytest
import torch

from wanvideo.engine import host
from wanvideo.memory import streaming
from wanvideo.memory.streaming import BlockStreamer
from wanvideo.ops.linear import layer
from wanvideo.ops.linear.layer import RowScaledLinear
from wanvideo.ops.quantized import FP8

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


def test_memory_that_cannot_be_page_locked_ends_no_run(monkeypatch, caplog):
    """CUDA keeps the error, and the next kernel that is launched raises it, whichever that is."""
    kept = []

    def kernel(*_, device):
        assert device == "cuda"
        raise RuntimeError(f"CUDA error: {kept.pop()}")

    library = SimpleNamespace(cudaHostRegister=lambda pointer, size, flags: kept.append("limit") or 2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: library)
    monkeypatch.setattr(torch, "zeros", kernel)
    streaming._page_lock(torch.empty(8))
    assert not kept and "could not be page-locked" in caplog.text


def refused(*_, **__):
    raise RuntimeError("Rowwise scaling is not currently supported on your device")


def product(x, weight, scale, weight_scale, bias, out_dtype, use_fast_accum):
    return ((x.float() * scale) @ (weight.float() * weight_scale)).to(out_dtype)


@pytest.mark.parametrize(
    ("multiply", "capability", "works"),
    [(product, (8, 9), True), (refused, (8, 9), False), (refused, (12, 0), False), (product, (8, 6), False),
     (lambda *args, **options: product(*args, **options).flip(0), (9, 0), False)],
)  # fmt: skip
def test_fp8_products_are_used_where_they_work(monkeypatch, multiply, capability, works):
    """PyTorch refuses them on some GPUs, and on all but the newest of Windows."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch, "_scaled_mm", multiply)
    monkeypatch.setattr(layer, "_FP8_PRODUCTS", {})
    assert layer.multiplies_fp8(CPU) == works == layer._FP8_PRODUCTS[CPU]
    weight = SimpleNamespace(dtype=FP8, device=SECOND)
    stored = SimpleNamespace(weight=weight, in_features=64, out_features=64)
    layer._FP8_PRODUCTS[SECOND] = works
    assert RowScaledLinear.multiplies_stored.fget(stored) == works
