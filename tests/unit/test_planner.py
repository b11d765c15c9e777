"""Plans made before anything is loaded: sizes from headers, blocks and tiles by memory, times of measured GPUs only."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from wanvideo import TalkingVideoPipeline
from wanvideo.checkpoints.load import load_text_encoder, load_transformer, load_vae
from wanvideo.checkpoints.quantize import TEXT_ENCODER_FORMATS
from wanvideo.cli import plan as command
from wanvideo.cli.demo import demo_files, demo_request
from wanvideo.engine.files import resolve
from wanvideo.engine.sizes import model_sizes
from wanvideo.errors import InputError, OutputError
from wanvideo.geometry import SHORTEST_WINDOW, VideoGeometry, WindowPlan
from wanvideo.lora.apply import apply_loras
from wanvideo.lora.use import LoraUse
from wanvideo.memory.hooked import HookedBlocks, streaming
from wanvideo.memory.planner import Device, ModelWeights, Work, plan_run, prefers_shards
from wanvideo.memory.residency import Residency, module_bytes
from wanvideo.memory.speed import forward_flops, speeds_of
from wanvideo.memory.streaming import BlockStreamer
from wanvideo.presets import load_preset, preset_names
from wanvideo.request import EngineOptions, LoopSettings, StepCache
from wanvideo.synthetic.models import make_models

GB = 10**9
FP8 = ModelWeights(40, 465_000_000, 660_000_000, 5120, 13824, 32, "fp8", 254_000_000, 11_400_000_000)
BF16 = replace(FP8, block_bytes=929_000_000, stored="bf16")
WORK = Work(num_steps=4, num_passes=1, num_speakers=1, num_texts=1, num_speeches=1, num_references=1)
SIZES = {"infinitetalk-480": (832, 480), "infinitetalk-720": (1280, 704)}


def plan(free_gb, weights=FP8, size=(832, 480), settings=None, options=None, work=WORK, name="", frames=550):
    settings, options = settings or LoopSettings(), options or EngineOptions()
    geometry = VideoGeometry(*size, settings.window_frames)
    device = Device(name, int(free_gb * GB), "flash_attn_3")
    return plan_run(geometry, WindowPlan(frames), 25.0, settings, options, weights, device, work)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, "tiny", "official")
    return folder


def files_of(folder):
    (folder / "InfiniteTalk").mkdir(exist_ok=True)
    return demo_files(folder)


@pytest.mark.parametrize("quantize", [None, "fp8", "int8", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_sizes_are_what_is_loaded(folder, quantize, dtype):
    files = resolve(files_of(folder))
    weights = model_sizes(files, dtype, quantize)
    model = load_transformer(files.transformer, files.adapter, dtype=dtype, quantize=quantize)
    blocks = [module_bytes(block) for block in model.blocks]
    assert (weights.num_blocks, weights.block_bytes) == (len(blocks), max(blocks))
    assert weights.other_bytes == module_bytes(model) - sum(blocks)
    assert (weights.dim, weights.ffn_dim) == (model.config.dim, model.config.ffn_dim)
    assert weights.stored == (quantize or {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype])
    assert weights.vae_bytes == module_bytes(load_vae(files.vae, dtype=dtype))
    text_format = TEXT_ENCODER_FORMATS.get(quantize, quantize)
    encoder = load_text_encoder(files.text_encoder, dtype=dtype, quantize=text_format)
    assert weights.text_encoder_bytes == module_bytes(encoder)


@pytest.mark.parametrize("strength", [0.0, -0.5, (1.0, 0.5)])
@pytest.mark.parametrize("quantize", [None, "fp8"])
def test_loras_that_stay_beside_matrices_count(folder, quantize, strength):
    files, query, first = resolve(files_of(folder)), "blocks.1.self_attn.q", "blocks.1.ffn.0"
    tensors = {
        f"{query}.lora_down.weight": (4, 256), f"{query}.lora_up.weight": (256, 4), f"{first}.diff": (384, 256),
        **{f"blocks.1.self_attn.k.hada_w{number}_a": (256, 2) for number in "12"},
        **{f"blocks.1.self_attn.k.hada_w{number}_b": (2, 256) for number in "12"},
        "blocks.1.self_attn.v.lokr_w1": (4, 4), "blocks.1.self_attn.v.lokr_w2": (64, 64), "head.head.diff": (64, 256),
        "time_embedding.2.lora_down.weight": (4, 256), "time_embedding.2.lora_up.weight": (256, 4),
    }  # fmt: skip
    use = LoraUse({name: torch.zeros(shape) for name, shape in tensors.items()}, strength)
    model = load_transformer(files.transformer, files.adapter, dtype=torch.bfloat16, quantize=quantize)
    apply_loras(model, [use])
    weights = model_sizes(replace(files, loras=(use,)), torch.bfloat16, quantize)
    tables = sum(value.numel() * 4 for name, value in model.named_buffers() if name.endswith("lora.table"))
    blocks = [module_bytes(block) for block in model.blocks]
    assert 0 <= max(blocks) - weights.block_bytes <= tables
    assert 0 <= module_bytes(model) - sum(blocks) - weights.other_bytes <= tables


@pytest.mark.parametrize("name", preset_names())
def test_presets_fit_their_stated_memory(name):
    preset = load_preset(name)
    scales = preset.settings.guidance_scale != 1, preset.settings.audio_guidance_scale != 1
    work = replace(WORK, num_passes=1 + sum(scales), num_texts=1 + scales[0], num_speeches=1 + scales[1])
    weights = FP8 if preset.options.quantize else BF16
    made = plan(preset.memory_gb, weights, SIZES[preset.size], preset.settings, preset.options, work)
    assert made.memory.device_bytes <= preset.memory_gb * GB
    if preset.options.blocks_to_stream >= 0:
        assert made.memory.num_streamed == preset.options.blocks_to_stream


@pytest.mark.parametrize("weights", [FP8, BF16])
@pytest.mark.parametrize(("free", "size"), [(8, (832, 480)), (12, (832, 480)), (16, (1280, 720)), (24, (1280, 720))])
def test_small_cards_stream_and_tile(weights, free, size):
    made = plan(free, weights, size)
    assert made.memory.device_bytes <= free * GB and made.memory.num_streamed > 0
    assert made.text_encoder_streams == (free < 13)


def test_a_large_card_holds_everything():
    made = plan(140, BF16)
    assert made.memory.num_streamed == 0 and not made.tiled_vae and not made.text_encoder_streams


def test_streaming_comes_before_tiling():
    """Blocks that stream cost next to nothing, tiles cost time."""
    assert not plan(12).tiled_vae and plan(12).memory.num_streamed > 20
    assert plan(7).tiled_vae


def test_wishes_are_kept():
    assert plan(140, options=EngineOptions(blocks_to_stream=13)).memory.num_streamed == 13
    assert plan(140, options=EngineOptions(vae_tiling=True)).tiled_vae
    assert plan(140, settings=LoopSettings(tiled_vae=True)).tiled_vae
    with pytest.raises(InputError, match="Use a smaller size, a shorter window or tiled_vae."):
        plan(7, options=EngineOptions(vae_tiling=False))


def test_what_cannot_fit_is_refused():
    with pytest.raises(InputError, match="every block streaming.* Use a smaller size or a shorter window.$"):
        plan(3)
    with pytest.raises(InputError, match="Use a smaller size.$"):
        plan(1, settings=LoopSettings(window_frames=SHORTEST_WINDOW, motion_frames=1))


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        (None, EngineOptions(blocks_to_stream=40)),  # as 05_low_vram and --num_persistent_param_in_dit 0 have it
        (None, EngineOptions(blocks_to_stream=0)),
        (LoopSettings(tiled_vae=True), EngineOptions(blocks_to_stream=40)),
    ],
)
def test_what_cannot_fit_is_refused_whatever_streams(settings, options):
    with pytest.raises(InputError, match="every block streaming"):
        plan(3, settings=settings, options=options)


def test_a_wish_that_does_not_fit_is_said_with_what_helps():
    said = plan(12, options=EngineOptions(blocks_to_stream=5)).describe()
    assert "more than is free there" in said and "blocks_to_swap" in said
    for fits in (plan(12), plan(12, options=EngineOptions(blocks_to_stream=40))):
        assert "more than is free" not in fits.describe()


@pytest.mark.parametrize("free_bytes", [None, 24 * GB])
def test_host_memory_that_will_not_do_is_said_before_the_system_ends_the_process(free_bytes):
    def told(host_gb):
        device = Device("", free_bytes, free_host_bytes=host_gb * GB)
        geometry, windows = VideoGeometry(832, 480, 81), WindowPlan(550)
        options = EngineOptions(blocks_to_stream=30)
        return plan_run(geometry, windows, 25.0, LoopSettings(), options, BF16, device, WORK).describe()

    assert "Only 18.6 GiB of host memory are free" in told(20) and "137" in told(20)
    assert "Only" not in told(128)


def test_a_step_cache_takes_memory():
    plain, cached, offloaded = (
        plan(140, settings=LoopSettings(step_cache=cache, tiled_vae=True)).memory.device_bytes
        for cache in (None, StepCache(), StepCache(offload=True))
    )
    assert plain == offloaded < cached


def test_flops_are_those_of_the_model():
    """832x480x81: the matrices' 920 TFLOP and full attention's 879."""
    flops = forward_flops(32760, 5120, 13824, 40)
    assert flops.matmul == pytest.approx(920.6e12, rel=1e-3)
    assert flops.attention == pytest.approx(890e12, rel=2e-2)
    assert forward_flops(32760, 5120, 13824, 40, num_speakers=0).matmul == pytest.approx(783.2e12, rel=1e-3)


@pytest.mark.parametrize(
    ("weights", "attention", "seconds"),
    [
        ("bf16", "flash_attn_3", 2.590),
        ("fp8", "flash_attn_3", 2.106),
        ("fp8", "fp8", 1.595),
        ("bf16", "hopper", 2.629),
        ("fp8", "hopper", 2.107),
        ("int8", "flash_attn_3", 2.583),
        ("fp4", "flash_attn_3", 2.764),
    ],
)
def test_times_are_the_measured_ones(weights, attention, seconds):
    flops, speeds = forward_flops(32760, 5120, 13824, 40), speeds_of("NVIDIA H200")
    assert speeds.forward_seconds(flops, weights, attention) == pytest.approx(seconds, rel=0.02)


def test_unknown_gpus_have_no_time():
    assert speeds_of("NVIDIA GeForce RTX 9999") is None
    assert speeds_of("NVIDIA H200").forward_seconds(forward_flops(1, 128, 128, 1), "Q4_K", "sdpa") is None
    made = plan(140, name="NVIDIA GeForce RTX 9999")
    assert made.total_seconds is None and "not known" in made.describe()


def test_the_time_of_a_video():
    made = plan(140, name="NVIDIA H200")
    assert made.step_seconds == pytest.approx(2.15, rel=0.02)
    per_window = 4 * made.step_seconds + 81 * 832 * 480 / 56.1e6
    assert made.total_seconds == pytest.approx(8 * per_window + (81 + 7 * 9) * 832 * 480 / 87e6, rel=0.01)
    assert "8 windows of 4 steps, one pass a step" in made.describe()
    slow = plan(140, name="NVIDIA H200", options=EngineOptions(blocks_to_stream=40))
    assert slow.step_seconds == made.step_seconds  # 18.6 GB arrive while 2 s are computed


def test_the_pipeline_plans_without_loading(folder):
    pipeline = TalkingVideoPipeline(files_of(folder), EngineOptions(device="cpu", dtype="fp32"))
    made = pipeline.plan(demo_request())
    assert "transformer" not in vars(pipeline) and made.memory.num_streamed == 0
    assert "On the CPU" in made.describe()
    assert pipeline.plan(demo_request(), Device("H200", 2 * GB)).memory.device_bytes < 2 * GB


def test_the_command(folder, tmp_path, capsys):
    request = demo_request()
    job = {"prompt": "x", "cond_video": request.reference, "cond_audio": {"person1": request.speakers[0].audio}}
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    files = files_of(folder)
    flags = ["--input_json", str(path), "--ckpt_dir", files.transformer, "--infinitetalk_dir", files.adapter]
    flags += ["--wav2vec_dir", files.wav2vec, "--size", "256x144", "--mode", "streaming", "--sample_steps", "4"]
    assert command.main(["--memory_gb", "24", "--gpu", "H200", "--preview", str(tmp_path / "look.png"), *flags]) == 0
    printed = capsys.readouterr().out
    assert "3 windows of 4 steps, 3 passes a step" in printed and "On H200 with 22.4 GiB free" in printed
    assert "s a step" in printed
    assert not list(Path(tmp_path).glob("*.mp4"))
    assert Image.open(tmp_path / "look.png").width >= 640 and "look.png" in printed
    with pytest.raises(OutputError, match="look.png exists and is left as it is. Name another place with --preview"):
        command.main(["--preview", str(tmp_path / "look.png"), *flags])


def test_a_video_of_unknown_length_has_a_plan_without_an_end():
    known, live = (plan(80, name="NVIDIA H200", frames=frames) for frames in (550, None))
    assert live.memory == known.memory and live.step_seconds == known.step_seconds
    assert live.total_seconds is None
    assert "832x480, of unknown length: windows of 4 steps" in live.describe() and "s a step." in live.describe()


class Stack(nn.Module):
    """A model of another library: it runs its blocks itself."""

    def __init__(self, count=5):
        super().__init__()
        self.first, self.block = nn.Linear(8, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(count))

    def forward(self, x):
        x = self.first(x)
        for block in self.block:
            x = block(x).relu()
        return x


@pytest.mark.parametrize("num_streamed", [0, 2, 5])
def test_hooks_bring_each_block_in_its_time(num_streamed):
    model, x = Stack().requires_grad_(False), torch.randn(3, 8)
    expected = model(x)
    streamer = BlockStreamer(model.block, torch.device("cpu"), num_streamed)
    hooked = HookedBlocks(model.block, streamer)
    for _ in range(3):
        assert torch.equal(model(x), expected)
    with pytest.raises(RuntimeError):
        model(torch.randn(3, 9))
    assert torch.equal(model(x), expected)
    hooked.close()
    assert not any(block._forward_pre_hooks for block in model.block) and torch.equal(model(x), expected)


def test_a_text_encoder_streams_to_the_same_result(folder):
    files = resolve(files_of(folder))
    encoder = load_text_encoder(files.text_encoder, dtype=torch.float32)
    ids = torch.arange(1, 12)[None]
    expected = encoder.encode(ids, torch.ones_like(ids))[0]
    with streaming(encoder, encoder.encoder.block, "cpu"):
        assert torch.equal(encoder.encode(ids, torch.ones_like(ids))[0], expected)


def test_a_run_streams_what_is_asked_for(folder):
    """Blocks that stream change nothing; the run's placement is the plan's."""
    settings = replace(demo_request().settings, window_frames=5, motion_frames=1)
    request = replace(demo_request(), max_frames=5, size=(96, 64), settings=settings)
    frames = []
    for streamed in (0, 2):
        options = EngineOptions(device="cpu", dtype="fp32", blocks_to_stream=streamed)
        pipeline = TalkingVideoPipeline(files_of(folder), options)
        frames.append(torch.cat([window.frames for window in pipeline.run(request)]))
        assert isinstance(pipeline.engine.residency, Residency) and pipeline.engine.residency.num_streamed == streamed
    assert torch.equal(*frames)


@pytest.mark.parametrize(("free_gb", "shards"), [(80, False), (40, True), (24, True), (2, False)])
def test_ranks_shard_what_would_have_to_stream(free_gb, shards):
    assert prefers_shards(lambda weights: plan(free_gb, weights), BF16, 4) is shards
    assert not prefers_shards(lambda weights: plan(free_gb, weights), BF16, 1)
    assert BF16.sharded(4).block_bytes == -(-BF16.block_bytes // 4)
