"""Files of weights: every form that can be opened, and every form that cannot."""

import json
import pickle
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file

from wanvideo.checkpoints.checkpoint import recognize
from wanvideo.checkpoints.reader import StoredTensor, open_tensors
from wanvideo.checkpoints.safetensors_file import write_safetensors
from wanvideo.errors import CheckpointError, UnsupportedError


@pytest.fixture(scope="module")
def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(6, 5, generator=generator),
        "a.bias": torch.randn(6, generator=generator).bfloat16(),
        "fp8": torch.randn(3, 7, generator=generator).to(torch.float8_e4m3fn),
        "step": torch.tensor(7),
        "none": torch.empty(0, 4),
    }


def assert_same(source, state):
    assert set(source) == set(state)
    for key, value in state.items():
        assert source.shape(key) == tuple(value.shape) and source.dtype(key) == value.dtype
        read = source.tensor(key)
        assert read.dtype == value.dtype and torch.equal(read.float(), value.float())


def test_safetensors(state, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(state, path, {"made": "here"})
    source = open_tensors(path)
    assert_same(source, state)
    assert source.name == "x.safetensors" and source.metadata == {"made": "here"}
    source["a.weight"].release()
    assert_same(open_tensors(str(path)), state)


def test_pages_are_released_and_read_again(tmp_path):
    state = {"big": torch.arange(1_000_000.0)}
    save_file(state, tmp_path / "x.safetensors")
    source = open_tensors(tmp_path / "x.safetensors")
    view = source.tensor("big")
    assert torch.equal(view, state["big"])
    source["big"].release()
    assert torch.equal(view, state["big"])


def test_what_we_write_the_library_reads(state, tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, ((k, tuple(v.shape), v.dtype, lambda v=v: v) for k, v in state.items()), {"made": "here"})
    assert_same(load_file_as_source(path), state)
    assert_same(open_tensors(path), state)


def load_file_as_source(path):
    return open_tensors(load_file(path))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("wrap", [(), ("state_dict",), ("model",), ("module", "state_dict")])
def test_torch_files(state, tmp_path, suffix, wrap):
    saved = state
    for key in wrap:
        saved = {key: saved, "epoch": 3}
    torch.save(saved, tmp_path / f"x{suffix}")
    assert_same(open_tensors(tmp_path / f"x{suffix}"), state)


def test_old_torch_format(state, tmp_path):
    state = {key: value for key, value in state.items() if key != "fp8"}  # which that format does not know
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert_same(open_tensors(tmp_path / "x.pth"), state)


class Python2Dict:
    """Pickled as Python 2 pickles an OrderedDict: a list of pairs."""

    def __init__(self, items):
        self.items = items

    def __reduce__(self):
        return OrderedDict, ([list(pair) for pair in self.items],)


def test_old_files_of_python_2(state, tmp_path):
    state = {key: state[key] for key in ("a.weight", "step")}
    torch.save(Python2Dict(state.items()), tmp_path / "x.model", _use_new_zipfile_serialization=False)
    assert_same(open_tensors(tmp_path / "x.model"), state)
    for items in ([("a",)], [(3, state["step"])]):
        torch.save(Python2Dict(items), tmp_path / "y.model", _use_new_zipfile_serialization=False)
        with pytest.raises(CheckpointError, match="y.model is cut short or damaged: it has a dictionary"):
            open_tensors(tmp_path / "y.model")


def test_state_dict_ignores_what_is_no_tensor(state):
    assert_same(open_tensors({**state, "epoch": 3}), state)


def save_shards(state, folder, stem="diffusion_pytorch_model", count=3):
    keys = list(state)
    for n in range(count):
        part = {key: state[key] for key in keys[n::count]}
        save_file(part, folder / f"{stem}-{n + 1:05}-of-{count:05}.safetensors")


def test_shards(state, tmp_path):
    save_shards(state, tmp_path)
    names = sorted(tmp_path.iterdir())
    assert_same(open_tensors(tmp_path), state)
    assert_same(open_tensors(names[1]), state)
    assert_same(open_tensors(names), state)
    assert_same(open_tensors(names[:1]), state)
    (tmp_path / "other.pth").write_bytes(b"")
    assert_same(open_tensors(tmp_path), state)


def test_a_checkpoint_that_is_named_by_one_shard_has_all_of_its_files(state, tmp_path):
    save_shards(state, tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    for named in (shards[1], [shards[0]], shards, tmp_path):
        found = recognize(named)
        assert list(found.paths) == shards and set(found.source) == set(state)


def test_missing_shard(state, tmp_path):
    save_shards(state, tmp_path)
    (tmp_path / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="2 of the 3 parts.*00002-of-00003"):
        open_tensors(tmp_path)


def test_indexed_files_of_any_name(state, tmp_path):
    keys = list(state)
    names = {key: "first.safetensors" if n < 2 else "rest.safetensors" for n, key in enumerate(keys)}
    for file in set(names.values()):
        save_file({key: state[key] for key in keys if names[key] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert_same(open_tensors(tmp_path), state)
    (tmp_path / "rest.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no model file .*rest.safetensors"):
        open_tensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_bytes(LFS)
    assert set(open_tensors(tmp_path)) == set(keys[:2])


def test_folder_prefers_standard_and_safe_names(state, tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "fairseq.pt")
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same(open_tensors(tmp_path), state)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not looked at")
    assert_same(open_tensors(tmp_path), state)


def test_folder_with_several_models(state, tmp_path):
    for name in ("one.safetensors", "two.safetensors"):
        save_file(state, tmp_path / name)
    with pytest.raises(CheckpointError, match="several models: one.safetensors, two.safetensors"):
        open_tensors(tmp_path)


def test_views(state):
    source = open_tensors(state)
    assert set(source.renamed({"step": "x"})) == {"a.weight", "a.bias", "fp8", "x", "none"}
    assert set(source.renamed(lambda key: "p." + key).only(lambda key: "a." in key)) == {"p.a.weight", "p.a.bias"}
    with pytest.raises(CheckpointError, match="both be called 'same'"):
        source.renamed(lambda key: "same")
    derived = StoredTensor.derived([source["a.weight"], source["a.bias"]], lambda w, b: (w * b.float()[:, None]).t())
    assert derived.shape == (5, 6) and derived.dtype == torch.float32
    assert torch.equal(derived.read(), (state["a.weight"] * state["a.bias"].float()[:, None]).t())


def test_merge(state):
    one, two = open_tensors({"a": torch.zeros(2), "b": torch.zeros(1)}), open_tensors({"b": torch.ones(1)})
    assert set(one.only(lambda key: key == "a") | two) == {"a", "b"}
    with pytest.raises(CheckpointError, match="both hold b"):
        one | two
    assert one.merged(two, replace=True).tensor("b") == 1


class Writes:
    """Unpickled carelessly, this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_not_run(tmp_path, zipped):
    mark = tmp_path / "ran"
    bad = tmp_path / "x.pth"
    torch.save({"w": torch.ones(1), "extra": Writes(mark)}, bad, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="could run code"):
        open_tensors(bad)
    bad.write_bytes(pickle.dumps(Writes(mark), 2))
    with pytest.raises(CheckpointError):
        open_tensors(bad)
    assert not mark.exists()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9948672000\n"
NOT_MODELS = {
    "empty": (b"", "is empty"),
    "html": (b"<!DOCTYPE html><html><body>403</body></html>", "web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
    "lfs": (LFS, "Git LFS pointer .*download the real file of 9.95 GB"),
    "text": (b"hello, this is no model", "is a text file, not a model file"),
    "json": (json.dumps({"a": 1}).encode(), "is a JSON file"),
    "json_like_safetensors": (b'{"abcd":{"x": 1}}', "is a JSON file"),
    "tokenizer": (json.dumps({"version": "1.0", "added_tokens": []}).encode(), "is a tokenizer"),
    "index": (json.dumps({"weight_map": {}}).encode(), "name its folder"),
    "zip": (b"PK\x03\x04" + bytes(100), "cut short or damaged"),
    "pickle": (b"\x80\x04garbage", "cut short or damaged|could run code"),
}


@pytest.mark.parametrize("case", NOT_MODELS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_is_no_model(tmp_path, case, suffix):
    data, message = NOT_MODELS[case]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as error:
        open_tensors(path)
    assert path.name in str(error.value) and str(error.value).count("\n") <= 2


def test_gguf_is_named(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UnsupportedError, match="GGUF"):
        open_tensors(tmp_path / "x.gguf")


def test_missing(tmp_path):
    (tmp_path / "clip_vision_h.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="Did you mean clip_vision_h.safetensors?"):
        open_tensors(tmp_path / "clip_vision_H.safetensor")
    for name, sets in (
        ("quant_models/infinitetalk_single_fp8.safetensors", "infinitetalk-fp8"),
        ("multi/infinitetalk.safetensors", "infinitetalk-multi"),
        ("lightx2v_I2V_14B_480p_cfg_step_distill_rank128_bf16.safetensors", "lightx2v"),
        ("chinese-wav2vec2-base", "wav2vec"),
        ("Wan2.1-I2V-14B-480P", "base-480p encoders-480p t5-480p"),
    ):
        with pytest.raises(CheckpointError, match=f"python -m wanvideo download --set {sets}`"):
            open_tensors(tmp_path / "nowhere" / name)
    with pytest.raises(CheckpointError, match="folder .* does not exist"):
        open_tensors(tmp_path / "nowhere" / "x.safetensors")
    (tmp_path / "sub").mkdir()
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_tensors(tmp_path / "sub")
    for nothing in ([], {}, {"epoch": 1}):
        with pytest.raises(CheckpointError):
            open_tensors(nothing)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_truncated(state, tmp_path, keep):
    torch.save(state, tmp_path / "x.pth")
    save_file({**state, "big": torch.zeros(100_000)}, tmp_path / "x.safetensors")
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        with pytest.raises(CheckpointError, match="cut short"):
            open_tensors(path)


def test_truncated_in_the_header(state, tmp_path):
    save_file(state, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:40])
    with pytest.raises(CheckpointError, match="inside its header"):
        open_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "item, message",
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "4 bytes for the tensor 'a'"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "is damaged"),
        ({"dtype": "F32", "shape": [1]}, "no description"),
        ({"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}, "as F4"),
    ],
)
def test_damaged_header(tmp_path, item, message):
    header = json.dumps({"a": item}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match=message):
        open_tensors(tmp_path / "x.safetensors")


def test_not_a_state_dict(tmp_path):
    torch.save(torch.ones(3), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="holds a Tensor"):
        open_tensors(tmp_path / "x.pth")
    torch.save({"a": [1, 2]}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no tensors"):
        open_tensors(tmp_path / "x.pth")
