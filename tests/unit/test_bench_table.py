"""`bench --table` prints each row when it is known, from parts that are measured once, and says what it derives."""

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from wanvideo.cli import bench_formats, bench_table, measure, measure_parts
from wanvideo.cli.bench import main
from wanvideo.cli.bench_formats import FormatBench, FormatRow, format_line
from wanvideo.cli.bench_table import in_order, preset_line, preset_row
from wanvideo.cli.measure import random_conditioning, sizes
from wanvideo.cli.measure_parts import WARM_BLOCKS, Parts
from wanvideo.errors import InputError, UnsupportedError
from wanvideo.geometry import VideoGeometry
from wanvideo.models.transformer import WanTransformer
from wanvideo.models.vae import VAEConfig, WanVAE
from wanvideo.presets import load_preset, preset_names
from wanvideo.sampling.codec import VideoCodec
from wanvideo.sampling.loop import run_windows
from wanvideo.synthetic.random_weights import random_transformer, random_vae

CPU = torch.device("cpu")


@pytest.fixture
def count(monkeypatch):
    """What was made and run; forwards of all blocks apart from those of a few."""
    counts = Counter()

    def counted(holder, name, key):
        function = getattr(holder, name)

        def run(*args, **options):
            counts[key(*args, **options)] += 1
            return function(*args, **options)

        monkeypatch.setattr(holder, name, run)

    def forward(model, *args):
        return "warm-ups" if len(args) > 5 and args[5] else f"forwards of {len(model.blocks)} blocks"

    counted(measure_parts, "random_transformer", lambda *args, **options: "models")
    counted(bench_formats, "random_transformer", lambda *args, **options: "models of few blocks")
    counted(measure_parts, "random_vae", lambda *args: "VAEs")
    counted(WanTransformer, "denoise", forward)
    for name in ("encode", "encode_start", "decode"):
        counted(VideoCodec, name, lambda *args, name=name: f"{name}s")
    return counts


@pytest.fixture
def three_blocks(monkeypatch):
    """Tiny models of one block more than a warm-up runs."""
    tiny = sizes()["tiny"]
    size = replace(tiny, transformer=replace(tiny.transformer, num_layers=WARM_BLOCKS + 1))
    monkeypatch.setattr(measure, "sizes", lambda: {"tiny": size})
    monkeypatch.setattr("wanvideo.cli.bench.sizes", lambda: {"tiny": size})
    monkeypatch.setattr(bench_formats, "NUM_BLOCKS", 2)
    return size


def test_the_table_and_what_it_costs(capsys, count, three_blocks):
    """Ten whole forwards, two models and one VAE are all that six presets take."""
    assert main(["--table", "--size", "tiny", "--device", "cpu", "--price", "2.5"]) == 0
    printed = capsys.readouterr().out
    for name in preset_names():
        assert re.search(rf"\| {name} \| \d+ x \d \| \d+\.\d\d s \| .* \| \d+:\d\d \| \d+\.\dx \| \d \|", printed)
    assert all(re.search(rf"\| {name} \| \d+\.\d \| .*% \| [01]\.\d+ \|", printed) for name in ("bf16", "fp8", "int8"))
    assert "| fp8, attention too | not on this device |" in printed and "cost at 2.5 an hour" in printed
    assert re.search(r"Derived: 30 s of video = 187 windows x .*186 of 5 frames", printed)
    formats = len(bench_formats.FORMATS)
    assert count == {
        "models": 2, "VAEs": 1, "warm-ups": 6, "forwards of 3 blocks": 1 + 1 + 2 + 3 + 2 + 1,
        "models of few blocks": formats, "forwards of 2 blocks": (formats - 1) * (1 + bench_formats.REPEATS),
        "encodes": 3 * 2, "encode_starts": 3, "decodes": 3 * 2,  # of 480p, its tiles and 720p, a short warm-up included
    }  # fmt: skip


def test_rows_come_when_they_are_known(monkeypatch, capsys):
    """A row is out before the next preset is begun, and one that does not fit stops no other."""
    printed = []

    def row(preset, size, parts):
        printed.append(capsys.readouterr().out)
        if preset.name == "06_720p_high_res":
            raise InputError("A window needs 30.0 GiB. Use a smaller size.")
        parts = bench_table.PartSeconds(1.0, 0.5)
        return bench_table.PresetRow(preset.name, 4, 1, parts, 60.0, 0, False, 0, True)

    monkeypatch.setattr(bench_table, "preset_row", row)
    assert bench_table.print_presets(sizes()["tiny"], CPU)
    order = [preset.name for preset in in_order([load_preset(name) for name in preset_names()])]
    assert order[0] == "04_high_quality" and order[1:3] == ["03_balanced", "06_720p_high_res"]
    assert "| preset |" in printed[0]
    for before, out in zip(order, printed[1:], strict=False):
        assert out.startswith(f"| {before} |") and out.count("\n") == 1
    assert "| 06_720p_high_res | does not fit: A window needs 30.0 GiB." in printed[3]


def whole_run_s(name, num_windows, clock):
    """Seconds of a video of a preset at the tiny size, its models made before."""
    size, preset = sizes()["tiny"], load_preset(name)
    geometry = VideoGeometry(96, 64, size.frames)
    settings = replace(preset.settings, window_frames=size.frames, motion_frames=size.motion)
    model = random_transformer(size.transformer, CPU, torch.bfloat16, preset.options.quantize)
    vae = random_vae(VAEConfig(size.vae_dim), CPU, torch.bfloat16)
    frames = size.frames + (num_windows - 1) * (size.frames - size.motion)
    conditioning, start = random_conditioning(size.transformer, geometry, frames), clock()
    with torch.no_grad():
        assert len(list(run_windows(model, vae, conditioning, settings, 1))) == num_windows
    return clock() - start


@pytest.mark.parametrize("name", ["01_ultra_fast", "05_low_vram"])
def test_what_is_derived_is_what_a_run_does(monkeypatch, name):
    """On a clock that only work moves: a forward by 40, the VAE by the frames that it is given."""
    now, denoise, encode, decode = [0.0], WanTransformer.denoise, WanVAE.encode, WanVAE.decode

    def moved(function, amount):
        def run(model, *args, **options):
            now[0] += amount(*args)
            return function(model, *args, **options)

        return run

    monkeypatch.setattr(WanTransformer, "denoise", moved(denoise, lambda *args: 40.0))
    monkeypatch.setattr(WanVAE, "encode", moved(encode, lambda frames, *_: 3.0 * frames.shape[1]))
    monkeypatch.setattr(WanVAE, "decode", moved(decode, lambda latents, *_: 7.0 * latents.shape[1]))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    preset = load_preset(name)
    row = preset_row(preset, sizes()["tiny"], Parts(sizes()["tiny"], CPU))
    assert row.num_streamed == 2 and row.is_tiled == (name == "05_low_vram")
    assert row.parts.of_video(3, row.steps) == pytest.approx(whole_run_s(name, 3, lambda: now[0]), abs=1e-6)


def test_derived_seconds_are_near_measured_ones(monkeypatch):
    """By the processor's own clock, which other processes do not move."""
    monkeypatch.setattr(measure.time, "perf_counter", measure.time.process_time)
    row = preset_row(load_preset("01_ultra_fast"), sizes()["tiny"], Parts(sizes()["tiny"], CPU))
    ratio = row.parts.of_video(2, row.steps) / whole_run_s("01_ultra_fast", 2, measure.time.process_time)
    assert 0.5 < ratio < 2


def test_a_row_as_it_is_written():
    parts = bench_table.PartSeconds(1.5, 0.6, 0.4, 0.04)
    row = bench_table.PresetRow("02_comfyui_equivalent", 4, 1, parts, 75.0, 30, True, 10 * 2**30, True)
    text = preset_line(row, 750.0, 2.4)
    assert text == "| 02_comfyui_equivalent | 4 x 1 | 1.50 s | 0.64 s in tiles | 1:15 | 10.0x | 30 | 10.0 GiB | 0.05 |"
    assert preset_line(replace(row, is_finite=False), None).endswith("| 1:15 |  | 30 | 10.0 GiB | not finite")


def test_formats_say_what_they_lose():
    bench = FormatBench(sizes()["tiny"], CPU)
    rows = [bench.row(storage, "auto") for storage in ("bf16", "fp8", "int8", "fp4")]
    assert rows[0].error == 0 and rows[0].bits == pytest.approx(16, abs=0.5)
    assert 0 < rows[2].error < rows[1].error < rows[3].error < 0.2
    assert all(row.cosine > 0.98 for row in rows) and rows[3].bits < 5.5 < rows[1].bits < 9
    slow = FormatRow("int8", 8, 0.01, 0.9999, 2.0, True)
    assert "0.50x: no gain in speed on this device" in format_line(slow, 1.0)
    assert "no gain" not in format_line(replace(slow, seconds=0.5), 1.0)


def test_full_size_on_a_cpu_is_refused():
    with pytest.raises(UnsupportedError, match="--table needs a GPU"):
        main(["--table", "--device", "cpu"])
