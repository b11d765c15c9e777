"""LoRA files as users have them: what is read from them, what is refused, and that weights come back from the files."""

import gc
import json
import logging
import re
import weakref
from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from safetensors.torch import save_file
from support import jobs, recipes
from support.packed import packed_transformer
from support.tiny import tiny_transformer

from wanvideo import TalkingVideoPipeline
from wanvideo.checkpoints.load import load_transformer
from wanvideo.errors import CheckpointError, InputError, UnsupportedError
from wanvideo.lora.apply import apply_loras
from wanvideo.lora.deltas import Full, Hadamard, LowRank
from wanvideo.lora.file import open_lora, read_lora
from wanvideo.lora.use import LoraUse
from wanvideo.request import LoraFile

QUERY = "blocks.0.self_attn.q"


def draw(name, *shape):
    return recipes.tensor(name, shape, 4, 0.1)


def pair(layer=QUERY, rank=4, prefix="diffusion_model.", names=("lora_down", "lora_up"), rows=256, columns=256):
    down, up = (f"{prefix}{layer}.{name}.weight" for name in names)
    return {down: draw("down", rank, columns), up: draw("up", rows, rank)}


def small_lora():
    """Something of every kind of target."""
    norms = {f"diffusion_model.blocks.1.{name}": draw(name, 256) for name in ("norm3.diff", "norm3.diff_b")}
    bias = {
        f"diffusion_model.{QUERY}.diff_b": draw("bias", 256),
        "diffusion_model.blocks.0.diff_m": draw("m", 1, 6, 256),
    }
    kv = pair("blocks.1.audio_cross_attn.kv_linear", rows=512, columns=56)
    return pair() | pair("blocks.1.ffn.2", columns=384) | kv | norms | bias


def read(state):
    model = tiny_transformer()
    return read_lora(open_lora(state), {name: tuple(value.shape) for name, value in model.named_parameters()})


def delta(state, name=f"{QUERY}.weight"):
    (found,) = read(state).entries[name]
    return found


@pytest.fixture(autouse=True)
def logged(caplog):
    caplog.set_level(logging.INFO, logger="wanvideo")


@pytest.mark.parametrize(
    ("prefix", "layer", "names"),
    [
        ("", QUERY, ("lora.down", "lora.up")),
        ("model.diffusion_model.", QUERY, ("lora_down", "lora_up")),
        ("base_model.model.diffusion_model.", QUERY, ("lora_A", "lora_B")),
        ("base_model.model.", QUERY, ("lora_A.my_adapter", "lora_B.my_adapter")),
        ("transformer.", "blocks.0.attn1.to_q", ("lora.down", "lora.up")),
        ("", "blocks.0.attn1.to_q", ("lora_A", "lora_B")),
        ("lora_transformer_", "blocks_0_attn1_to_q", ("lora_down", "lora_up")),
        ("lora_unet_", "blocks_0_self_attn_q", ("lora_A", "lora_B")),
    ],
)
def test_names_in_any_mixture(prefix, layer, names):
    found = delta(pair(layer, prefix=prefix, names=names))
    assert isinstance(found, LowRank) and found.rank == 4 and found.scale == 1
    assert torch.allclose(found.dense("cpu"), draw("up", 256, 4) @ draw("down", 4, 256))


def test_underscored_names_of_the_audio_adapter():
    lora = read(pair("blocks_1_audio_cross_attn_q_linear", prefix="lora_unet_"))
    assert list(lora.entries) == ["blocks.1.audio_cross_attn.q_linear.weight"]
    lora = read(pair("multitalk_audio_proj.proj2", rows=40, columns=40))
    assert list(lora.entries) == ["audio_proj.proj2.weight"]


@pytest.mark.parametrize(
    ("noted", "scale"),
    [
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.use_rslora": True}, 4.0),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"self_attn.q": 1}}, 0.25),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"self_attn.k": 1}}, 2.0),
        ({"r": 4}, 1.0),
    ],
)
def test_a_scale_that_is_noted_beside_the_tensors(tmp_path, noted, scale):
    inside = tmp_path / "inside.safetensors"
    save_file(pair(), inside, {"lora_adapter_metadata": json.dumps(noted)})
    assert delta(inside).scale == scale
    folder = tmp_path / "peft"
    folder.mkdir()
    save_file(pair(names=("lora_A", "lora_B")), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(noted), encoding="utf-8")
    assert delta(folder).scale == delta(folder / "adapter_model.safetensors").scale == scale
    with_alpha = pair() | {f"diffusion_model.{QUERY}.alpha": torch.tensor(2.0)}
    save_file(with_alpha, inside, {"lora_adapter_metadata": json.dumps(noted)})
    assert delta(inside).scale == 0.5


def test_unreadable_notes_are_not_ignored(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(pair(), path, {"lora_adapter_metadata": "{nonsense"})
    with pytest.raises(CheckpointError, match=r"x\.safetensors.*its scale is not known"):
        delta(path)


def test_convolutions_and_differences_fit_by_their_numbers():
    one_by_one = {key: value[..., None, None] for key, value in pair().items()}
    assert delta(one_by_one).dense("cpu").shape == (256, 256)
    flat = {"diffusion_model.blocks.0.modulation.diff": draw("m", 6, 256)}
    assert delta(flat, "blocks.0.modulation").dense("cpu").shape == (1, 6, 256)
    patch = {
        "diffusion_model.patch_embedding.lora_down.weight": draw("pd", 4, 36, 1, 2, 2),
        "diffusion_model.patch_embedding.lora_up.weight": draw("pu", 256, 4, 1, 1, 1),
    }
    model = tiny_transformer()
    before = model.patch_embedding.weight.clone()
    apply_loras(model, [LoraUse(patch, (0.5, 0.0))])
    expected = before + 0.5 * (draw("pu", 256, 4) @ draw("pd", 4, 144)).view_as(before)
    assert torch.allclose(model.patch_embedding.weight, expected, atol=1e-6)
    model.set_step(1)
    assert torch.equal(model.patch_embedding.weight, before)


def test_a_loha_that_would_be_larger_as_a_pair_is_written_out():
    parts = {f"{QUERY}.hada_w{n}_{side}": draw(f"{n}{side}", *shape)
             for n in (1, 2) for side, shape in (("a", (256, 16)), ("b", (16, 256)))}  # fmt: skip
    found = delta(parts)
    assert isinstance(found, Hadamard) and found.rank is None
    unmerged, merged = tiny_transformer(), tiny_transformer()
    apply_loras(unmerged, [LoraUse(parts, 0.1, merge=False)])
    apply_loras(merged, [LoraUse(parts, 0.1)])
    x = draw("x", 9, 256)
    assert torch.allclose(unmerged.blocks[0].self_attn.q(x), merged.blocks[0].self_attn.q(x), atol=1e-5)


def test_lycoris_norms_are_differences():
    state = {f"{QUERY}.alpha": torch.tensor(1.0), "lycoris_blocks_0_norm2.w_norm": draw("w", 256)}
    state |= {"lycoris_blocks_0_norm2.b_norm": draw("b", 256)} | pair()
    lora = read(state)
    assert isinstance(lora.entries["blocks.0.norm3.weight"][0], Full) and "blocks.0.norm3.bias" in lora.entries


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s | {f"diffusion_model.{QUERY}.dora_scale": draw("d", 256)}, UnsupportedError, "DoRA"),
        (lambda s: s | {f"{QUERY}.lora_magnitude_vector.weight": draw("d", 256)}, UnsupportedError, "DoRA"),
        (lambda s: s | {f"{QUERY}.lora_mid.weight": draw("d", 4, 4)}, UnsupportedError, "Tucker"),
        (lambda s: dict(list(s.items())[:1]), CheckpointError, r"incomplete: blocks\.0\.self_attn\.q lacks up"),
        (lambda s: dict(list(s.items())[1:]), CheckpointError, "lacks down"),
        (lambda s: s | pair(prefix=""), CheckpointError, "twice"),
        (lambda s: s | pair("blocks.0.attn1.to_q"), CheckpointError, "twice"),
        (lambda s: {k: v[:, :3] if "up" in k else v for k, v in s.items()}, CheckpointError, "is damaged: the pair of"),
        (lambda s: recipes.adapter_state_dict(5), CheckpointError, "the LoRA slot needs a LoRA"),
        (lambda s: recipes.transformer_state_dict(5), CheckpointError, "36 channels.*the LoRA slot needs a LoRA"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_changes(change, error, message):
    model = tiny_transformer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        apply_loras(model, [LoraUse(small_lora()), LoraUse(change(pair()))])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), (), (1.0, float("nan")), "0.8", None])
def test_a_strength_is_a_number(strength):
    with pytest.raises(InputError, match="strength"):
        LoraUse(pair(), strength)


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_file(small_lora(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is cut short"):
        apply_loras(tiny_transformer(), [LoraUse(path)])
    with pytest.raises(CheckpointError, match=r"There is no model file .*cot\.safetensors\. Did you mean cut"):
        apply_loras(tiny_transformer(), [LoraUse(tmp_path / "cot.safetensors")])


def test_filters():
    model = tiny_transformer()
    state = pair() | pair("blocks.1.self_attn.q") | pair("blocks.1.ffn.2", columns=384) | pair("text_embedding.2")
    (report,) = apply_loras(model, [LoraUse(state, blocks=frozenset({1}), skip_layers=("ffn.",))])
    reference = tiny_transformer().state_dict()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, reference[name])}
    assert changed == {"blocks.1.self_attn.q.weight", "text_embedding.2.weight"}
    assert (report.matched, report.filtered, report.merged) == (4, 2, 2)
    (report,) = apply_loras(model, [LoraUse(state, blocks=frozenset())])
    assert (report.filtered, report.merged) == (3, 1)  # no block means no block


def test_one_line_says_what_became_of_a_lora(caplog):
    model = packed_transformer("int8")
    state = small_lora() | pair("text_embedding.2") | pair("blocks.5.ffn.0") | {"odd_key": draw("o", 3)}
    (report,) = apply_loras(model, [LoraUse(state, 0.8)])
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0] == str(report)
    assert re.fullmatch(
        r"LoRA the state dict at 0\.8: matched 8/10, 2 merged, 2 unmerged, 4 added to small parameters, rank 4, "
        r"\+0 MB\.", lines[0],
    ), lines[0]  # fmt: skip
    assert "2 differences fit nothing here and are left out: blocks.5.ffn.0.weight, odd_key" in lines[1]


def test_strength_zero_changes_nothing():
    model = tiny_transformer()
    (report,) = apply_loras(model, [LoraUse(small_lora(), 0.0)])
    assert (report.matched, report.merged, report.added) == (7, 0, 0)
    reference = tiny_transformer().state_dict()
    assert all(torch.equal(value, reference[name]) for name, value in model.state_dict().items())


@pytest.fixture
def files(tmp_path):
    base, adapter = tmp_path / "base.safetensors", tmp_path / "adapter.safetensors"
    save_file({f"model.diffusion_model.{k}": v for k, v in recipes.transformer_state_dict(5).items()}, base)
    save_file(recipes.adapter_state_dict(5), adapter)
    return base, adapter


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_merged_matrices_come_back_from_the_files(files, dtype):
    model = load_transformer(*files, dtype=dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for uses in ([LoraUse(small_lora(), 0.7)], [LoraUse(small_lora(), 0.2), LoraUse(pair(), -1.0)]):
        apply_loras(model, uses)
        assert not torch.equal(model.blocks[0].self_attn.q.weight, before[f"{QUERY}.weight"])
    kept = model.loras.originals.kept
    assert sorted(kept) == [
        "blocks.0.modulation", "blocks.0.self_attn.q.bias", "blocks.1.norm3.bias", "blocks.1.norm3.weight"
    ]  # fmt: skip
    apply_loras(model, [])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.loras.originals.names


@pytest.mark.parametrize("quantize", ["fp8", "int8", "fp4"])
def test_a_lora_changes_a_quantized_model_as_it_changes_a_dense_one(files, quantize):
    given = recipes.transformer_inputs(2, 4, 4, 1, 500, 9)

    def effect(**options):
        model = load_transformer(*files, dtype=torch.float32, **options)
        before = model(**given)
        (report,) = apply_loras(model, [LoraUse(small_lora())])
        assert report.matched == report.total == 7
        change = model(**given) - before
        apply_loras(model, [])
        assert torch.equal(model(**given), before)
        return change.flatten(), report

    (dense, merged), (quantized, unmerged) = effect(), effect(quantize=quantize)
    assert merged.unmerged == 0 and unmerged.unmerged == 2  # keys and values of speech are too narrow to quantize
    assert torch.nn.functional.cosine_similarity(quantized, dense, 0) >= (0.95 if quantize == "fp4" else 0.995)


def test_a_model_file_that_was_overwritten_is_noticed(files):
    model = load_transformer(*files, dtype=torch.bfloat16)
    apply_loras(model, [LoraUse(pair())])
    model.source._tensors[f"{QUERY}.weight"] = model.source["blocks.0.self_attn.k.weight"]
    with pytest.raises(CheckpointError, match=r"base\.safetensors \+ adapter\.safetensors has changed since"):
        apply_loras(model, [])


def test_what_is_applied_already_costs_nothing(files, tmp_path, monkeypatch, caplog):
    path = tmp_path / "x.safetensors"
    save_file(small_lora(), path)
    model = load_transformer(*files)
    (first,) = apply_loras(model, [LoraUse(path, 0.7)])
    version, q = model.weights_version, model.blocks[0].self_attn.q.weight.clone()

    def refuse(*_):
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr("wanvideo.lora.apply.check_lora", refuse)
        caplog.clear()
        assert apply_loras(model, [LoraUse(str(path), 0.7)]) == (first,)
        assert model.weights_version == version and not caplog.records
        for other in (LoraUse(path, 0.2), LoraUse(path, 0.7, merge=False), LoraUse(path, 0.7, blocks=frozenset({0}))):
            with pytest.raises(AssertionError, match="read again"):
                apply_loras(model, [other])
    apply_loras(model, [LoraUse(path, 0.2)])  # no model is loaded for another strength
    assert not torch.equal(model.blocks[0].self_attn.q.weight, q)
    apply_loras(model, [LoraUse(path, 0.7)])
    assert torch.equal(model.blocks[0].self_attn.q.weight, q)
    save_file(pair(), path)  # another file under the same name
    (last,) = apply_loras(model, [LoraUse(path, 0.7)])
    assert last.total == 1


def test_tensors_in_memory_are_applied_again_since_they_may_have_changed():
    model, state = tiny_transformer(), pair()
    apply_loras(model, [LoraUse(state)])
    before = model.blocks[0].self_attn.q.weight.clone()
    state[f"diffusion_model.{QUERY}.lora_up.weight"] *= 2
    apply_loras(model, [LoraUse(state)])
    assert not torch.equal(model.blocks[0].self_attn.q.weight, before)


@pytest.mark.parametrize(("name", "merge"), [("add_delta", True), ("make_branch", False)])
def test_a_failure_halfway_is_repaired_by_the_next_call(files, monkeypatch, name, merge):
    model = load_transformer(*files)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def fail(*_):
        raise torch.cuda.OutOfMemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(f"wanvideo.lora.state.{name}", fail)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            apply_loras(model, [LoraUse(small_lora(), 0.7, merge=merge)])
    apply_loras(model, [])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_transformer_goes_away_with_its_last_user(files):
    model = load_transformer(*files)
    apply_loras(model, [LoraUse(small_lora(), (1.0, 0.5))])
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_a_copy_keeps_what_it_takes_to_undo_its_loras(files):
    model = load_transformer(*files)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    apply_loras(model, [LoraUse(small_lora(), 0.7)])
    other = deepcopy(model)
    apply_loras(other, [])
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert not torch.equal(model.blocks[0].self_attn.q.weight, before[f"{QUERY}.weight"])


class Elsewhere:
    """A block provider that keeps the weights of all blocks away while they do not run and are not edited."""

    def __init__(self, blocks):
        self.away = {}
        self.take(blocks)

    def tensors(self, blocks):
        return (tensor for block in blocks for tensor in (*block.parameters(), *block.buffers()))

    def take(self, blocks):
        for tensor in self.tensors(blocks):
            self.away[id(tensor)] = tensor.data
            tensor.data = torch.full((), torch.nan).to(tensor.dtype).expand(tensor.shape)

    @contextmanager
    def editing(self, blocks):
        for tensor in self.tensors(blocks):
            tensor.data = self.away.pop(id(tensor))
        try:
            yield
        finally:
            self.take(blocks)

    def __call__(self, blocks):
        for block in blocks:
            with self.editing([block]):
                yield block


def test_nothing_assumes_where_weights_are(files, monkeypatch):
    given = recipes.transformer_inputs(2, 4, 4, 1, 500, 9)
    model, resident = (load_transformer(*files, dtype=torch.float32) for _ in range(2))
    model.block_provider = Elsewhere(model.blocks)
    for use in (LoraUse(small_lora(), 0.7), LoraUse(small_lora(), (0.7, 0.2)), LoraUse(pair(), merge=False)):
        for item in (model, resident):
            apply_loras(item, [use])
        for step in (0, 1):
            for item in (model, resident):
                item.set_step(step)
            assert torch.equal(model(**given), resident(**given))
    for item in (model, resident):
        apply_loras(item, [])
    assert torch.equal(model(**given), resident(**given))


def test_weights_from_memory_are_not_held_twice_before_a_lora_comes():
    state = recipes.transformer_state_dict(5)
    model = load_transformer(state, dtype=torch.bfloat16)
    assert model.source is None
    before = model.blocks[0].self_attn.q.weight.clone()
    apply_loras(model, [LoraUse(pair())])
    apply_loras(model, [])
    assert torch.equal(model.blocks[0].self_attn.q.weight, before)


ONE_WINDOW = 0.4  # seconds


def run(folder, *loras, **changes):
    pipeline = TalkingVideoPipeline(jobs.official_files(loras=loras), jobs.OPTIONS)
    windows = pipeline.run(jobs.request(folder, [jobs.speech(folder, ONE_WINDOW)], **changes))
    return torch.cat([window.frames for window in windows]).float()


def test_a_run_uses_its_loras(tmp_path, caplog):
    path = jobs.lora_file()
    base, merged = run(tmp_path), run(tmp_path, LoraFile(path, 1.0))
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("LoRA ")]
    assert len(said) == 1 and re.search(r"matched (\d+)/\1, ", said[0])
    assert (merged - base).abs().mean() > 0.5
    by_step = run(tmp_path, LoraFile(path, (1.0, 1.0)))
    assert torch.equal(by_step, merged)
    assert torch.equal(run(tmp_path, LoraFile(path, 0.0)), base)
    first_only = run(tmp_path, LoraFile(path, (1.0, 0.0)))
    assert not torch.equal(first_only, base) and not torch.equal(first_only, merged)


def test_wrong_files_in_wrong_slots_are_refused_before_anything_is_loaded(tmp_path, caplog):
    files = jobs.official_files(loras=(LoraFile(jobs.official_files().adapter),))
    with pytest.raises(CheckpointError, match=r"infinitetalk\.safetensors is .*; the LoRA slot needs a LoRA"):
        TalkingVideoPipeline(files, jobs.OPTIONS)
    with pytest.raises(CheckpointError, match=r"is a LoRA; the .*slot needs a Wan2\.1 image-to-video transformer"):
        TalkingVideoPipeline(jobs.official_files(transformer=jobs.lora_file()), jobs.OPTIONS)
    with pytest.raises(CheckpointError, match="There is no model file"):
        TalkingVideoPipeline(jobs.official_files(loras=(LoraFile(str(tmp_path / "none.safetensors")),)), jobs.OPTIONS)
    with pytest.raises(InputError, match="has 3 strengths for a video of 2 steps"):
        run(tmp_path, LoraFile(jobs.lora_file(), (1.0, 0.5, 0.0)))
    assert not jobs.loads(caplog)
