"""Broken model files without end: headers of every format, every tensor of every model, LoRAs, tokenizers."""

from __future__ import annotations

import functools
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save
from support import recipes
from support.quantized_files import write_gguf

from wanvideo.checkpoints import load
from wanvideo.checkpoints.checkpoint import recognize
from wanvideo.checkpoints.reader import open_tensors
from wanvideo.lora.apply import apply_loras
from wanvideo.lora.file import open_lora, read_lora
from wanvideo.lora.plan import linear_layers, plain_shapes
from wanvideo.lora.use import LoraUse
from wanvideo.synthetic.tokenizer import sentencepiece_model
from wanvideo.text.tokenizer import from_sentencepiece, load_tokenizer

Case = tuple[str, Callable[[], object]]
State = dict[str, torch.Tensor]
MODELS: dict[str, tuple[Callable[[], State], Callable[[State], object]]] = {
    "transformer": (lambda: recipes.transformer_state_dict(5), load.load_transformer),
    "adapter": (
        lambda: recipes.adapter_state_dict(5),
        lambda state: load.load_transformer(_state("transformer"), state),
    ),
    "vae": (lambda: recipes.vae_state_dict(5), load.load_vae),
    "tiny vae": (lambda: recipes.tiny_vae_state_dict(5, (16, 8, 8, 8)), load.load_tiny_vae),
    "t5": (lambda: recipes.t5_state_dict(5), load.load_text_encoder),
    "clip": (lambda: recipes.clip_state_dict(5), load.load_clip_vision),
    "wav2vec": (lambda: recipes.wav2vec_state_dict(5), load.load_audio_encoder),
}
WAYS: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "missing": lambda tensor: None,
    "transposed": lambda tensor: tensor.movedim(0, -1).contiguous() if tensor.ndim else tensor.reshape(1),
    "one side more": lambda tensor: tensor[..., None].repeat(*(1 for _ in tensor.shape), 2),
    "one side less": lambda tensor: tensor[0].clone() if tensor.ndim else torch.zeros(2),
    "no sides": lambda tensor: torch.zeros(()),
    "bool": lambda tensor: tensor > 0,
    "empty": lambda tensor: tensor.new_empty(0, *tensor.shape[1:]),
    "doubled": lambda tensor: torch.cat((tensor, tensor)) if tensor.ndim else torch.zeros(2),
    "int": lambda tensor: tensor.to(torch.int64),
    "NaN": lambda tensor: torch.full_like(tensor if tensor.is_floating_point() else tensor.half(), torch.nan),
}
VALUES = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**64,
    10**40,
    0.5,
    1e400,
    "",
    "0",
    "F32",
    "BF16",
    "F4",
    [],
    [1],
    [[]],
    {},
    {"a": 1},
    "\ud800",
)


@functools.cache
def _drawn(name: str) -> State:
    return MODELS[name][0]()


def _state(name: str) -> State:
    return dict(_drawn(name))


def cases(random: random.Random, folder: Path) -> Iterator[Case]:
    """Endless. Args: random: decides everything. folder: where files are written, which each case deletes."""
    makers = (_header, _safetensors, _torch, _pickle, _gguf, _tensor, _tensor, _lora, _lora, _tokenizer)
    while True:
        yield random.choice(makers)(random, folder)


def _opening(path: Path, data: bytes, use: Callable[[Path], object]) -> Callable[[], object]:
    def run() -> object:
        path.write_bytes(data)
        try:
            return use(path)
        finally:
            path.unlink()

    return run


def _all(path: Path) -> object:
    """Everything that is done with a file: recognized, and each tensor read."""
    source = open_tensors(path)
    for key in source:
        source.tensor(key).sum()
    recognize(path)
    return load.load_vae(path)


def _bytes_changed(draw: random.Random, data: bytes, until: int | None = None) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        at = draw.randrange(min(len(changed), until or len(changed)) or 1)
        way = draw.randrange(5)
        if way == 0:
            changed[at : at + 1] = bytes([draw.randrange(256)])
        elif way == 1:
            del changed[at : at + draw.choice((1, 2, 8, 100))]
        elif way == 2:
            changed[at:at] = bytes(draw.randrange(256) for _ in range(draw.choice((1, 2, 8))))
        elif way == 3:
            changed[at : at + 8] = struct.pack("<Q", draw.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)))
        else:
            changed = changed[:at] or changed
    return bytes(changed)


def _json(draw: random.Random, value: object) -> object:
    """JSON with one thing in it that is another one now."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if draw.random() < 0.1:
            return {name: item for name, item in value.items() if name != key}
        return value | {key: _json(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        return [*value[:at], _json(draw, value[at]), *value[at + 1 :]]
    return draw.choice(VALUES)


@functools.cache
def _vae_file() -> bytes:
    return save({key: value.bfloat16() for key, value in _drawn("vae").items()}, {"format": "pt"})


def _header(draw: random.Random, folder: Path) -> Case:
    data = _vae_file()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for _ in range(draw.choice((1, 1, 3))):
        made = _json(draw, header)
        header = made if isinstance(made, dict) else header
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    if draw.random() < 0.1:
        text = b'{"a":' * draw.choice((1, 100, 50_000))
    whole = len(text).to_bytes(8, "little") + text + data[8 + size :] + bytes(draw.choice((0, 0, 0, 1)))
    return "safetensors header", _opening(folder / "x.safetensors", whole, _all)


def _safetensors(draw: random.Random, folder: Path) -> Case:
    data = _vae_file()
    return "safetensors bytes", _opening(folder / "x.safetensors", _bytes_changed(draw, data, 4000), _all)


@functools.cache
def _torch_file(zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": _drawn("vae"), "epoch": 3}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _torch(draw: random.Random, folder: Path) -> Case:
    zipped = draw.random() < 0.5
    data = _torch_file(zipped)
    if zipped and draw.random() < 0.7:
        data = _rezipped(draw, data)
    else:
        data = _bytes_changed(draw, data, 30_000)
        if draw.random() < 0.3:
            data = data[:-4000] + _bytes_changed(draw, data[-4000:])
    return f"torch file ({'zip' if zipped else 'old'})", _opening(folder / "x.pth", data, _all)


def _rezipped(draw: random.Random, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith("data.pkl"):
                content = _bytes_changed(draw, content)
            elif draw.random() < 0.005:
                continue
            new.writestr(item.filename, content, draw.choice((0, 0, 0, 0, 0, 0, 0, 0, 0, 8)))
    return out.getvalue()


def _pickle(draw: random.Random, folder: Path) -> Case:
    """Instructions in any order."""
    codes = b"(.012NJKMGXCTq\x94rhj)\x85\x86\x87t}]seaudlR\x81bQc\x93\x80\x88\x89\x8a\x8b\x8c\x95"
    body = bytes(draw.choice(codes) for _ in range(draw.choice((5, 50, 2000))))
    start = draw.choice((b"\x80\x02", b"\x80\x02}q\x00", b"\x80\x02))", b"\x80\x04\x95"))
    if draw.random() < 0.5:
        whole = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})) + start + body + b"."
        return "pickle (old)", _opening(folder / "x.bin", whole, _all)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x/data.pkl", start + body + b".")
    return "pickle (zip)", _opening(folder / "x.bin", out.getvalue(), _all)


@functools.cache
def _gguf_file(folder: Path) -> bytes:
    path = folder / "made.gguf"
    write_gguf(path, recipes.transformer_state_dict(5, num_layers=1), "Q8_0")
    data = path.read_bytes()
    path.unlink()
    return data


def _gguf(draw: random.Random, folder: Path) -> Case:
    data = _bytes_changed(draw, _gguf_file(folder), draw.choice((64, 4000)))
    return "gguf", _opening(folder / "x.gguf", data, lambda path: load.load_transformer(path))


def _tensor(draw: random.Random, folder: Path) -> Case:
    """A tensor of a model in another shape or dtype, or two."""
    name = draw.choice(list(MODELS))
    state, told = _state(name), []
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        key, way = draw.choice(list(state)), draw.choice(list(WAYS))
        value = WAYS[way](state.pop(key))
        if value is not None:
            state[key] = value
        told.append(f"{key} {way}")
    return f"{name}: {', '.join(told)}", lambda: MODELS[name][1](state)


PARTS = (
    "lora_down.weight",
    "lora_up.weight",
    "lora_A.weight",
    "alpha",
    "diff",
    "diff_b",
    "diff_m",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "lokr_w1",
    "lokr_w2",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2_b",
    "w_norm",
    "bias",
)
LAYERS = (
    "blocks.0.self_attn.q",
    "blocks.0.ffn.0",
    "blocks.1.norm3",
    "blocks.0",
    "patch_embedding",
    "blocks.99.ffn.0",
    "double_blocks.0.img_attn",
    "text_embedding.0",
    "blocks_0_self_attn.q",
    "lora_unet_blocks_0_cross_attn_k",
    "",
)
SHAPES = (
    (), (0,), (1,), (4,), (256,), (4, 256), (256, 4), (16, 16), (256, 256), (4, 0), (4, 256, 1, 1), (6, 256), (1,) * 5,
)  # fmt: skip


def _lora(draw: random.Random, folder: Path) -> Case:
    state: State = {}
    if draw.random() < 0.7:
        state |= {"blocks.0.self_attn.q.lora_down.weight": torch.ones(4, 256)}
        state |= {"blocks.0.self_attn.q.lora_up.weight": torch.ones(256, 4)}
    for _ in range(draw.choice((1, 2, 4))):
        key = f"{draw.choice(('', 'diffusion_model.'))}{draw.choice(LAYERS)}.{draw.choice(PARTS)}"
        dtype = draw.choice((torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int32, torch.bool))
        state[key] = torch.full(draw.choice(SHAPES), draw.choice((1.0, 1.0, 0.0, float("nan")))).to(dtype)
    noted = json.dumps(_json(draw, {"r": 4, "lora_alpha": 8, "alpha_pattern": {"q": 1}}))
    data = save(state, {"lora_adapter_metadata": noted} if draw.random() < 0.3 else None)

    def use(path: Path) -> object:
        model = _model()
        read_lora(open_lora(path), plain_shapes(model, linear_layers(model)))
        try:
            return apply_loras(model, [LoraUse(path)])
        finally:
            apply_loras(model, [])

    return f"lora {list(state)}", _opening(folder / "x.safetensors", data, use)


@functools.cache
def _model() -> torch.nn.Module:
    return load.load_transformer(_drawn("transformer") | _drawn("adapter"), dtype=torch.float32)


def _tokenizer(draw: random.Random, folder: Path) -> Case:
    data = sentencepiece_model()
    if draw.random() < 0.5:
        changed = _bytes_changed(draw, data)
        return "spiece.model", lambda: from_sentencepiece(changed, "spiece.model")
    made = json.loads(from_sentencepiece(data, "x").to_str())
    for _ in range(draw.choice((1, 1, 3))):
        made = _json(draw, made)
    text = json.dumps(made).encode("utf-8", "surrogatepass")
    return "tokenizer.json", _opening(folder / "tokenizer.json", text, load_tokenizer)
