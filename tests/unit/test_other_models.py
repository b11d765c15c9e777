"""Models and LoRAs that are not the ones that run here: each is named where it is chosen, with what to use instead."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from support import recipes
from support.tiny import tiny_transformer

from wanvideo.checkpoints.checkpoint import check_image_to_video, check_speakers, recognize
from wanvideo.checkpoints.dialects import Kind
from wanvideo.checkpoints.load import load_transformer, load_vae, open_checkpoint
from wanvideo.errors import CheckpointError
from wanvideo.lora.apply import apply_loras
from wanvideo.lora.deltas import is_finite
from wanvideo.lora.file import check_lora, open_lora, read_lora
from wanvideo.lora.plan import linear_layers, plain_shapes
from wanvideo.lora.use import LoraUse

QUERY = "diffusion_model.blocks.0.self_attn.q"


def transformer(extra=(), without=(), **changes):
    shapes = recipes.transformer_shapes(**recipes.TINY | changes) | {name: (8, 8) for name in extra}
    kept = {name: shape for name, shape in shapes.items() if not any(part in name for part in without)}
    return {name: torch.empty(shape, device="meta") for name, shape in kept.items()}


VARIANTS = {
    "FLF2V": (transformer(["img_emb.emb_pos"]), "first-last-frame transformer .FLF2V"),
    "SkyReels-V2": (transformer(["fps_embedding.weight"], ["img"], in_dim=16), "SkyReels-V2"),
    "Fun control": (transformer(["ref_conv.weight"], in_dim=48), "Wan Fun control"),
    "Fun control 1.0": (transformer(in_dim=48), "Wan Fun control"),
    "Fun camera": (transformer(["control_adapter.conv.weight"], in_dim=32), "Wan Fun camera"),
    "HuMo": (transformer(["audio_proj.audio_proj_glob_1.layer.weight"]), "HuMo"),
    "VACE": (transformer(["vace_blocks.0.after_proj.weight"], ["img"], in_dim=16), "VACE"),
    "S2V": (transformer(["audio_injector.injector.0.k.weight"], ["img"], in_dim=16), "Wan2.2 S2V"),
    "Animate": (transformer(["face_adapter.fuser_blocks.0.k_norm.weight"]), "Wan2.2 Animate"),
    "one expert of Wan2.2": (transformer(without=["img"]), "Wan2.2 image-to-video .*one of two experts"),
    "Wan2.2 5B": (transformer(without=["img"], in_dim=48, dim=3072, out_dim=48), "Wan2.2 TI2V .*another VAE"),
    "FantasyTalking": (
        transformer(["proj_model.proj.weight", "blocks.0.cross_attn.k_proj.weight"]), "FantasyTalking in it",
    ),
    "LiveAct": (transformer(["blocks.0.self_attn.memory_proj_k.weight"]), "SoulX-LiveAct"),
    "another number of channels": (transformer(in_dim=40), "40 input channels"),
}  # fmt: skip


@pytest.mark.parametrize("case", VARIANTS)
def test_other_wan_transformers(case):
    state, family = VARIANTS[case]
    with pytest.raises(CheckpointError, match=f"(?s){family}.*Wan2.1-I2V-14B") as error:
        load_transformer(state)
    assert str(error.value).count("\n") == 1 and "the transformer slot needs" in str(error.value)


def test_a_transformer_that_takes_no_picture():
    base = recognize(transformer(without=["img"], in_dim=16))
    with pytest.raises(CheckpointError, match="text-to-video transformer .16 channels., which takes no picture"):
        check_image_to_video(base)
    check_image_to_video(recognize(transformer()))


def test_a_tiny_vae():
    state = recipes.tiny_vae_state_dict(5, (16, 8, 8, 8))
    with pytest.raises(CheckpointError, match="tiny VAE .TAE. of Wan2.1 .taew2_1.*the VAE slot needs"):
        load_vae(state)


@pytest.mark.parametrize(
    ("name", "metadata", "is_single"),
    [
        ("infinitetalk_single_fp8.safetensors", None, True),
        ("Wan2_1-InfiniTetalk-Single_fp16.safetensors", None, True),
        ("wan2.1_infiniteTalk_multi_fp16.safetensors", None, False),
        ("single/infinitetalk.safetensors", None, True),
        ("multi/infinitetalk.safetensors", None, False),
        ("multitalk.safetensors", None, None),
        ("my-single-file.safetensors", None, None),
        ("infinitetalk_single.safetensors", {"modelspec.title": "InfiniteTalk multi"}, False),
    ],
)
def test_how_many_speakers_an_adapter_is_for(name, metadata, is_single, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    save_file(recipes.adapter_state_dict(5), path, metadata)
    adapter = recognize(path)
    assert adapter.is_single is is_single
    check_speakers(adapter, 1)
    if is_single:
        with pytest.raises(CheckpointError, match="for one person.*2 speakers"):
            check_speakers(adapter, 2)
    else:
        check_speakers(adapter, 2)
    assert recognize(recipes.vae_state_dict(5)).is_single is None


def test_multitalk_as_it_is_published_beside_the_base_and_linked_into_its_folder(tmp_path):
    """Its folder has the adapter and the index of the whole model, whose shards are the base's."""
    own, base = tmp_path / "MeiGen-MultiTalk", tmp_path / "Wan2.1-I2V-14B-480P"
    own.mkdir(), base.mkdir()
    weights = {"diffusion_pytorch_model-00001-of-00001.safetensors": recipes.transformer_state_dict(5)}
    weights["multitalk.safetensors"] = recipes.adapter_state_dict(5)
    index = json.dumps({"weight_map": {key: name for name, state in weights.items() for key in state}})
    for folder, names in ((own, ["multitalk.safetensors"]), (base, weights)):
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
        for name in names:
            save_file(weights[name], folder / name)
    adapter = open_checkpoint(own, Kind.ADAPTER)
    assert adapter.paths == (own / "multitalk.safetensors",) and adapter.identity.dim == 256
    whole = open_checkpoint(base, Kind.TRANSFORMER)
    assert len(whole.paths) == 2 and whole.identity.has_audio


def pair(layer=QUERY, rows=256, columns=256, down="lora_down", up="lora_up"):
    return {f"{layer}.{down}.weight": torch.ones(4, columns), f"{layer}.{up}.weight": torch.ones(rows, 4)}


FOREIGN = {
    "lora_unet_double_blocks_0_img_attn_qkv": "Flux or HunyuanVideo",
    "transformer.single_transformer_blocks.0.attn.to_q": "Flux",
    "lora_unet_down_blocks_0_attentions_0_proj_in": "Stable Diffusion or SDXL",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": "a text encoder",
    "transformer.transformer_blocks.0.attn1.to_q": "LTX-Video",
    "diffusion_model.vace_blocks.0.self_attn.q": "Wan VACE",
}


@pytest.mark.parametrize("layer", FOREIGN)
def test_loras_for_other_models(layer, tmp_path):
    save_file(pair(layer), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=f"x.safetensors is a LoRA for {FOREIGN[layer]}.*none of it fits"):
        open_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize(("width", "model"), [(1536, "Wan2.1 1.3B"), (3072, "Wan2.2 TI2V 5B")])
def test_loras_of_another_width(width, model):
    with pytest.raises(CheckpointError, match=f"is a LoRA for {model}"):
        open_lora(pair(rows=width, columns=width))


@pytest.fixture(scope="module")
def shapes():
    model = tiny_transformer()
    return plain_shapes(model, linear_layers(model))


def test_what_fits_partly_or_not_at_all(shapes, caplog):
    with caplog.at_level(logging.WARNING, "wanvideo"):
        check_lora(pair() | pair("diffusion_model.blocks.9.self_attn.q"), shapes)
    assert "1 of 2 differences fit this model" in caplog.text
    with pytest.raises(CheckpointError, match=r"fits nothing of this model: it changes blocks\.9"):
        check_lora(pair("diffusion_model.blocks.9.self_attn.q"), shapes)


@pytest.mark.parametrize("layer", ["lora_unet_blocks_0_self_attn.q", "lora_unet_blocks.0_self_attn_q"])
def test_half_dotted_names(layer, shapes):
    assert list(read_lora(open_lora(pair(layer)), shapes).entries) == ["blocks.0.self_attn.q.weight"]


BROKEN = {
    "lokr without sides": {f"{QUERY}.lokr_w1": torch.ones(()), f"{QUERY}.lokr_w2": torch.ones(())},
    "no rank": {f"{QUERY}.lora_down.weight": torch.ones(0, 256), f"{QUERY}.lora_up.weight": torch.ones(256, 0)},
    "no sides": {f"{QUERY}.lora_down.weight": torch.ones(()), f"{QUERY}.lora_up.weight": torch.ones(256, 4)},
    "loha of two ranks": {
        f"{QUERY}.hada_w{n}_{side}": torch.ones(shape)
        for n in (1, 2)
        for side, shape in (("a", (256, 4)), ("b", (5, 256)))
    },
    "whole numbers": pair() | {f"{QUERY}.lora_up.weight": torch.ones(256, 4, dtype=torch.int32)},
    "alpha of two": pair() | {f"{QUERY}.alpha": torch.ones(2)},
    "alpha NaN": pair() | {f"{QUERY}.alpha": torch.tensor(torch.nan)},
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_loras(case):
    with pytest.raises(CheckpointError, match=r"self_attn\.q"):
        open_lora(BROKEN[case])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_finite(value, dtype):
    model, state = tiny_transformer(), {key: value.to(dtype) for key, value in pair().items()}
    state[f"{QUERY}.lora_up.weight"][3, 2] = value
    said = r"not finite numbers in its changes of blocks\.0\.self_attn\.q\.\n"
    with pytest.raises(CheckpointError, match=said):
        apply_loras(model, [LoraUse(state)])
    with pytest.raises(CheckpointError, match=said):
        check_lora(state)
    assert torch.equal(model.blocks[0].self_attn.q.weight, tiny_transformer().blocks[0].self_attn.q.weight)


def test_values_of_a_file_are_looked_at_once(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr("wanvideo.lora.file.is_finite", lambda tensor: looked.append(tensor) or is_finite(tensor))
    save_file(pair(), tmp_path / "x.safetensors")
    chosen = check_lora(tmp_path / "x.safetensors")
    assert len(looked) == 2
    apply_loras(tiny_transformer(), [LoraUse(check_lora(chosen))])
    assert len(looked) == 2
    state = pair()
    in_memory = check_lora(state)
    state[f"{QUERY}.lora_up.weight"][0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="not finite"):
        check_lora(in_memory)


@pytest.mark.parametrize("noted", [[], {"lora_alpha": "x"}, {"lora_alpha": []}, {"alpha_pattern": [1]}, "x"])
def test_settings_that_are_none(noted, tmp_path, shapes):
    save_file(pair(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(noted))
    with pytest.raises(CheckpointError, match="its scale is not known"):
        check_lora(tmp_path, shapes)


def test_an_open_lora_is_opened_again_only_when_its_file_changed(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(pair(), path)
    opened = open_lora(path)
    assert open_lora(opened) is opened and LoraUse(opened).identity == LoraUse(path).identity
    save_file(pair() | pair("diffusion_model.blocks.1.self_attn.q"), path)
    assert len(open_lora(opened)) == 4


def test_a_base_is_still_recognized():
    assert open_checkpoint(recipes.transformer_state_dict(5), recognize(transformer()).kind).identity.channels == 36
