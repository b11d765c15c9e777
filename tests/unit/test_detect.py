"""Every kind of file is recognized by its tensors, and a wrong one in a slot is named for what it is."""

import re

import pytest
import torch
from support import recipes, syncnets
from support.quantized_files import write_gguf

from wanvideo.checkpoints.detect import SLOTS, Kind, describe, identify, require, storage_of
from wanvideo.checkpoints.reader import open_tensors
from wanvideo.errors import CheckpointError


def shapes(table):
    with torch.device("meta"):
        return {key: torch.empty(shape) for key, shape in table.items()}


def transformer(in_dim=36, **extra):
    return shapes(recipes.transformer_shapes(**{**recipes.TINY, "in_dim": in_dim}) | extra)


def without(state, *parts):
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def adapter():
    sizes = recipes.TINY_AUDIO
    return shapes(recipes.adapter_shapes(dim=256, num_layers=2, **sizes))


def wan22_vae():
    nested = "decoder.upsamples.0.upsamples.0.residual.0.gamma"
    return shapes({"conv1.weight": (96, 96, 1, 1, 1), "conv2.weight": (48, 48, 1, 1, 1), nested: (1024, 1, 1, 1)})


def flux_t5():
    block = "encoder.block.{}.layer.0.SelfAttention."
    state = {"shared.weight": (32128, 4096), block.format(0) + "relative_attention_bias.weight": (32, 64)}
    return shapes(state | {block.format(i) + "q.weight": (4096, 4096) for i in range(2)})


def siglip():
    state = {"vision_model.head.probe": (1, 1, 1152), "vision_model.embeddings.position_embedding.weight": (729, 1152)}
    return shapes(state | {"vision_model.encoder.layers.0.self_attn.q_proj.weight": (1152, 1152)})


CASES = {
    "i2v": (transformer, Kind.TRANSFORMER, "Wan2.1 image-to-video transformer"),
    "i2v comfy": (lambda: prefixed(transformer(), "model.diffusion_model."), Kind.TRANSFORMER, "Wan2.1 image-to-video"),
    "t2v": (lambda: without(transformer(16), "img"), Kind.TRANSFORMER, "text-to-video"),
    "wan2.2 i2v": (lambda: without(transformer(), "img"), Kind.OTHER, "Wan2.2 image-to-video"),
    "wan2.2 ti2v": (lambda: without(transformer(48), "img"), Kind.OTHER, "Wan2.2 TI2V transformer .48 channels"),
    "vace": (lambda: transformer(**{"vace_blocks.0.before_proj.weight": (8, 8)}), Kind.OTHER, "VACE"),
    "merged": (lambda: transformer() | adapter(), Kind.TRANSFORMER, "with an audio adapter"),
    "adapter": (adapter, Kind.ADAPTER, "audio adapter"),
    "adapter comfy": (lambda: prefixed(adapter(), "diffusion_model."), Kind.ADAPTER, "audio adapter"),
    "vae": (lambda: shapes(recipes.vae_shapes()), Kind.VAE, "Wan2.1 VAE .16 channels"),
    "vae comfy": (lambda: prefixed(shapes(recipes.vae_shapes()), "model."), Kind.VAE, "Wan2.1 VAE .16 channels"),
    "wan2.2 vae": (wan22_vae, Kind.OTHER, "Wan2.2 VAE with 48 latent channels"),
    "flux vae": (lambda: shapes({"decoder.mid.block_1.norm1.weight": (512,)}), Kind.OTHER, "Flux VAE"),
    "tiny vae": (lambda: shapes(recipes.tiny_vae_shapes()), Kind.TINY_VAE, "tiny VAE .TAE. of Wan2.1 .taew2_1"),
    "tiny vae wan2.2": (
        lambda: shapes(recipes.tiny_vae_shapes() | {"decoder.1.weight": (256, 48, 3, 3)}),
        Kind.OTHER,
        "tiny VAE .TAE. of Wan2.2 .taew2_2",
    ),
    "taesd": (
        lambda: shapes({"decoder.1.weight": (64, 16, 3, 3), "decoder.3.conv.0.weight": (64, 64, 3, 3)}),
        Kind.OTHER,
        "tiny VAE .TAESD. of an image model",
    ),
    "umt5": (lambda: recipes.t5_state_dict(5), Kind.TEXT_ENCODER, "UMT5 text encoder"),
    "flux t5": (flux_t5, Kind.OTHER, "T5 text encoder with 32128 tokens"),
    "clip": (lambda: recipes.clip_state_dict(5), Kind.CLIP_VISION, "CLIP vision encoder .48 wide"),
    "siglip": (siglip, Kind.OTHER, "SigLIP"),
    "wav2vec2": (lambda: recipes.wav2vec_state_dict(5), Kind.AUDIO_ENCODER, "wav2vec2 audio encoder .32 wide"),
    "whisper": (
        lambda: shapes({"model.encoder.conv1.weight": (1, 1), "model.encoder.embed_positions.weight": (1, 1)}),
        Kind.OTHER,
        "Whisper",
    ),
    "syncnet": (lambda: shapes(syncnets.shapes()), Kind.SYNCNET, "SyncNet .vectors of 16 numbers"),
    "wav2lip": (
        lambda: shapes({f"{name}_encoder.0.conv_block.0.weight": (32, 1, 3, 3) for name in ("face", "audio")}),
        Kind.OTHER,
        "the SyncNet of Wav2Lip",
    ),
    "hubert": (lambda: prefixed(recipes.wav2vec_state_dict(5), "hubert."), Kind.OTHER, "HuBERT"),
    "fairseq": (
        lambda: shapes({"feature_extractor.conv_layers.0.0.weight": (512, 1, 10)}),
        Kind.OTHER,
        "fairseq.*pytorch_model.bin",
    ),
    "lora": (
        lambda: shapes({"diffusion_model.blocks.0.self_attn.q.lora_down.weight": (4, 256)}),
        Kind.LORA,
        "a LoRA",
    ),
    "lora diff": (lambda: shapes({"diffusion_model.blocks.0.norm3.diff": (256,)}), Kind.LORA, "a LoRA"),
    "unknown": (lambda: shapes({"a": (1,), "b": (1,), "c": (1,), "d": (1,)}), Kind.UNKNOWN, "a, b, c and 1 more"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind(case):
    make, kind, family = CASES[case]
    source = open_tensors(make())
    identity = identify(source)
    assert identity.kind is kind
    assert re.search(family, describe(identity, source.name))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("slot", SLOTS)
def test_wrong_file_in_a_slot(case, slot):
    make, kind, _ = CASES[case]
    source = open_tensors(make())
    if kind is slot:
        assert require(source, slot).kind is slot
        return
    with pytest.raises(CheckpointError) as error:
        require(source, slot)
    message = str(error.value)
    assert SLOTS[slot].example in message and f"models/{SLOTS[slot].folder}" in message and message.count("\n") <= 2


def test_the_sentence():
    with pytest.raises(CheckpointError) as error:
        require(open_tensors(wan22_vae()), Kind.VAE)
    assert str(error.value) == (
        "the state dict is a Wan2.2 VAE with 48 latent channels; the VAE slot needs a Wan2.1 VAE (16 channels), "
        "e.g. Wan2_1_VAE_bf16.safetensors in models/vae. Choose one."
    )


def test_details():
    identity = identify(open_tensors(transformer() | adapter()))
    assert (identity.dim, identity.num_layers, identity.channels, identity.has_audio) == (256, 2, 36, True)
    assert (identity.dialect, identity.found.prefix) == ("official", "")
    assert identify(open_tensors(adapter())).num_layers == 2


@pytest.mark.parametrize(
    "change, storage",
    [
        (lambda state: state, "fp32"),
        (lambda state: {k: v.bfloat16() for k, v in state.items()}, "bf16"),
        (lambda state: {k: v.to(torch.float8_e4m3fn) if v.ndim == 2 else v for k, v in state.items()}, "fp8_e4m3fn"),
        (
            lambda state: (
                {k: v.to(torch.float8_e4m3fn) if v.ndim == 2 else v for k, v in state.items()}
                | {"blocks.0.ffn.0.scale_weight": torch.ones(1)}
            ),
            "fp8_e4m3fn scaled",
        ),
        (
            lambda state: (
                {f"{k}._data" if v.ndim == 2 else k: v.to(torch.int8) for k, v in state.items()}
                | {"blocks.0.ffn.0.weight._scale": torch.ones(1)}
            ),
            "int8 quanto",
        ),
    ],
)
def test_storage(change, storage):
    identity = identify(open_tensors(change(transformer())))
    assert identity.kind is Kind.TRANSFORMER and identity.storage == storage


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_K"])
def test_storage_of_gguf(kind, tmp_path):
    state = recipes.transformer_state_dict(5, ffn_dim=512)
    blocks = {key: value for key, value in state.items() if key.startswith("blocks.")}
    write_gguf(tmp_path / "x.gguf", blocks, kind)
    assert storage_of(open_tensors(tmp_path / "x.gguf")) == kind


@pytest.mark.parametrize("end", ["diff", "diff_b", "diff_m", "w_norm", "b_norm"])
def test_a_lora_of_differences_alone(end):
    assert identify(open_tensors({f"diffusion_model.blocks.0.norm3.{end}": torch.zeros(256)})).kind is Kind.LORA
