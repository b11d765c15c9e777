"""What small or old cards and machines of little memory meet: answers that help, nothing twice, nothing left behind."""

import errno
import mmap
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support import jobs, quantized_files, recipes
from support.pack import node
from support.tiny import tiny_transformer

from wanvideo import TalkingVideoPipeline
from wanvideo.checkpoints.dialects import Kind
from wanvideo.checkpoints.load import load_text_encoder, load_transformer, open_checkpoint
from wanvideo.cli.main import run
from wanvideo.engine.encoders import encode_text
from wanvideo.engine.files import ResolvedFiles
from wanvideo.engine.forecast import Outcome
from wanvideo.engine.sizes import model_sizes, text_encoder_bytes
from wanvideo.errors import InputError, UnsupportedError
from wanvideo.geometry import VideoGeometry, WindowPlan
from wanvideo.memory import budget, residency, streaming
from wanvideo.memory.hooked import streaming as streamed
from wanvideo.memory.oom import OomRetry, make_fallbacks, ran_out
from wanvideo.memory.planner import HOST_BASE, Device, ModelWeights, Work, plan_run
from wanvideo.memory.residency import Residency, module_bytes
from wanvideo.ops.attention.backends import choose
from wanvideo.ops.linear import layer
from wanvideo.presets import load_preset, preset_names
from wanvideo.request import EngineOptions, LoopSettings

GB = 10**9
FP8 = ModelWeights(40, 465_000_000, 660_000_000, 5120, 13824, 32, "fp8", 254_000_000, 6_700_000_000)
WORK = Work(num_steps=4, num_passes=1, num_speakers=1, num_texts=1, num_speeches=1, num_references=1)
CUDA_ERROR = "CUDA error: out of memory"


def plan(device, options=None, weights=FP8, settings=None, size=(832, 480)):
    geometry = VideoGeometry(*size, 81)
    return plan_run(
        geometry, WindowPlan(550), 25.0, settings or LoopSettings(), options or EngineOptions(), weights, device, WORK
    )  # fmt: skip


@pytest.fixture
def alive(monkeypatch):
    """Numbers of host buffers that were alive whenever one more was made."""
    buffers, counts, pack = [], [], streaming._PackedBlock.__init__

    def counted(self, *arguments):
        pack(self, *arguments)
        buffers.append(weakref.ref(self.host))
        counts.append(sum(buffer() is not None for buffer in buffers))

    monkeypatch.setattr(streaming._PackedBlock, "__init__", counted)
    return counts


def test_no_block_is_in_host_memory_twice_while_more_or_fewer_stream(alive):
    model = tiny_transformer(num_layers=8)
    placed = Residency(model, "cpu")
    for count in (2, 4, 8, 3, 8):
        placed.place(count)
    assert max(alive) <= 8
    kept = {index: packed.host for index, packed in placed.streamer.packed.items()}
    placed.place(4)
    assert all(packed.host is kept[index] for index, packed in placed.streamer.packed.items())


def test_another_prefetch_is_taken():
    placed = Residency(tiny_transformer(num_layers=4), "cpu", prefetch=3)
    placed.place(4)
    assert placed.streamer.num_slots == 4
    placed.prefetch = 1
    placed.place(4)
    assert placed.streamer.num_slots == 2


def test_a_placement_that_fails_leaves_nothing_on_the_device(monkeypatch):
    placed = Residency(tiny_transformer(num_layers=4), "cpu")
    placed.place(1)

    def fails(*arguments):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(residency, "BlockStreamer", fails)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            placed.place(2)
    assert placed.num_streamed is None and placed.device_bytes == 0
    placed.place(2)
    assert placed.num_streamed == 2


@pytest.mark.parametrize("quarters", [1, 4])
def test_a_window_fails_only_when_every_block_streams(quarters, caplog):
    left = [True] * quarters

    def work():
        if left:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return "done"

    retry = OomRetry(0, make_fallbacks(lambda: bool(left) and left.pop(), lambda: False))
    assert retry.run(work) == "done" and len(caplog.messages) == quarters


@pytest.mark.parametrize("words", [CUDA_ERROR, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"])
def test_libraries_that_run_out_of_memory_begin_a_part_anew_too(words):
    failures = [RuntimeError(words)]
    retry = OomRetry(0, make_fallbacks(lambda: True))
    assert retry.run(lambda: "done" if not failures else (_ for _ in ()).throw(failures.pop())) == "done"
    with pytest.raises(RuntimeError, match="shapes"):
        retry.run(lambda: (_ for _ in ()).throw(RuntimeError("shapes do not fit")))
    assert not ran_out(MemoryError("out of memory"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried 2 GiB. If reserved but"), "--t5_cpu true"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "page file"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "page file"),
        (MemoryError(), "page file"),
    ],
)
def test_memory_that_runs_out_outside_of_windows_is_no_fault_of_the_program(error, words, capsys):
    def fails(arguments):
        raise error

    assert run(fails, []) == 2
    said = capsys.readouterr().err
    assert words in said and "fault of this program" not in said and "If reserved" not in said


def test_on_a_cpu_blocks_that_stream_are_in_host_memory_too():
    """auto takes 05_low_vram where there is no GPU."""
    whole, streams = (plan(Device(), EngineOptions(blocks_to_stream=count)).host_bytes for count in (0, 40))
    assert streams == whole + 2 * FP8.block_bytes
    assert whole > HOST_BASE + FP8.transformer_bytes


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("free_gb", [7.5, 9.5, 11.5, 15.5, 23.5])
def test_plans_of_presets_add_up_on_every_card(name, free_gb):
    preset = load_preset(name)
    weights = (
        FP8 if preset.options.quantize else replace(FP8, block_bytes=929_000_000, text_encoder_bytes=11_400_000_000)
    )
    card = Device("GPU", int(free_gb * GB))
    if (name, free_gb) == ("04_high_quality", 7.5):  # in bf16 two blocks take too much, and what is named helps
        with pytest.raises(InputError, match="Use a smaller size"):
            plan(card, preset.options, weights, preset.settings)
        assert plan(card, preset.options, weights, preset.settings, (640, 384))
        return
    made = plan(card, preset.options, weights, preset.settings)
    streamed = made.memory.num_streamed
    held = weights.other_bytes + weights.vae_bytes + (40 - streamed + min(streamed, 2)) * weights.block_bytes
    assert made.memory.device_bytes > held
    if made.memory.device_bytes > free_gb * GB:
        assert "more than is free there" in made.describe() and preset.options.blocks_to_stream >= 0
    encodes_here = preset.options.text_encoder_device == "cpu" or made.text_encoder_streams
    least = max(weights.transformer_bytes * (streamed > 0), weights.text_encoder_bytes * encodes_here)
    assert made.host_bytes == HOST_BASE + least


def test_a_prefetch_that_leaves_no_room_is_what_has_to_change():
    many = EngineOptions(blocks_to_stream=40, prefetch=40)
    with pytest.raises(InputError, match=r"Use a prefetch \(prefetch_blocks\) of 1\.$"):
        plan(Device("GPU", 12 * GB), many)
    assert plan(Device("GPU", 12 * GB), replace(many, prefetch=1))


def test_host_memory_that_will_not_do_names_the_model_that_is_too_large():
    small = replace(FP8, block_bytes=100_000_000, text_encoder_bytes=11_400_000_000)
    options = EngineOptions(blocks_to_stream=40, text_encoder_device="cpu")
    device = Device("GPU", 10 * GB, free_host_bytes=12 * GB)
    assert "Use a text encoder of fewer bits" in plan(device, options, small).describe()
    assert "Use a transformer of fewer bits" in plan(device, options).describe()


def test_pages_of_mapped_files_are_counted_once(tmp_path):
    size = 64 << 20
    (tmp_path / "weights").write_bytes(bytes(size))
    with (tmp_path / "weights").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = budget._own_bytes()
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        assert budget._own_bytes() - before < size // 4
    before = budget._own_bytes()
    # Fresh from the system: an allocator may have memory that this process holds already.
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(b"x" * size)
        assert budget._own_bytes() - before > size // 2


def test_a_card_without_bf16_is_told_to_use_fp16(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 2080 Ti")
    device = torch.device("cuda")
    with pytest.raises(UnsupportedError, match=r"RTX 2080 Ti \(compute capability 7\.5\).*--dtype fp16"):
        choose.__wrapped__("auto", device, torch.bfloat16, 128, 40)
    assert choose.__wrapped__("sdpa", device, torch.float16, 128, 40).name == "sdpa"


def test_what_an_encoder_that_streams_has_on_the_device_leaves_it(monkeypatch):
    """Else its host takes the whole encoder for being there, and finds room for it the next time."""
    model = torch.nn.ModuleDict(
        {"table": torch.nn.Embedding(8, 8), "block": torch.nn.ModuleList([torch.nn.Linear(8, 8)])}
    )
    table = model["table"].weight.data
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", lambda tensor, device: tensor.clone())
        with streamed(model, model["block"], "cpu"):
            assert model["table"].weight.data_ptr() != table.data_ptr()
    assert model["table"].weight.data_ptr() == table.data_ptr()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("quantize", [None, "fp4"])
def test_an_encoder_is_expected_to_take_what_it_takes_loaded(dtype, quantize):
    pipeline = TalkingVideoPipeline(jobs.official_files(), replace(jobs.OPTIONS, dtype=dtype, quantize=quantize))
    handle = pipeline.encoders.text
    kept = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    loaded = load_text_encoder(handle.checkpoint, dtype=kept, quantize=quantize and "fp8")
    assert handle.expected_bytes == module_bytes(loaded)


@pytest.mark.parametrize("streamed_at_the_end", [40, 30])
def test_a_window_that_was_begun_anew_teaches_no_time(streamed_at_the_end):
    engine = SimpleNamespace(
        host=SimpleNamespace(device=torch.device("cpu")), team=None, options=EngineOptions(),
        residency=SimpleNamespace(num_streamed=streamed_at_the_end),
    )  # fmt: skip
    outcome = Outcome(engine, plan(Device("GPU", 12 * GB), EngineOptions(blocks_to_stream=30)), LoopSettings())
    outcome._is_gpu = True
    assert outcome._is_typical() is (streamed_at_the_end == 30)


def test_quantized_matrices_outside_of_blocks_are_counted_as_they_are_held(tmp_path, monkeypatch):
    """Files of GGUF quantize the table of tokens too, which is multiplied out when it is loaded."""
    wide = lambda key, value: value.ndim == 2 and "pos_" not in key and not value.shape[1] % 32  # noqa: E731
    monkeypatch.setattr(quantized_files, "is_matrix", wide)
    base, adapter = recipes.transformer_state_dict(5), recipes.adapter_state_dict(5)
    quantized_files.write_gguf(tmp_path / "base.gguf", base, "Q8_0")
    quantized_files.write_gguf(tmp_path / "t5.gguf", recipes.t5_state_dict(5), "Q8_0")
    opened = open_checkpoint(tmp_path / "base.gguf", Kind.TRANSFORMER)
    sizes = model_sizes(ResolvedFiles(opened, open_checkpoint(adapter, Kind.ADAPTER)), torch.float32)
    model = load_transformer(opened, adapter, dtype=torch.float32)
    assert sizes.other_bytes == module_bytes(model) - module_bytes(model.blocks)
    encoder = load_text_encoder(tmp_path / "t5.gguf", dtype=torch.float32)
    assert text_encoder_bytes(tmp_path / "t5.gguf", torch.float32, None) == module_bytes(encoder)


def test_a_prompt_that_is_encoded_on_the_cpu_asks_nobody_to_make_room(monkeypatch):
    pipeline = TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)
    handle, tokenizer = pipeline.encoders.for_prompts()
    monkeypatch.setattr(handle.host, "place", lambda *arguments: pytest.fail("it takes no device memory"))
    assert len(encode_text(handle, tokenizer, ["She talks."], on_cpu=True)) == 1


@pytest.fixture
def vae(monkeypatch):
    """A tiny VAE of the nodes, and the room that was asked for whenever it was used."""
    path = next((jobs.comfy() / "vae").glob("*.safetensors"))
    (handle,) = node("WanVideoVAELoader").loadmodel(str(path), "fp32")
    asked, place = [], handle.host.place

    def counted(handle, place_it, num_bytes):
        asked.append(num_bytes)
        place(handle, place_it, num_bytes)

    monkeypatch.setattr(handle.host, "place", counted)
    return handle, asked


def test_nodes_ask_for_the_room_that_a_vae_works_in_and_go_on_in_tiles_without_it(vae, monkeypatch, caplog):
    handle, asked = vae
    kind, tried = type(handle.load()), []
    encode = kind.encode

    def fails_once(self, frames, tiling=None):
        tried.append(tiling)
        if len(tried) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return encode(self, frames, tiling=tiling)

    images = torch.rand(5, 48, 64, 3)
    asked.clear()
    (whole,) = node("WanVideoEncode").encode(handle, images)
    assert asked == [budget.vae_bytes(64, 48, 5, False, 4)]
    monkeypatch.setattr(kind, "encode", fails_once)
    (tiles,) = node("WanVideoEncode").encode(handle, images)
    assert tried[0] is None and tried[1] is not None and caplog.messages[-1].endswith("with a tiled VAE.")
    assert torch.allclose(tiles["samples"], whole["samples"], atol=1e-4)
    node("WanVideoDecode").decode(handle, whole)
    assert asked[-1] == budget.vae_bytes(64, 48, 5, False, 4)


@pytest.mark.parametrize("kind", ["right", "missing", "wrong"])
def test_eight_bit_products_are_used_only_where_they_are_right(kind, monkeypatch):
    """On Windows no build of PyTorch has fp8 products with a scale a row."""

    def product(rows, weight, row_scale, weight_scale, bias, out_dtype, use_fast_accum):
        if kind == "missing":
            raise RuntimeError("Rowwise scaling is not currently supported on your device")
        scale = row_scale * weight_scale if kind == "right" else row_scale
        return (rows.float() @ weight.float() * scale).to(out_dtype)

    monkeypatch.setattr(torch, "_scaled_mm", product)
    assert layer.multiplies_right(torch.float8_e4m3fn, torch.device("cpu")) is (kind == "right")


def test_eight_bit_integers_multiply_right_here():
    assert layer.multiplies_right(torch.int8, torch.device("cpu"))


def test_products_are_tried_once_and_only_on_cards_that_have_them(monkeypatch):
    tried = []
    monkeypatch.setattr(layer, "_MULTIPLIED", {})
    monkeypatch.setattr(layer, "multiplies_right", lambda *kind: tried.append(kind) or True)
    for capability, known in (((8, 6), False), ((8, 9), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        device = torch.device("cuda", capability[1])
        assert [layer.multiplies_rows(torch.float8_e4m3fn, device) for _ in range(2)] == [known] * 2
    assert len(tried) == 1
