"""The backend registry: what is missing or wrong is refused with its reason, and exact attention stands in."""

import logging
from dataclasses import replace

import pytest
import torch
from support.tiny import tiny_transformer

from wanvideo.errors import InputError
from wanvideo.models import transformer
from wanvideo.ops.attention import backends

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_caches():
    yield
    backends.refusal.cache_clear()
    backends.choose.cache_clear()


@pytest.mark.parametrize("name", [name for name in backends.BACKENDS if name != "sdpa"])
def test_what_needs_a_gpu_is_refused_without_one(name, caplog):
    with caplog.at_level(logging.WARNING, "wanvideo"):
        assert backends.choose(name, CPU, torch.float32, 128, 2).name == "sdpa"
    assert name in caplog.text and "CUDA" in caplog.text


@pytest.mark.parametrize("name", ["auto", "comfy", "xformers", "sdpa"])
def test_names_that_always_work(name):
    assert backends.choose(name, CPU, torch.float32, 128, 2).name == "sdpa"


def test_unknown_name():
    with pytest.raises(InputError, match="sageattn"):
        backends.choose("sage", CPU, torch.float32, 128, 2)


def planted(function):
    return backends.Backend("planted", function, lambda device: None, 0.01)


@pytest.mark.parametrize(
    ("function", "reason"),
    [(lambda q, k, v: v, "off by"), (lambda q, k, v: q[:, :5], "failed"),
     (lambda q, k, v: v * float("nan"), "off by nan"),
     (lambda q, k, v: (_ for _ in ()).throw(RuntimeError("misaligned address")), "misaligned address")],
)  # fmt: skip
def test_a_wrong_or_crashing_backend_is_refused_and_replaced(monkeypatch, caplog, function, reason):
    monkeypatch.setitem(backends.BACKENDS, "planted", planted(function))
    monkeypatch.setattr(backends, "ATTENTION_MODES", ("planted",))
    with caplog.at_level(logging.WARNING, "wanvideo"):
        assert backends.choose("planted", CPU, torch.float32, 128, 2).name == "sdpa"
    assert reason in caplog.text


def test_a_right_backend_is_used(monkeypatch):
    monkeypatch.setitem(backends.BACKENDS, "planted", planted(lambda q, k, v: backends._sdpa(q, k, v)))
    monkeypatch.setattr(backends, "ATTENTION_MODES", ("planted",))
    assert backends.choose("planted", CPU, torch.bfloat16, 128, 2).name == "planted"


def test_keys_of_a_prompt_are_made_anew_for_queries_of_another_dtype(monkeypatch):
    model, eight_bit = tiny_transformer(), replace(planted(backends._sdpa), query_dtype=torch.float8_e4m3fn)
    monkeypatch.setattr(
        transformer, "choose", lambda name, *_: eight_bit if name == "planted" else backends.BACKENDS[name]
    )
    versions = []
    for name in ("sdpa", "planted", "planted", "sdpa"):
        model.set_attention(name)
        versions.append(model.weights_version)
        assert {block.cross_attn.query_dtype for block in model.blocks} == {
            model.blocks[0].self_attn.backend.query_dtype
        }
    assert versions[0] == 0 < versions[1] == versions[2] < versions[3]
