"""A rank that dies under torchrun: all of them start anew and the video goes on at its first missing window."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from support import media_files
from support.ranks import command

from wanvideo.runs.manifest import NAME, Manifest

PATIENCE_S = 300.0


def launched(folder, name, seed):
    """Two ranks under torchrun, which starts them anew once."""
    flags = ("--ulysses_size", "2", "--resume", "auto", "--base_seed", seed)
    arguments = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--max-restarts=1", "--standalone",
        "--monitor-interval=0.2", *command(folder, name, *flags, steps="20")[1:],
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": ""}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def ranks_of(launcher):
    """Processes of the ranks, by their numbers."""
    found = {}
    for child in psutil.Process(launcher.pid).children():
        with contextlib.suppress(psutil.Error):  # one that has just ended
            if number := child.environ().get("LOCAL_RANK"):
                found[int(number)] = child.pid
    return found


def ended(launcher):
    """What it has said, and its ranks, when it has been ended."""
    launcher.terminate()
    return launcher.communicate()[0]


def windows_of(folder):
    return Manifest.read(folder).progress.num_windows if (folder / NAME).is_file() else 0


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun's agent and signals are those of Unix")
def test_a_killed_rank_is_started_anew_and_the_run_goes_on(tmp_path):
    launcher = launched(tmp_path, "elastic", "-1")
    end, folder, ranks = time.monotonic() + PATIENCE_S, tmp_path / "elastic.run", {}
    try:
        while windows_of(folder) < 1:
            assert launcher.poll() is None and time.monotonic() < end, ended(launcher)[-3000:]
            ranks = ranks if 1 in ranks else ranks_of(launcher)  # known before its moment comes
            time.sleep(0.02)
        os.kill(ranks[1], signal.SIGKILL)
        log, _ = launcher.communicate(timeout=PATIENCE_S)
    finally:
        ended(launcher)
    assert launcher.returncode == 0, log[-9000:]
    assert "goes on: " in log and "1 of 2 windows are there" in log, log[-3000:]
    assert str(tmp_path / "elastic.mp4") in log
    seed = str(Manifest.read(folder).seed)
    assert log.count(f"The seed is {seed};") == 2, "that of the first start is taken up"
    undisturbed = launched(tmp_path, "whole", seed)
    try:
        log, _ = undisturbed.communicate(timeout=PATIENCE_S)
    finally:
        ended(undisturbed)
    assert undisturbed.returncode == 0, log[-9000:]
    whole, elastic = (media_files.decoded_frames(tmp_path / f"{name}.mp4") for name in ("whole", "elastic"))
    assert np.array_equal(whole, elastic)
