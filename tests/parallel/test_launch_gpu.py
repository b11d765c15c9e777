"""One video of two GPUs: every way to split it gives the frames of one of them."""

import functools
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from support import media_files
from support.ranks import command, environment

from wanvideo.cli import generate
from wanvideo.cli.main import run
from wanvideo.ops.attention import backends
from wanvideo.parallel.launch import free_port

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices"),
]
SPLITS = {
    "passes": ("--parallel", "auto"), "heads": ("--ulysses_size", "2"), "keys": ("--ring_size", "2"),
    "shards": ("--ulysses_size", "2", "--dit_fsdp"),
}  # fmt: skip
EXACT = ("--dtype", "fp32", "--attention", "sdpa")
SHARED = [("--dtype", "bf16", "--attention", name) for name in ("hopper", "fp8")]


@functools.cache
def alone(numbers):
    folder = Path(tempfile.mkdtemp())
    assert run(generate.main, command(folder, "alone", "--device", "cuda:0", *numbers)[2:]) == 0
    return media_files.decoded_frames(folder / "alone.mp4").astype(int)


def together(folder, numbers, flags):
    arguments, port = command(folder, "two", "--device", "cuda", *numbers, *flags), free_port()
    ranks = [
        subprocess.Popen(
            arguments, env=environment(rank, 2, port), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return media_files.decoded_frames(folder / "two.mp4").astype(int), said[0]


def distance(one, other):
    """In levels of 255; encoding spreads one here and there."""
    assert one.shape == other.shape
    return abs(one - other).mean()


@pytest.mark.parametrize("split", SPLITS)
def test_in_float32(split, tmp_path):
    frames, _ = together(tmp_path, EXACT, SPLITS[split])
    assert distance(frames, alone(EXACT)) <= 0.25


@pytest.mark.parametrize("split", ["heads", "keys", "shards"])
@pytest.mark.parametrize("numbers", SHARED, ids=lambda numbers: numbers[3])
def test_with_the_attention_for_hopper(numbers, split, tmp_path):
    """Rounded elsewhere than one GPU does, and no worse."""
    reason = backends.refusal(numbers[3], torch.device("cuda", 0), torch.bfloat16, 128)
    if reason is not None:
        pytest.skip(f"this attention cannot be used here: {reason}")
    frames, said = together(tmp_path, numbers, SPLITS[split])
    assert "cannot be used here" not in said and "do not share memory" not in said
    assert distance(frames, alone(EXACT)) <= 1.25 * distance(alone(numbers), alone(EXACT))
