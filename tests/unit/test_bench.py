"""The bench command runs whole windows on any machine and says what it saw."""

import re

import pytest

from wanvideo.cli.bench import main
from wanvideo.cli.costs import minute_of_video


@pytest.mark.parametrize("flags", [[], ["--quant", "int8", "--blocks_to_swap", "1", "--tiled_vae", "--price", "2"]])
def test_bench_tiny(capsys, flags):
    assert main(["--size", "tiny", "--device", "cpu", "--dtype", "fp32", "--steps", "2", *flags]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"(first|later) window +\d+\.\d\d s", printed)) == 2
    assert re.search(r"a step +\d+\.\d\d s +\(median of 2\)", printed)
    assert bool(re.search(r"a minute +\d+\.\d\d +\(of video, at 2 an hour\)", printed)) is bool(flags)
    assert "96x64, 9 frames, 2 steps" in printed and "every frame is finite" in printed


def test_what_a_minute_of_video_costs():
    """72 new frames in 2.1 s on 4 GPUs: 20.8 windows, 43.75 s, so 175 seconds of a GPU."""
    assert minute_of_video(2.1, 72, 3.6, num_gpus=4) == pytest.approx(0.175)
