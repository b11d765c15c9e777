"""The tiny VAE's decoder: as ComfyUI's on the same weights, as many frames as the VAE's, in the memory of one frame."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from support import recipes
from support.comfy_models import required
from support.comfy_server import find_comfyui

from wanvideo.checkpoints.load import load_tiny_vae
from wanvideo.errors import CheckpointError, InputError
from wanvideo.models.vae_tiling import Tiling

STATE = recipes.tiny_vae_state_dict(7)
SMALL = recipes.tiny_vae_state_dict(7, (16, 8, 8, 8))


def latents(frames, rows=3, columns=4):
    return recipes.tensor(f"latents {frames}", (16, frames, rows, columns), 7)


@pytest.fixture(scope="module")
def small():
    return load_tiny_vae(SMALL, dtype=torch.float32)


@pytest.fixture
def reference(monkeypatch):
    """ComfyUI's decoder, of whose package only torch's own layers are asked for."""
    with required():
        path = find_comfyui().path / "comfy" / "taesd" / "taehv.py"
    layers = SimpleNamespace(Conv2d=torch.nn.Conv2d)
    stands_for = {
        "comfy.ops": SimpleNamespace(disable_weight_init=layers),
        "comfy.model_management": SimpleNamespace(intermediate_device=lambda: torch.device("cpu")),
    }
    comfy = SimpleNamespace(**{name.partition(".")[2]: module for name, module in stands_for.items()})
    for name, module in {"comfy": comfy, **stands_for}.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("comfyui_taehv", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TAEHV(latent_channels=16)
    assert not model.load_state_dict(STATE, strict=False).unexpected_keys
    return model.eval()


@torch.inference_mode()
def test_frames_are_those_of_comfyui(reference):
    own = load_tiny_vae(STATE, dtype=torch.float32)
    for frames in (1, 3):
        given = latents(frames) * 3  # beyond what latents are limited to
        expected = reference.decode(given[None].clone())[0] * 2 - 1
        assert expected.std() > 0.05 and (expected.abs() < 1).float().mean() > 0.5
        assert (own.decode(given) - expected.clamp(-1, 1)).abs().max() <= 1e-4


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_there_are_as_many_frames_as_the_vae_makes(small, frames):
    pixels = small.decode(latents(frames))
    assert pixels.shape == (3, 4 * frames - 3, 24, 32) and pixels.abs().max() <= 1


def test_frames_come_one_by_one_and_look_only_back(small):
    given = latents(5)
    whole, stream = small.decode(given), small.decode_stream(given)
    first = [next(stream) for _ in range(5)]
    assert all(frame.shape == (3, 1, 24, 32) for frame in first)
    assert torch.equal(torch.cat(first, 1), whole[:, :5])
    assert torch.equal(small.decode(given[:, :2]), whole[:, :5])
    assert not torch.equal(small.decode(given[:, 1:])[:, :1], whole[:, 4:5])  # what came before counts


def test_tiles_are_parts_of_the_picture(small):
    given = latents(2, 4, 40)
    whole, tiled = small.decode(given), small.decode(given, Tiling(32, 256, 32, 224))
    assert tiled.shape == whole.shape == (3, 5, 32, 320)
    far = slice(0, 8 * 8)  # the second tile begins behind them, and the first ends too far away to matter
    assert (tiled[..., far] - whole[..., far]).abs().max() <= 1e-5
    assert not torch.equal(tiled, whole)


@pytest.mark.parametrize("shape", [(48, 2, 3, 4), (16, 0, 3, 4), (16, 3, 4)])
def test_other_latents_are_refused(small, shape):
    with pytest.raises(InputError, match=r"cannot be decoded. Give \[16, T, h, w\]"):
        small.decode(torch.zeros(shape))


def test_a_published_file_has_an_encoder_too(small, tmp_path):
    state = {key: value.half() for key, value in SMALL.items()} | {"encoder.0.weight": torch.zeros(64, 3, 3, 3).half()}
    save_file(state, tmp_path / "taew2_1.safetensors")
    loaded = load_tiny_vae(tmp_path / "taew2_1.safetensors")
    assert loaded.dtype == torch.float16
    close = (loaded.float().decode(latents(2)) - small.decode(latents(2))).abs().max()
    assert close <= 1e-6  # its weights are exact in float16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder.22.bias": None}, "decoder.22.bias is missing"),
        ({"decoder.13.conv.weight": (8, 8, 1, 1)}, r"decoder.13.conv.weight is \[8, 8, 1, 1\], not \[16, 8, 1, 1\]"),
        ({"decoder.4.conv.2.weight": None}, "1 missing"),
        ({"decoder.4.conv.2.weight": (16, 16, 1, 1)}, "1 of another size"),
        ({"decoder.1.weight": (16, 16)}, r"decoder.1.weight is \[16, 16\]"),
        ({"decoder.30.weight": (1,)}, "1 too many"),
    ],
)
def test_a_broken_file_is_answered(changes, message):
    state = SMALL | {key: shape and torch.zeros(shape) for key, shape in changes.items()}
    with pytest.raises(CheckpointError, match=message):
        load_tiny_vae({key: value for key, value in state.items() if value is not None})


def test_numbers_that_are_not_finite_are_answered():
    with pytest.raises(CheckpointError, match="decoder.22.bias that are not finite"):
        load_tiny_vae(SMALL | {"decoder.22.bias": torch.full((3,), torch.nan)})
