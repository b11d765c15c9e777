"""The bench command runs whole windows on any machine and says what it saw."""

import re

import pytest

from wanvideo.cli.bench import main


@pytest.mark.parametrize("flags", [[], ["--quant", "int8", "--blocks_to_swap", "1", "--tiled_vae"]])
def test_bench_tiny(capsys, flags):
    assert main(["--size", "tiny", "--device", "cpu", "--dtype", "fp32", "--steps", "2", *flags]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"(first|later) window +\d+\.\d\d s", printed)) == 2
    assert re.search(r"a step +\d+\.\d\d s +\(median of 2\)", printed)
    assert "96x64, 9 frames, 2 steps" in printed and "every frame is finite" in printed
