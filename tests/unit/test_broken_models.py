"""Model files that are broken: one sentence for each kind, in time and memory that do not depend on what they claim."""

import io
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from fuzz.models import MODELS, WAYS
from safetensors.torch import save
from support import recipes

from wanvideo.checkpoints import load
from wanvideo.checkpoints.dialects import find_dialect, to_canonical
from wanvideo.checkpoints.fit import SMALL
from wanvideo.checkpoints.reader import open_tensors
from wanvideo.checkpoints.tables import TABLES
from wanvideo.errors import CheckpointError, TalkError
from wanvideo.text.tokenizer import load_tokenizer

GOOD = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def safetensors(header, data=bytes(64)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


HEADERS = {
    "dtype_dict": ({"a": GOOD | {"dtype": {}}}, "no description"),
    "unknown dtype": ({"a": GOOD | {"dtype": "Q7"}}, "dtype that the format does not know"),
    "metadata_list": ({"__metadata__": [1], "a": GOOD}, "__metadata__"),
    "metadata_number": ({"__metadata__": {"a": 1}, "a": GOOD}, "__metadata__"),
    "offsets_float": ({"a": GOOD | {"data_offsets": [0.0, 16.0]}}, "not two whole numbers"),
    "offsets_str": ({"a": GOOD | {"data_offsets": ["0", "16"]}}, "not two whole numbers"),
    "offsets_three": ({"a": GOOD | {"data_offsets": [0, 16, 32]}}, "not two whole numbers"),
    "offsets_negative": ({"a": GOOD | {"data_offsets": [-16, 0]}}, "not two whole numbers"),
    "shape_bool": ({"a": GOOD | {"shape": [True, 4]}}, "that no tensor can have"),
    "shape_huge": ({"a": GOOD | {"shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}, "that no tensor can have"),
    "long name": ({"model." * 1000 + "x.lora_up.weight": GOOD}, "a name of 6016 characters"),
    "overlap": ({"a": GOOD, "b": GOOD | {"data_offsets": [8, 24]}}, "bytes that two tensors share"),
    "gap": ({"a": GOOD, "b": GOOD | {"data_offsets": [32, 48]}}, "bytes of no tensor"),
    "trailing": ({"a": GOOD}, "48 bytes behind its last tensor"),
    "twice": (b'{"a": %b, "a": %b}' % ((json.dumps(GOOD).encode(),) * 2), "'a' twice"),
    "nested": (b'{"a":' * 100_000, "nested too deep"),
    "number": (b'{"a": ' + b"1" * 5000 + b"}", "5000 digits"),
    "no_object": (b'{"a": 1', "line 1"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_safetensors_headers(case, tmp_path):
    header, message = HEADERS[case]
    (tmp_path / "x.safetensors").write_bytes(safetensors(header))
    with pytest.raises(CheckpointError, match=message) as error:
        open_tensors(tmp_path / "x.safetensors")
    assert str(error.value).startswith("x.safetensors") and str(error.value).count("\n") <= 2


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(settings=b"", count=0, tensors=b"", num_tensors=1, data=bytes(256)):
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, count) + settings + tensors + data


def described(name="a", sides=(32,), kind=0, offset=0):
    return string(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, offset)


GGUF = {
    "nested lists": (
        gguf(string("comfy.gguf.orig_shape.a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 999, 1),
        "a list of type 9",
    ),
    "many entries": (gguf(string("x") + struct.pack("<IIQ", 9, 8, 1 << 23), 1), "entries announced"),
    "many tensors": (gguf(num_tensors=1 << 40), "entries announced"),
    "long name": (gguf(struct.pack("<Q", 1 << 30), 1), "a name of"),
    "no sides of blocks": (gguf(tensors=described(sides=(0,), kind=2)), "no numbers in 'a'"),
    "many sides": (gguf(tensors=described(sides=(1,) * 9)), "that no tensor can have"),
    "huge sides": (gguf(tensors=described(sides=(1 << 60, 1 << 60))), "that no tensor can have"),
    "shared bytes": (gguf(tensors=described() + described("b", offset=64), num_tensors=2), "'a' and 'b' share"),
    "alignment": (gguf(string("general.alignment") + struct.pack("<II", 4, 0), 1), "alignment"),
    "setting twice": (gguf((string("a") + struct.pack("<II", 4, 0)) * 2, 2), "setting 'a' twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", GGUF)
def test_gguf_headers(case, tmp_path):
    data, message = GGUF[case]
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        open_tensors(tmp_path / "x.gguf")


def zipped(content, storages=(bytes(64),)):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", content)
        for number, storage in enumerate(storages):
            archive.writestr(f"x/data/{number}", storage)
    return file.getvalue()


def rebuilt(size, stride, offset=0, numel=16, key="0"):
    """The instructions by which torch.save writes a tensor; shapes and strides are given as instructions."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + key.encode() + b"X\x03\0\0\0cpu" + number(numel)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + number(offset) + size + stride
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def number(value):
    return b"J" + struct.pack("<i", value)


def named(tensor, name=b"X\x01\0\0\0a"):
    return b"\x80\x02}(" + name + tensor + b"u."


ONE = number(16) + b"\x85"
UNIT = number(1) + b"\x85"
PICKLES = {
    "cycle": (b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.", "without end"),
    "numbers as names": (named(rebuilt(ONE, UNIT), number(1)), "tensors without names"),
    "stride 0": (named(rebuilt(number(10**9) + b"\x85", number(0) + b"\x85")), "repeats its bytes"),
    "too long": (named(rebuilt(number(17) + b"\x85", UNIT)), "fewer bytes than the tensor 'a' of shape \\[17\\]"),
    "windows over one storage": (
        named(rebuilt(number(16) + number(16) + b"\x86", UNIT[:-1] + number(1) + b"\x86", numel=16)), "fewer bytes",
    ),
    "offset": (named(rebuilt(ONE, UNIT, 1)), "fewer bytes"),
    "negative": (named(rebuilt(number(-1) + b"\x85", UNIT)), "a shape that cannot be"),
    "storage of lies": (named(rebuilt(ONE, UNIT, numel=10**6)), "no bytes for the tensor 'a'"),
    "no storage": (named(rebuilt(ONE, UNIT, key="9")), "no bytes for the tensor 'a'"),
    "hash bomb": (b"\x80\x02)" + b"2\x86" * 60 + b".", "nested too deep"),
    "memo": (b"\x80\x02}r\xff\xff\xff\x7f.", "holds no tensors"),
    "length": (b"\x80\x02X\xff\xff\xff\xff.", "no end"),
    "code": (b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", "could run code"),
    "copies": (  # a dictionary is given to call after call
        b"\x80\x02ccollections\nOrderedDict\nq\x00}(" + b"".join(number(n) + b"N" for n in range(20_000))
        + b"u\x85q\x01" + b"h\x00h\x01R" * 200_000 + b".", "more instructions",
    ),
    "many arguments": (
        b"\x80\x02ctorch\ndevice\nq\x00(" + b"N" * 20_000 + b"tq\x01" + b"h\x00h\x01R0" * 200_000 + b".",
        "more instructions",
    ),
    "a long name": (named(rebuilt(ONE, UNIT), b"X" + struct.pack("<I", 2000) + b"a" * 2000), "a name of 2000 char"),
    "endless": (b"\x80\x02" + b"N0" * (1 << 20), "more instructions"),
}  # fmt: skip


@pytest.mark.parametrize("case", PICKLES)
def test_pickles(case, tmp_path):
    content, message = PICKLES[case]
    (tmp_path / "x.pth").write_bytes(zipped(content))
    with pytest.raises(CheckpointError, match=message) as error:
        open_tensors(tmp_path / "x.pth")
    assert "x.pth" in str(error.value)


def test_many_views_of_few_bytes(tmp_path):
    tensors = b"".join(
        b"X\x02\0\0\0%02d" % n + rebuilt(number(1 << 16) + b"\x85", UNIT, numel=1 << 16) for n in range(20)
    )
    (tmp_path / "x.pth").write_bytes(zipped(b"\x80\x02}(" + tensors + b"u.", [bytes(1 << 18)]))
    with pytest.raises(CheckpointError, match="tensors of 5242880 bytes in a file of"):
        open_tensors(tmp_path / "x.pth")


def test_old_files_of_torch_are_mapped_and_checked(tmp_path):
    path = tmp_path / "x.pth"
    state = {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(2).bfloat16()}
    state["view"] = state["a"].t()[1:]
    torch.save(state, path, _use_new_zipfile_serialization=False)
    source = open_tensors(path)
    assert all(torch.equal(source.tensor(key), value) for key, value in state.items())
    whole = path.read_bytes()
    for cut in (1, 40, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        with pytest.raises(CheckpointError, match="cut short or damaged"):
            open_tensors(path)
    path.write_bytes(b"".join(pickle.dumps(value, 2) for value in (1, 2, 3)))
    with pytest.raises(CheckpointError, match="no beginning"):
        open_tensors(path)


def test_nothing_of_a_refused_file_is_repeated(tmp_path):
    secret = b"root:x:0:0:secret-of-root\n"
    for name, data in (("passwd", secret), ("bin", b"\0\1secret-of-root\xff\xfe"), ("t.json", b'{"secret-of-root": ')):
        (tmp_path / name).write_bytes(data)
        for read in (open_tensors, load_tokenizer):
            with pytest.raises(TalkError) as error:
                read(tmp_path / name)
            assert "secret" not in str(error.value)


def test_what_would_wait_and_what_names_other_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for read in (open_tensors, load_tokenizer):
        with pytest.raises(CheckpointError, match="a pipe or a device"):
            read(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="a pipe or a device"):
        open_tensors("/dev/zero")
    (tmp_path / "m-00001-of-999999999.safetensors").write_bytes(safetensors({"a": GOOD}, bytes(16)))
    with pytest.raises(CheckpointError, match="999999999 parts"):
        open_tensors(tmp_path / "m-00001-of-999999999.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret"}}))
    with pytest.raises(CheckpointError, match="lie beside it"):
        open_tensors(folder)


# What is a model still, or is never read: (model, name, ways).
FREE = {
    ("t5", "shared.weight", "doubled"),  # a vocabulary may have any size
    *(("wav2vec", "masked_spec_embed", way) for way in WAYS),
    *(("clip", key, way) for key in ("visual_projection.weight", "log_scale") for way in WAYS),
    *(("clip", f"vision_model.post_layernorm.{end}", way) for end in ("weight", "bias") for way in WAYS),
}
SAMPLED = 10  # tensors of each model and way; tests/fuzz has them all


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_wrong(model, way):
    """The tensors that decide sizes, and others in turn, one wrong at a time."""
    make, use = MODELS[model]
    source = open_tensors(make())
    found = find_dialect(source)
    source = to_canonical(source, found)
    whole = {key: source.tensor(key) for key in source}
    decide = [key for table in TABLES[found.dialect.kind] for key in table.rows if key in whole]
    rest = sorted(set(whole) - set(decide))
    for key in decide[:SAMPLED] + rest[list(WAYS).index(way) :: len(rest) // SAMPLED + 1]:
        tensor = whole[key]
        value = WAYS[way](tensor)
        is_same = value is not None and value.shape == tensor.shape and value.dtype == tensor.dtype
        if (is_same and way != "NaN") or (way == "NaN" and tensor.numel() > SMALL) or (model, key, way) in FREE:
            continue
        state = {name: item for name, item in whole.items() if name != key}
        with pytest.raises(CheckpointError) as error:
            use(state if value is None else state | {key: value})
        message = str(error.value)
        assert message.count("\n") <= 2
        if "slot needs" not in message and "of no kind" not in message:  # what makes it this model is gone
            assert key in message, message
            assert way in ("missing", "NaN") or str(list(value.shape)) in message, message


@pytest.mark.parametrize("prefix", ["", "text_encoder."])
def test_umt5_as_clip_save_writes_it(prefix):
    source = open_tensors(recipes.t5_state_dict(5))
    state = {key: source.tensor(key) for key in source} | {"logit_scale": torch.tensor(4.6)}
    assert load.load_text_encoder(state).config.num_layers == 2


def test_values_that_are_not_finite():
    state = recipes.vae_state_dict(5)
    state["decoder.head.0.gamma"][3] = torch.inf
    with pytest.raises(CheckpointError, match=r"decoder\.head\.0\.gamma that are not finite"):
        load.load_vae(state)


def test_a_vae_file_is_still_read(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(save(recipes.vae_state_dict(5), {"format": "pt"}))
    assert load.load_vae(tmp_path / "x.safetensors").config is not None
