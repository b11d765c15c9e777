"""Inside a forward the host never waits for the device: no tensor becomes a number, no copy is waited for."""

import pytest
import torch
from support import recipes
from support.tiny import tiny_transformer
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "is_nonzero"}


class Watch(TorchDispatchMode):
    """Notes every operation for which the host would have to wait for a GPU's result."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1].split(".")[0]
        if name in WAITING:
            self.waits.append(name)
        return function(*args, **(kwargs or {}))


def step(num_speakers):
    """A step of a window whose contexts are made, as the sampler runs it."""
    model = tiny_transformer().to(DEVICE)
    inputs = recipes.transformer_inputs(2, 8, 12, num_speakers, 500, 9)
    given = {key: value if value is None else value.to(DEVICE) for key, value in inputs.items()}
    text = model.text_context(given["text_embeds"], given["image_embeds"])
    audio = model.audio_context(given["audio"], given["speaker_masks"], *given["latents"].shape[2:])
    return lambda: model.denoise(given["latents"], given["timestep"], given["condition"], text, audio)


@pytest.mark.parametrize("num_speakers", [1, 2])
def test_no_tensor_becomes_a_number(num_speakers):
    run = step(num_speakers)
    for _ in range(2):  # the first one also makes the blocks' keys and values
        with Watch() as watch:
            run()
        assert not watch.waits


def test_the_watch_sees_a_wait():
    with Watch() as watch:
        assert torch.ones(2).sum().item() == 2
    assert watch.waits == ["_local_scalar_dense"]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="the driver that reports waits is CUDA's; there is no GPU here")
@pytest.mark.parametrize("num_speakers", [1, 2])
def test_the_driver_reports_no_wait(num_speakers):
    run = step(num_speakers)
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
