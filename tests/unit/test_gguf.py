"""GGUF files: the numbers of the reference dequantization, from whole models, and one sentence for what is broken."""

import gguf
import numpy as np
import pytest
import torch
from support import recipes
from support.quantized_files import GGUF_TYPES, write_gguf

from wanvideo.checkpoints import load
from wanvideo.checkpoints.reader import PackedTensor, open_tensors
from wanvideo.errors import CheckpointError, TalkError, UnsupportedError
from wanvideo.memory.placement import check_parameters
from wanvideo.ops.linear.gguf import LAYOUTS, GGUFLinear
from wanvideo.ops.linear.layer import Linear

TO_LLAMA = {
    "token_embedding.weight": "token_embd.weight", "norm.weight": "enc.output_norm.weight",
    "norm1": "attn_norm", "norm2": "ffn_norm", "pos_embedding.embedding": "attn_rel_b", "attn.q": "attn_q",
    "attn.k": "attn_k", "attn.v": "attn_v", "attn.o": "attn_o", "ffn.gate.0": "ffn_gate", "ffn.fc1": "ffn_up",
    "ffn.fc2": "ffn_down",
}  # fmt: skip


def dense_of(path):
    """Every tensor as the gguf package reads it."""
    reader, state = gguf.GGUFReader(path), {}
    for item in reader.tensors:
        field = reader.get_field(f"comfy.gguf.orig_shape.{item.name}")
        shape = field.contents() if field else [int(side) for side in reversed(item.shape)]
        values = gguf.quants.dequantize(item.data, item.tensor_type).astype(np.float32)
        state[item.name] = torch.from_numpy(values.copy()).reshape(shape)
    return state


@pytest.fixture(scope="module")
def states():
    return recipes.transformer_state_dict(5), recipes.adapter_state_dict(5)


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_a_transformer_computes_with_the_numbers_of_its_file(kind, states, tmp_path):
    write_gguf(tmp_path / "base.gguf", states[0], kind)
    dense = dense_of(tmp_path / "base.gguf")
    model = load.load_transformer(tmp_path / "base.gguf", states[1], dtype=torch.float32)
    expected = load.load_transformer(dense, states[1], dtype=torch.float32)
    check_parameters(model, "cpu")
    for (name, one), two in zip(model.named_modules(), expected.modules(), strict=True):
        if isinstance(one, Linear):
            assert torch.equal(one.dense_weight(torch.float32), two.weight), name
    assert isinstance(model.blocks[1].self_attn.q, GGUFLinear) == (kind in LAYOUTS)
    assert model.patch_embedding.weight.shape == (256, 36, 1, 2, 2)
    inputs = recipes.transformer_inputs(2, 4, 4, 1, 500, 9)
    assert torch.equal(model(**inputs), expected(**inputs))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("names", ["wan", "llama.cpp"])
def test_a_text_encoder(kind, names, tmp_path):
    def rename(key):
        if names == "wan":
            return key
        for theirs, ours in TO_LLAMA.items():
            key = key.replace(theirs, ours) if "." in theirs or f".{theirs}." in key else key
        return key.replace("blocks.", "enc.blk.") if key.startswith("blocks.") else key

    state = recipes.t5_state_dict(5)
    write_gguf(tmp_path / "t5.gguf", state, kind, rename)
    dense = dense_of(tmp_path / "t5.gguf")
    if names == "llama.cpp":
        dense = {key: dense[rename(key)] for key in state}
    model = load.load_text_encoder(tmp_path / "t5.gguf", dtype=torch.float32)
    check_parameters(model, "cpu")
    assert any(isinstance(layer, GGUFLinear) for layer in model.modules())
    ids, mask = recipes.t5_inputs(3)
    expected = load.load_text_encoder(dense, dtype=torch.float32).encode(ids, mask)
    assert all(map(torch.equal, model.encode(ids, mask), expected))


def test_a_gguf_adapter_on_any_base(states, tmp_path):
    write_gguf(tmp_path / "adapter.gguf", states[1], "Q4_0")
    model = load.load_transformer(states[0], tmp_path / "adapter.gguf", quantize="fp8")
    audio = model.blocks[0].audio_cross_attn
    assert isinstance(audio.q_linear, GGUFLinear) and audio.proj.weight.dtype == torch.uint8
    assert model.blocks[0].ffn[0].weight.dtype == torch.float8_e4m3fn
    assert model(**recipes.transformer_inputs(2, 4, 4, 1, 500, 9)).isfinite().all()


def test_quantized_tensors_have_the_shapes_of_their_numbers(states, tmp_path):
    write_gguf(tmp_path / "x.gguf", states[0], "Q4_K")
    source = open_tensors(tmp_path / "x.gguf")
    assert source.shapes == {key: tuple(value.shape) for key, value in states[0].items()}
    stored = source["blocks.0.ffn.0.weight"]
    assert isinstance(stored, PackedTensor) and stored.format == "Q4_K"
    assert stored.read_parts()["weight"].shape == (384, 144)
    assert torch.equal(stored.read(), dense_of(tmp_path / "x.gguf")["blocks.0.ffn.0.weight"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    write_gguf(path, recipes.transformer_state_dict(5, num_layers=1), "Q8_0")
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.5, 0.999])
def test_truncated(whole, share, tmp_path):
    path = tmp_path / "short.gguf"
    path.write_bytes(whole[: max(int(len(whole) * share), 5)])
    with pytest.raises(CheckpointError, match="short.gguf is (cut short|damaged).*Download it again"):
        load.load_transformer(path)


def test_any_broken_header_is_one_sentence(whole, tmp_path):
    """Bytes of the header, one after another, replaced by what is least likely to fit."""
    path = tmp_path / "broken.gguf"
    for at in range(4, 3000, 37):
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        try:
            assert len(open_tensors(path)) == 55
        except TalkError as error:
            assert "broken.gguf" in str(error) and str(error).count("\n") <= 2


def test_formats_that_cannot_be_read_are_named(whole, tmp_path):
    path = tmp_path / "iq4.gguf"
    name = b"blocks.0.ffn.0.weight"
    at = whole.index(name) + len(name) + 4 + 2 * 8
    assert whole[at] == 8
    path.write_bytes(whole[:at] + bytes([23]) + whole[at + 1 :])
    with pytest.raises(UnsupportedError, match="iq4.gguf stores 'blocks.0.ffn.0.weight' as IQ4_XS.*Q8_0"):
        load.load_transformer(path)
    path.write_bytes(whole[:4] + bytes([9]) + whole[5:])
    with pytest.raises(UnsupportedError, match="GGUF version 9"):
        load.load_transformer(path)


def test_a_gguf_model_of_another_kind(tmp_path):
    write_gguf(tmp_path / "t5.gguf", recipes.t5_state_dict(5), "Q8_0")
    with pytest.raises(CheckpointError, match="t5.gguf is a UMT5 text encoder.*; the transformer slot needs"):
        load.load_transformer(tmp_path / "t5.gguf")


def test_tensors_do_not_depend_on_the_file_afterwards(states, tmp_path):
    path = tmp_path / "x.gguf"
    write_gguf(path, states[0], "Q8_0")
    model = load.load_transformer(path)
    before = model.blocks[0].ffn[0].weight.clone()
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(200_000))
    assert torch.equal(model.blocks[0].ffn[0].weight, before)
