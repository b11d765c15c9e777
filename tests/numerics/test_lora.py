"""LoRAs of every dialect against reference vectors; unmerged LoRAs against merged ones; nothing left behind."""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support import recipes
from support.packed import packed_transformer
from support.tiny import tiny_transformer

from wanvideo.errors import CheckpointError
from wanvideo.lora.apply import apply_loras
from wanvideo.lora.use import LoraUse
from wanvideo.memory.placement import check_parameters
from wanvideo.memory.residency import Residency
from wanvideo.memory.streaming import BlockStreamer
from wanvideo.ops.linear.layer import Linear
from wanvideo.ops.linear.low_rank import Kronecker, LoraBranch, LoraSchedule
from wanvideo.ops.norm import quantize_rows

DATA = Path(__file__).parent / "data"
CASE = json.loads((DATA / "lora.json").read_text(encoding="utf-8"))
DIALECTS = tuple(CASE["dialects"])
STRENGTH = CASE["strength"]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STORAGES = ("fp8", "int8", "fp4", "Q8_0", "Q4_0")


def file_of(keys):
    """The tensors of a LoRA file from its description."""
    draw = recipes.tensor
    return {
        item["key"]: torch.tensor(item["value"])
        if "value" in item
        else draw(item["tensor"], item["shape"], CASE["seed"], item["scale"])
        for item in keys
    }


def lora(dialect):
    return file_of(CASE["dialects"][dialect]["keys"])


def inputs(speakers=1):
    return recipes.transformer_inputs(2, 4, 4, speakers, 500, 9)


@cache
def base_velocity():
    return tiny_transformer()(**inputs())


@cache
def merged_velocity(dialect, strength=STRENGTH):
    model = tiny_transformer()
    apply_loras(model, [LoraUse(lora(dialect), strength)])
    return model(**inputs())


def on_device(given):
    return {name: value if value is None else value.to(DEVICE) for name, value in given.items()}


def state(model):
    return {name: value.cpu().clone() for name, value in model.state_dict().items()}


def assert_same_state(model, before):
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name].cpu(), value) for name, value in before.items())


def relative(value, expected):
    return ((value - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_reference_vectors(dialect):
    model = tiny_transformer()
    before = state(model)
    assert recipes.fingerprint(before) == CASE["weights_fingerprint"]
    (report,) = apply_loras(model, [LoraUse(lora(dialect), STRENGTH)])
    expected = CASE["expected"][CASE["dialects"][dialect]["expect"]]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(expected)
    assert report.matched == report.total == len(expected) and not report.unmatched and report.branch_bytes == 0
    for name, item in expected.items():
        value = model.get_parameter(name).double()
        probe = (value * recipes.tensor(f"probe.{name}", tuple(value.shape), CASE["seed"]).double()).sum().item()
        assert abs(probe - item["probe"]) <= 1e-3 * (1 + abs(item["probe"])), name
        assert (value - before[name]).norm().item() == pytest.approx(item["delta_norm"], rel=1e-4), name
    with safe_open(DATA / "lora.safetensors", "pt") as dense:
        for key in dense.keys():
            case, name = key.split("/")
            if case == CASE["dialects"][dialect]["expect"]:
                value = model.get_parameter(name)
                value = value[::4, ::4] if value.dim() == 2 else value
                assert (value - dense.get_tensor(key)).abs().max() <= 1e-5, name


def test_what_fits_nothing_is_refused_and_changes_nothing():
    model = tiny_transformer()
    before = state(model)
    with pytest.raises(CheckpointError, match=r"16 channels \(text-to-video\)") as error:
        apply_loras(model, [LoraUse(file_of(CASE["misfit"]["keys"]))])
    assert "blocks.7.self_attn.q.weight" in str(error.value)
    assert_same_state(model, before)


def test_a_text_to_video_lora_keeps_what_fits():
    model = tiny_transformer()
    (report,) = apply_loras(model, [LoraUse(lora("musubi") | file_of(CASE["misfit"]["keys"]), STRENGTH)])
    assert (report.matched, report.total) == (16, 18)
    assert torch.equal(model(**inputs()), merged_velocity("musubi"))


@pytest.mark.parametrize("dialect", ["comfy_down_up_alpha", "comfy_A_B", "lokr", "lokr_low_rank", "loha"])
def test_unmerged_equals_merged(dialect):
    model = tiny_transformer()
    (report,) = apply_loras(model, [LoraUse(lora(dialect), STRENGTH, merge=False)])
    assert report.merged == 0 and report.unmerged and report.branch_bytes
    check_parameters(model, "cpu")
    assert relative(model(**inputs()), merged_velocity(dialect)) <= 1e-5
    assert relative(base_velocity(), merged_velocity(dialect)) > 1e-2


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dialect", ["comfy_down_up_alpha", "loha", "lokr"])
def test_a_quantized_base_gets_the_whole_lora_exactly(storage, dialect):
    quant, dense = packed_transformer(storage), packed_transformer(storage, dense=True)
    assert relative(quant(**inputs()), dense(**inputs())) <= 1e-6
    (report,) = apply_loras(quant, [LoraUse(lora(dialect), STRENGTH)])
    apply_loras(dense, [LoraUse(lora(dialect), STRENGTH)])
    assert report.unmerged and report.matched == report.total
    assert report.merged + report.unmerged + report.added == report.total
    assert relative(quant(**inputs()), dense(**inputs())) <= 1e-5


def test_several_loras_each_at_its_own_strength():
    uses = [LoraUse(lora("comfy_A_B"), 0.8), LoraUse(lora("musubi"), -0.3), LoraUse(lora("lokr"), 0.2)]
    merged, unmerged = tiny_transformer(), tiny_transformer()
    weight = merged.blocks[0].self_attn.q.weight.clone()
    apply_loras(merged, uses)
    apply_loras(unmerged, [LoraUse(use.file, use.strength, merge=False) for use in uses])
    assert len(list(unmerged.blocks[0].self_attn.q.lora.buffers())) == 4  # two pairs are one, and a Kronecker product
    assert unmerged.blocks[0].self_attn.q.lora.rank == 8
    assert relative(unmerged(**inputs()), merged(**inputs())) <= 1e-5
    for use in uses:  # each alone, added up
        alone = tiny_transformer()
        apply_loras(alone, [use])
        weight += alone.blocks[0].self_attn.q.weight - recipes.transformer_state_dict(5)["blocks.0.self_attn.q.weight"]
    assert relative(merged.blocks[0].self_attn.q.weight, weight) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("merge", [True, False])
def test_changed_and_taken_back_leaves_the_base_to_the_bit(dtype, merge):
    model = tiny_transformer(dtype=dtype)
    before, velocity = state(model), model(**inputs())
    first, second = lora("comfy_down_up_alpha"), lora("lokr")
    apply_loras(model, [LoraUse(first, 0.8, merge=merge)])
    once = model(**inputs())
    apply_loras(model, [LoraUse(first, 0.3, merge=merge), LoraUse(second, 1.0, merge=merge)])
    assert not torch.equal(model(**inputs()), once)
    apply_loras(model, [LoraUse(first, 0.8, merge=merge)])
    assert torch.equal(model(**inputs()), once)
    apply_loras(model, [])
    assert_same_state(model, before)
    assert torch.equal(model(**inputs()), velocity)


def test_contexts_follow_the_weights():
    model = tiny_transformer()
    given = inputs()
    text = model.text_context(given["text_embeds"], given["image_embeds"])
    audio = model.audio_context(given["audio"], None, *given["latents"].shape[2:])

    def denoise():
        return model.denoise(given["latents"], given["timestep"], given["condition"], text, audio)

    assert torch.equal(denoise(), base_velocity())
    apply_loras(model, [LoraUse(lora("comfy_down_up_alpha"), STRENGTH)])
    assert torch.equal(denoise(), merged_velocity("comfy_down_up_alpha"))
    apply_loras(model, [])
    assert torch.equal(denoise(), base_velocity())


@pytest.mark.parametrize("storage", [None, *STORAGES])
def test_streamed_blocks_carry_their_loras(storage):
    def build():
        return tiny_transformer() if storage is None else packed_transformer(storage)

    use = LoraUse(lora("comfy_down_up_alpha"), STRENGTH, merge=False)
    resident, streamed, given = build().to(DEVICE), build(), on_device(inputs())
    base = resident(**given)
    apply_loras(resident, [use])
    expected = resident(**given)
    residency = Residency(streamed, DEVICE)
    residency.place(len(streamed.blocks))
    streamed(**given)
    apply_loras(streamed, [use])
    for _ in range(2):
        assert torch.equal(streamed(**given), expected)
    packed = streamed.block_provider.packed[0]
    branch = streamed.blocks[0].self_attn.q.lora
    assert any(place.tensor is branch.down for place in packed.places)
    assert branch.down.untyped_storage().data_ptr() == packed.host.data_ptr()
    check_parameters(streamed)
    residency.offload()
    check_parameters(streamed, "cpu")
    residency.place(1)
    assert torch.equal(streamed(**given), expected)
    apply_loras(streamed, [])
    assert torch.equal(streamed(**given), base)
    assert not any("lora" in name for name in streamed.state_dict())


def test_forty_streamed_blocks_keep_the_invariant_through_every_change():
    layers, given = 40, on_device(recipes.transformer_inputs(1, 2, 2, 1, 500, 9))
    streamed = tiny_transformer(layers)
    plain = deepcopy(streamed).to(DEVICE)
    before = state(streamed)
    residency = Residency(streamed, DEVICE)
    residency.place(layers)
    pairs = {
        f"blocks.{n}.{layer}.lora_{side}.weight": draw(f"{n}.{side}", *shape)
        for n in (0, 17, 39)
        for layer in ("self_attn.v", "audio_cross_attn.proj")
        for side, shape in (("down", (3, 256)), ("up", (256, 3)))
    }
    views = {key: value.t().contiguous().t() for key, value in pairs.items()}  # as a careless caller has them
    views["blocks.3.cross_attn.o.diff"] = draw("o", 256, 512)[:, ::2]
    views["blocks.3.norm3.diff_b"] = draw("n", 512)[1::2]
    for strength, merge in ((0.8, False), (0.8, True), (0.3, False), (0.0, True), ((0.8, 0.1), False)):
        use = LoraUse(views, strength, merge=merge)
        apply_loras(streamed, [use])
        apply_loras(plain, [use])
        for step in (0, 1):
            for model in (streamed, plain):
                model.set_step(step)
            assert torch.equal(streamed(**given), plain(**given))
            check_parameters(streamed)
    residency.offload()
    residency.place(layers // 2)
    assert torch.equal(streamed(**given), plain(**given))
    apply_loras(streamed, [])
    assert_same_state(streamed, before)
    check_parameters(streamed)


def test_merged_into_streamed_blocks():
    model = tiny_transformer()
    model.block_provider = BlockStreamer(model.blocks, torch.device("cpu"), len(model.blocks))
    model(**inputs())
    apply_loras(model, [LoraUse(lora("comfy_down_up_alpha"), STRENGTH)])
    assert torch.equal(model(**inputs()), merged_velocity("comfy_down_up_alpha"))


@pytest.mark.parametrize("streamed", [0, 2])
def test_strengths_by_step(streamed):
    model = tiny_transformer()
    if streamed:
        model.block_provider = BlockStreamer(model.blocks, torch.device("cpu"), streamed)
    strengths = (1.0, 0.25, 0.25, 0.0)
    constant = LoraUse(lora("musubi"), 0.4, merge=False)
    apply_loras(model, [LoraUse(lora("comfy_down_up_alpha"), strengths), constant])
    memory = [tensor.data_ptr() for tensor in model.blocks[0].self_attn.q.lora.buffers()]
    given = inputs()
    text = model.text_context(given["text_embeds"], given["image_embeds"])
    audio = model.audio_context(given["audio"], None, *given["latents"].shape[2:])
    for step in (0, 1, 2, 3, 7, 0):
        fixed = tiny_transformer()
        apply_loras(fixed, [LoraUse(lora("comfy_down_up_alpha"), strengths[min(step, 3)], merge=False), constant])
        model.set_step(step)
        velocity = model.denoise(given["latents"], given["timestep"], given["condition"], text, audio)
        assert relative(velocity, fixed(**given)) <= 1e-5, step
    assert memory == [tensor.data_ptr() for tensor in model.blocks[0].self_attn.q.lora.buffers()]
    apply_loras(model, [])
    assert model.loras.schedule is None and torch.equal(model(**given), base_velocity())


def test_contexts_are_only_made_anew_when_a_strength_changes():
    model = tiny_transformer()
    apply_loras(model, [LoraUse(lora("musubi"), (1.0, 1.0, 0.5))])
    versions = []
    for step in range(4):
        model.set_step(step)
        versions.append(model.weights_version)
    assert versions == [1, 1, 2, 2]


def test_loras_under_inference_mode_and_outside_of_it():
    with torch.inference_mode():
        model = tiny_transformer()
        apply_loras(model, [LoraUse(lora("comfy_down_up_alpha"), STRENGTH)])
        model(**inputs())
    apply_loras(model, [LoraUse(lora("comfy_down_up_alpha"), (STRENGTH, 0.1))])
    with torch.inference_mode():
        model(**inputs())
        model.set_step(1)
    model.set_step(0)
    assert relative(model(**inputs()), merged_velocity("comfy_down_up_alpha")) <= 1e-5
    apply_loras(model, [])
    assert torch.equal(model(**inputs()), base_velocity())


def draw(name, *shape):
    return recipes.tensor(name, shape, 3, 0.2)


@pytest.mark.parametrize("scheduled", [False, True])
def test_forms_of_a_branch_by_hand(scheduled):
    down, up, full = draw("down", 3, 12), draw("up", 10, 3), draw("full", 10, 12)
    pair = Kronecker(draw("first", 5, 4), draw("second", 2, 3))
    schedule = LoraSchedule([(1.0, 0.5)])
    table = torch.tensor([[1.0] * 5, [0.5, 2.0, 1.0, 3.0, -1.0]]) if scheduled else None
    branch = LoraBranch(down, up, [full], [pair], table, schedule)
    schedule.set_step(1)
    factors = table[1] if scheduled else torch.ones(5)
    matrix = (up * factors[:3]) @ down + factors[3] * full + factors[4] * torch.kron(pair.first, pair.second)
    x, out = draw("x", 2, 7, 12), draw("out", 2, 7, 10)
    assert torch.allclose(branch(x, out.clone()), out + x @ matrix.t(), atol=1e-5)
    pairs_only = LoraBranch(down, up, table=table[:, :3].contiguous() if scheduled else None, schedule=schedule)
    for storage in (torch.int8, torch.float8_e4m3fn):
        rows = quantize_rows(x[0], storage)
        dense = rows.dense(torch.float32)
        assert torch.allclose(branch(rows, out[0].clone()), out[0] + dense @ matrix.t(), atol=1e-5)
        narrow = out[0] + dense @ ((up * factors[:3]) @ down).t()
        assert torch.allclose(pairs_only(rows, out[0].clone()), narrow, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_of_8_bit_numbers_do_not_overflow(dtype):
    down, up, x = torch.full((1, 512), 3.0), torch.full((4, 1), 1e-3), torch.full((2, 512), 10.0)
    branch = LoraBranch(down.to(dtype), up.to(dtype))
    rows = quantize_rows(x, torch.float8_e4m3fn)  # whose sums are 448 * 3 * 512 before scaling
    added = branch(rows, torch.zeros(2, 4, dtype=dtype))
    assert (added.float() / (10 * 3 * 512 * 1e-3) - 1).abs().max() <= 1e-2


def test_a_step_recompiles_nothing():
    layer = Linear(8, 8)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    schedule = LoraSchedule([(1.0, 0.5, 0.25)])
    layer.lora = LoraBranch(
        draw("d", 2, 8), draw("u", 8, 2), table=torch.tensor([[1.0] * 2, [0.5] * 2, [0.25] * 2]), schedule=schedule
    )
    layer.requires_grad_(False)
    compiled = []

    def count(graph, example_inputs):
        compiled.append(graph)
        return graph.forward

    run, x = torch.compile(layer, backend=count), draw("x", 3, 8)
    schedule.on(x.device)
    for step in (0, 1, 2, 0):
        schedule.set_step(step)
        assert torch.allclose(run(x), layer(x))
    assert len(compiled) == 1
