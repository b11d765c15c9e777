"""The bench command runs whole windows on any machine and says what it saw."""

import re
from dataclasses import replace

import pytest
import torch

from wanvideo.cli import bench_table
from wanvideo.cli.bench import main
from wanvideo.cli.costs import minute_of_video
from wanvideo.cli.measure import sizes
from wanvideo.errors import UnsupportedError
from wanvideo.presets import load_preset


@pytest.mark.parametrize("flags", [[], ["--quant", "int8", "--blocks_to_swap", "1", "--tiled_vae", "--price", "2"]])
def test_bench_tiny(capsys, flags):
    assert main(["--size", "tiny", "--device", "cpu", "--dtype", "fp32", "--steps", "2", *flags]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"(first|later) window +\d+\.\d\d s", printed)) == 2
    assert re.search(r"a step +\d+\.\d\d s +\(median of 2\)", printed)
    assert bool(re.search(r"a minute +\d+\.\d\d +\(of video, at 2 an hour\)", printed)) is bool(flags)
    assert "96x64, 9 frames, 2 steps" in printed and "every frame is finite" in printed


@pytest.mark.parametrize("name", ["04_high_quality", "05_low_vram"])
def test_presets_are_measured_and_written_as_a_table(name):
    preset = load_preset(name)
    row = bench_table.preset_row(preset, sizes()["tiny"], torch.device("cpu"))
    assert row.steps == preset.settings.steps and row.seconds > 0
    assert row.passes == (3 if name == "04_high_quality" else 2)
    assert row.num_streamed == (2 if name == "05_low_vram" else 0)
    text = bench_table.preset_table([row])
    assert re.search(rf"{name} \| {row.steps} x {row.passes} \| \d+:\d\d \| 1.0x \|", text)
    priced = bench_table.preset_table([replace(row, seconds=1800.0)], price=2.5)
    assert "cost at 2.5 an hour |" in priced and priced.endswith("| 1.25 |") and len(text.splitlines()) == 3


def test_what_a_minute_of_video_costs():
    """72 new frames in 2.1 s on 4 GPUs: 20.8 windows, 43.75 s, so 175 seconds of a GPU."""
    assert minute_of_video(2.1, 72, 3.6, num_gpus=4) == pytest.approx(0.175)


def test_formats_say_what_they_lose():
    rows = [bench_table.format_row(to, 64, 256, 128, torch.device("cpu")) for to in (None, "fp8", "int8", "fp4")]
    assert rows[0].error == 0 and rows[0].bits == pytest.approx(16, abs=0.5)
    assert 0 < rows[2].error < rows[1].error < rows[3].error < 0.2
    assert all(row.cosine > 0.98 for row in rows) and rows[3].bits < 5 < rows[1].bits < 9
    slow = [rows[0], bench_table.FormatRow("int8", 8, 0.01, 0.9999, 2 * rows[0].seconds)]
    assert "no gain in speed on this device" in bench_table.format_table(slow)


def test_the_table_needs_a_gpu():
    with pytest.raises(UnsupportedError, match="--table needs a GPU"):
        main(["--table", "--device", "cpu"])
