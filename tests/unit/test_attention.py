"""The backend registry: what is missing or wrong is refused with its reason, and exact attention stands in."""

import logging
from dataclasses import replace

import pytest
import torch
from support.tiny import tiny_transformer

from wanvideo.errors import InputError, UnsupportedError
from wanvideo.models import transformer
from wanvideo.ops.attention import backends, functions, lse, names

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def test_every_backend_has_a_name_and_every_name_a_backend():
    assert names.ATTENTION_MODES == ("auto", *backends.BACKENDS)
    assert set(names.STAND_INS.values()) <= set(names.ATTENTION_MODES)


def planted(function, **traits):
    return backends.Backend("planted", function, lambda device: None, 0.01, **traits)


def plant(monkeypatch, function, **traits):
    monkeypatch.setitem(backends.BACKENDS, "planted", planted(function, **traits))
    monkeypatch.setattr(names, "ATTENTION_MODES", ("planted",))


@pytest.mark.parametrize(
    ("function", "reason"),
    [(lambda q, k, v, lse: (v, None), "off by"), (lambda q, k, v, lse: (q[:, :5], None), "failed"),
     (lambda q, k, v, lse: (v * float("nan"), None), "off by nan"),
     (lambda q, k, v, lse: (_ for _ in ()).throw(RuntimeError("misaligned address")), "misaligned address")],
)  # fmt: skip
def test_a_wrong_or_crashing_backend_is_refused_and_replaced(monkeypatch, caplog, function, reason):
    plant(monkeypatch, function)
    with caplog.at_level(logging.WARNING, "wanvideo"):
        assert backends.choose("planted", CPU, torch.float32, 128, 2).name == "sdpa"
    assert reason in caplog.text


def test_a_right_backend_is_used(monkeypatch):
    plant(monkeypatch, functions.sdpa)
    assert backends.choose("planted", CPU, torch.bfloat16, 128, 2).name == "planted"


def test_keys_of_a_prompt_are_made_anew_for_queries_of_another_dtype(monkeypatch):
    model, eight_bit = tiny_transformer(), replace(planted(functions.sdpa), query_dtype=torch.float8_e4m3fn)
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


def without_lse(query, key, value, needs_lse):
    return functions.sdpa(query, key, value)


def wrong_lse(query, key, value, needs_lse):
    """What a library gives that takes the mean out of its keys and forgets it."""
    out, made = functions.sdpa(query, key - key.mean(1, keepdim=True), value, True)
    return out, made


@pytest.mark.parametrize(
    ("function", "traits", "reason"),
    [(functions.sdpa, {"lse_limit": "it has none"}, "log-sum-exp is needed, and it has none"),
     (without_lse, {}, "gives no log-sum-exp"), (wrong_lse, {}, "its log-sum-exp is off by")],
)  # fmt: skip
def test_a_backend_is_not_offered_where_its_log_sum_exp_is_missing_or_wrong(
    monkeypatch, caplog, function, traits, reason
):
    plant(monkeypatch, function, **traits)
    assert backends.choose("planted", CPU, torch.float32, 128, 2).name == "planted"
    with caplog.at_level(logging.WARNING, "wanvideo"):
        assert backends.choose("planted", CPU, torch.float32, 128, 2, needs_lse=True).name == "sdpa"
    assert reason in caplog.text


def test_a_backend_without_log_sum_exp_says_so():
    backend = planted(functions.sdpa, lse_limit="it has none")
    assert not backend.has_lse and not backends.BACKENDS["sageattn_3"].has_lse
    with pytest.raises(UnsupportedError, match="it has none"):
        backend.attend_with_lse(*drawn(5, 7))


def drawn(length, keys, dtype=torch.float32):
    generator = torch.Generator().manual_seed(length + keys)
    shapes = ((2, length, 3, 128), (2, keys, 3, 128), (2, keys, 3, 128))
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


@pytest.mark.parametrize("scores", [2**24, 1000])
def test_eager_attention_is_exact_in_any_number_of_pieces(monkeypatch, scores):
    monkeypatch.setattr(lse, "MAX_SCORES", scores)
    query, key, value = drawn(50, 41)
    out, made = lse.eager_attention(query, key, value)
    scaled = torch.einsum("blne,bmne->bnlm", query.double(), key.double()) / 128**0.5
    assert (made - scaled.logsumexp(-1)).abs().max() <= 1e-5 and made.dtype == torch.float32
    expected = torch.einsum("bnlm,bmne->blne", scaled.softmax(-1), value.double())
    assert (out - expected).abs().max() <= 1e-5


SPLITS = {"two": (60, 41), "three": (1, 70, 30)}


def split_error(backend, split, query, key, value):
    """Largest differences of out and its log-sum-exp: merged from parts of the keys, to exact attention to all."""
    parts = zip(key.split(SPLITS[split], 1), value.split(SPLITS[split], 1), strict=True)
    out, made = lse.merge(backend.attend_with_lse(query, *part) for part in parts)
    expected, expected_lse = lse.eager_attention(*(x.float() for x in (query, key, value)))
    assert out.dtype == value.dtype and made.dtype == torch.float32
    return float((out - expected).abs().max()), float((made - expected_lse).abs().max())


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "name", [name for name in backends.BACKENDS if backends.refusal(name, CPU, torch.float32, 128) is None]
)
def test_parts_of_the_keys_merge_to_all_of_them(name, split):
    assert max(split_error(backends.BACKENDS[name], split, *drawn(50, 101))) <= 1e-5


def test_parts_that_weigh_nothing_beside_others_merge():
    query, key, value = drawn(50, 101)
    key[:, 60:] += 100 * query.mean(1, keepdim=True)
    query = query * 100
    assert max(split_error(backends.BACKENDS["sdpa"], "two", query, key, value)) <= 1e-2  # of scores around 1e5
    with pytest.raises(ValueError, match="no part"):
        lse.merge([])


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == CPU, reason="there is no GPU here")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", backends.BACKENDS)
def test_log_sum_exp_of_every_backend_of_this_gpu(name, dtype):
    """sdpa in float32 takes another kernel of PyTorch than in half precision; other libraries have none."""
    reason = backends.refusal(name, DEVICE, dtype, 128, needs_lse=True)
    if reason is not None:
        assert name != "sdpa", reason
        pytest.skip(f"{name} cannot be used here: {reason}")
    backend = backends.BACKENDS[name]
    for split in SPLITS:
        out_error, lse_error = split_error(backend, split, *drawn(50, 101, dtype))
        assert out_error <= 4 * backend.error and lse_error <= backend.error
