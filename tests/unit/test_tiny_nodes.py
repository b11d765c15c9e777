"""A tiny VAE in nodes: it decodes for a look, makes the previews, and is refused where windows go on from frames."""

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support import recipes
from support.folders import comfy_folders
from support.pack import load_pack, node

from wanvideo.checkpoints.load import load_tiny_vae
from wanvideo.models.tiny_vae import TinyVAE, TinyVAEConfig

load_pack()
common, preview = (sys.modules[f"pack_under_test.{name}"] for name in ("nodes_common", "nodes_preview"))
STATE = recipes.tiny_vae_state_dict(7, (16, 8, 8, 8))
LATENTS = recipes.tensor("latents", (16, 3, 4, 6), 7)
NAME = "taew2_1.safetensors"


@pytest.fixture
def approximate(tmp_path, monkeypatch):
    """ComfyUI's folder of tiny VAEs, with one in it."""
    folder = tmp_path / "models" / "vae_approx"
    folder.mkdir(parents=True)
    save_file({key: value.half() for key, value in STATE.items()}, folder / NAME)
    monkeypatch.setattr(common, "folder_paths", comfy_folders(tmp_path / "models", tmp_path))
    return folder


def decoded():
    with torch.inference_mode():
        return load_tiny_vae(STATE, dtype=torch.float32).decode(LATENTS).permute(1, 2, 3, 0) / 2 + 0.5


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-6), ("fp16", 0.02)])
def test_it_decodes_a_plain_clip(approximate, precision, near):
    assert node("WanVideoTinyVAELoader").VALIDATE_INPUTS(model_name=NAME) is True
    vae = node("WanVideoTinyVAELoader").loadmodel(NAME, precision)[0]
    images = node("WanVideoDecode").decode(vae, {"samples": LATENTS[None]})[0]
    assert images.shape == (9, 32, 48, 3) and (images - decoded()).abs().max() <= near


def test_comfyuis_own_serves_too():
    model = TinyVAE(TinyVAEConfig((16, 8, 8, 8)))
    model.load_state_dict(STATE)
    theirs = SimpleNamespace(first_stage_model=model, vae_dtype=torch.float32)
    images = node("WanVideoDecode").decode(theirs, {"samples": LATENTS[None]})[0]
    assert (images - decoded()).abs().max() <= 1e-6
    with pytest.raises(ValueError, match="the state dict is a tiny VAE"):
        node("WanVideoEncode").encode(theirs, torch.zeros(1, 32, 48, 3))


@pytest.mark.parametrize(
    ("name", "call", "inputs"),
    [
        ("WanVideoEncode", "encode", {"image": torch.zeros(1, 32, 48, 3)}),
        ("WanVideoImageToVideoMultiTalk", "process", {"start_image": torch.zeros(1, 32, 48, 3)}),
        ("WanVideoImageToVideoEncode", "process", {"start_image": torch.zeros(1, 32, 48, 3)}),
    ],
)
def test_windows_do_not_go_on_from_its_frames(approximate, name, call, inputs):
    vae = node("WanVideoTinyVAELoader").loadmodel(NAME)[0]
    sizes = {} if call == "encode" else {"width": 48, "height": 32}
    with pytest.raises(ValueError, match="taew2_1.safetensors is a tiny VAE, which cannot encode(?s:.)*Link a Wan2.1"):
        getattr(node(name), call)(vae=vae, **sizes, **inputs)


def test_a_wrong_file_is_named_when_the_graph_is_queued(approximate):
    save_file(
        {key: value for key, value in STATE.items() if key != "decoder.1.weight"}, approximate / "cut.safetensors"
    )
    save_file(recipes.vae_state_dict(5), approximate / "vae.safetensors")
    check = node("WanVideoTinyVAELoader").VALIDATE_INPUTS
    assert "the tiny VAE slot needs a tiny VAE of Wan2.1" in check(model_name="vae.safetensors")
    assert "of no kind that is known here" in check(model_name="cut.safetensors")
    assert "is missing" in check(model_name="absent.safetensors")


def test_previews_are_decoded_behind_the_latent_before(approximate):
    pictures = preview.TinyPreview()(LATENTS, [0, 2])
    assert [picture.size for picture in pictures] == [(48, 32)] * 2
    first, last = (torch.from_numpy(np.array(picture)) / 255 for picture in pictures)
    assert (first - decoded()[0]).abs().max() <= 0.5 / 255 + 1e-4
    assert (last - decoded()[-1]).abs().mean() < (first - decoded()[-1]).abs().mean()


def test_only_a_file_that_is_called_so_makes_previews(approximate):
    (approximate / NAME).rename(approximate / "taehv.safetensors")
    assert preview.TinyPreview()(LATENTS, [0]) is None


def test_a_preview_ends_no_run(approximate, caplog):
    save_file(STATE | {"decoder.22.bias": torch.full((3,), torch.nan)}, approximate / NAME)
    decode = preview.TinyPreview()
    with caplog.at_level(logging.WARNING, "wanvideo"):
        assert decode(LATENTS, [0]) is decode(LATENTS, [0]) is None
    said = [record.message for record in caplog.records if "Previews go on without" in record.message]
    assert len(said) == 1 and "not finite" in said[0]


@pytest.mark.parametrize(("method", "has_file"), [("taesd", True), ("taesd", False), ("latent2rgb", True)])
def test_the_user_chooses_the_previews(approximate, monkeypatch, method, has_file):
    theirs = SimpleNamespace(decode_latent_to_preview=lambda latents: Image.new("RGB", (6, 4)))
    methods = SimpleNamespace(TAESD="taesd")
    monkeypatch.setitem(sys.modules, "latent_preview", SimpleNamespace(
        args=SimpleNamespace(preview_method=method), LatentPreviewMethod=methods, get_previewer=lambda *_: theirs,
    ))  # fmt: skip
    formats = SimpleNamespace(Wan21=lambda: None)
    monkeypatch.setattr(common, "comfy", SimpleNamespace(latent_formats=formats), raising=False)
    monkeypatch.setattr(preview, "host", lambda: SimpleNamespace(device=torch.device("cpu")))
    if not has_file:
        (approximate / NAME).unlink()
    kind, picture, _ = common._preview(LATENTS, preview.TinyPreview())
    assert (kind, picture.size) == ("JPEG", (96, 64) if method == "taesd" and has_file else (12, 8))
