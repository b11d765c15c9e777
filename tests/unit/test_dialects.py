"""Every naming of every model comes out under the same names, with the same numbers."""

import json
from pathlib import Path

import pytest
import torch
from support import recipes, syncnets

from wanvideo.checkpoints import dialects
from wanvideo.checkpoints.dialects import DIALECTS, Kind, dequantized, find_dialect, from_canonical, to_canonical
from wanvideo.checkpoints.reader import StoredTensor, open_tensors
from wanvideo.errors import CheckpointError

DATA = Path(__file__).parents[1] / "numerics" / "data"
MULTITALK = "multitalk_audio_proj"


def wav2vec_official():
    return {f"wav2vec2.{key}": value for key, value in recipes.wav2vec_state_dict(5).items()}


OFFICIAL = {
    Kind.TRANSFORMER: lambda: recipes.transformer_state_dict(5),
    Kind.ADAPTER: lambda: recipes.adapter_state_dict(5),
    Kind.VAE: lambda: recipes.vae_state_dict(5),
    Kind.TINY_VAE: lambda: recipes.tiny_vae_state_dict(5, (16, 8, 8, 8)),
    Kind.TEXT_ENCODER: lambda: recipes.t5_state_dict(5),
    Kind.CLIP_VISION: lambda: recipes.clip_state_dict(5),
    Kind.AUDIO_ENCODER: wav2vec_official,
    Kind.SYNCNET: lambda: syncnets.state_dict(5) | {"num_batches_tracked.netfclip.1": torch.tensor(7)},
}


def canonical(state):
    source = open_tensors(state)
    found = find_dialect(source)
    assert found, sorted(source)[:5]
    return found, to_canonical(source, found)


def assert_equal(one, two):
    assert set(one) == set(two)
    for key in one:
        assert one.shape(key) == two.shape(key) and torch.equal(one.tensor(key), two.tensor(key)), key


@pytest.mark.parametrize("item", DIALECTS, ids=lambda item: f"{item.kind.value}, {item.name}")
def test_round_trip(item):
    """official -> canonical -> this dialect behind each of its prefixes -> canonical"""
    state = OFFICIAL[item.kind]()
    if item.kind is Kind.TRANSFORMER and item.name == MULTITALK:
        state |= recipes.adapter_state_dict(5)
    _, expected = canonical(state)
    for prefix in ("", *item.prefixes):
        written = from_canonical(expected, item, prefix)
        assert all(key.startswith(prefix) for key in written)
        found = find_dialect(written)
        assert found.dialect is item and found.prefix == prefix
        assert_equal(to_canonical(written, found), expected)


@pytest.mark.parametrize("kind", [Kind.TEXT_ENCODER, Kind.CLIP_VISION])
def test_names_agree_with_the_reference_list(kind):
    listed = json.loads((DATA / "encoder_keys.json").read_text())[kind.name.lower()]
    _, ours = canonical(OFFICIAL[kind]())
    for target in listed.values():
        target = target.split("  (")[0].removeprefix("rows [q; k; v] of ")
        for part in "qkv" if "{q,k,v}" in target else "_":
            assert target.replace("{q,k,v}", part).replace("{i}", "0") in ours


def test_the_prefix_is_decided_by_all_keys():
    """A key without the prefix, or with another one, does not hide the others, wherever it stands."""
    state = recipes.transformer_state_dict(5)
    prefixed = {"model.diffusion_model." + key: value for key, value in state.items()}
    stray = {"scaled_fp8": torch.ones(1), "blocks.0.norm_x.weight": torch.ones(1)}
    for mixed in (stray | prefixed, prefixed | stray):
        found, source = canonical(mixed)
        assert found.prefix == "model.diffusion_model."
        assert set(source) == set(state) | set(stray)


def test_two_names_for_one_tensor():
    state = recipes.adapter_state_dict(5)
    doubled = state | {"multitalk_" + key: value for key, value in state.items() if key.startswith("audio_proj.")}
    with pytest.raises(CheckpointError, match="twice, under two names"):
        canonical(doubled)


def test_nothing_is_read_before_it_is_asked_for():
    def read():
        raise AssertionError("read too early")

    state = OFFICIAL[Kind.CLIP_VISION]()
    source = open_tensors(state)
    lazy = source.replaced({key: StoredTensor(value.shape, value.dtype, read) for key, value in source.items()})
    shapes = to_canonical(lazy, find_dialect(lazy)).shapes
    assert shapes["vision_model.encoder.layers.0.self_attn.k_proj.weight"] == (48, 48)
    assert shapes["vision_model.embeddings.position_embedding.weight"] == (26, 48)


def test_diffusers_transformer_names():
    from diffusers import WanTransformer3DModel

    sizes = recipes.TINY
    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=128, in_channels=36, out_channels=16,
            text_dim=sizes["text_dim"], freq_dim=256, ffn_dim=sizes["ffn_dim"], num_layers=2,
            image_dim=1280, added_kv_proj_dim=256,
        )  # fmt: skip
    _, source = canonical(model.state_dict())
    shapes = recipes.transformer_shapes(**sizes)
    assert source.shapes == {key: tuple(shape) for key, shape in shapes.items()}


def test_diffusers_vae_names():
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        model = AutoencoderKLWan(base_dim=8)
    found, source = canonical(model.state_dict())
    assert found.dialect.name == "diffusers"
    assert source.shapes == {key: tuple(shape) for key, shape in recipes.vae_shapes().items()}


def test_huggingface_names():
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        UMT5Config,
        UMT5EncoderModel,
        Wav2Vec2Config,
        Wav2Vec2Model,
    )

    t5, clip = recipes.T5, recipes.CLIP
    with torch.device("meta"):
        text = UMT5EncoderModel(
            UMT5Config(
                vocab_size=t5["vocab_size"], d_model=t5["dim"], d_kv=8, d_ff=t5["dim_ffn"], num_layers=2, num_heads=4
            )
        )
        vision = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=clip["dim"], intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
                image_size=70, patch_size=14,
            )
        )  # fmt: skip
        audio = Wav2Vec2Model(Wav2Vec2Config(**recipes.WAV2VEC))
    ignored = {"encoder.embed_tokens.weight", "visual_projection.weight"}
    for kind, model in ((Kind.TEXT_ENCODER, text), (Kind.CLIP_VISION, vision), (Kind.AUDIO_ENCODER, audio)):
        theirs, ours = canonical(model.state_dict())[1].shapes, canonical(OFFICIAL[kind]())[1].shapes
        for key in (set(theirs) | set(ours)) - ignored:
            assert theirs.get(key) == ours.get(key), key


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(
    "names", [("weight", "scale_weight"), ("weight", "weight_scale"), ("weight._data", "weight._scale")]
)
def test_scaled_weights(rows, names):
    weight = recipes.tensor("w", (6, 8), 1)
    scale = weight.abs().amax(1, keepdim=True) / 448 if rows else weight.abs().max() / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    state = {"a." + names[0]: stored, "a." + names[1]: scale, "a.bias": weight[0], "b.weight": weight}
    state |= {"a.input_scale": scale, "a.scale_input": scale, "a.comfy_quant": torch.zeros(3), "scaled_fp8": scale}
    plain = dequantized(open_tensors(state))
    assert set(plain) == {"a.weight", "a.bias", "b.weight"}
    assert torch.equal(plain.tensor("a.weight"), stored.float() * scale)
    assert torch.equal(plain.tensor("b.weight"), weight)


def test_a_dialect_can_be_named():
    assert dialects.dialect(Kind.VAE, "diffusers").rules is dialects.DIFFUSERS_VAE
