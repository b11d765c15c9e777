"""The program under a launcher: one video of several processes, and what is left when one of them is killed."""

import contextlib
import signal
import socket
import subprocess
import sys

import pytest
import torch.distributed as dist
from support import media_files
from support.ranks import command, environment

from wanvideo.cli import generate
from wanvideo.cli.main import run
from wanvideo.parallel.launch import Place, _store_of_this_machine, free_port

PATIENCE_S = 300.0  # an exchange with a rank that is gone would wait for half an hour


@contextlib.contextmanager
def started(world, arguments):
    """The processes of the ranks, none of which is left behind."""
    port = free_port()
    ranks = [
        subprocess.Popen(
            arguments, env=environment(rank, world, port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(world)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one address of the loopback")
def test_ranks_of_one_machine_meet_where_no_other_machine_reaches():
    port = free_port()
    store = _store_of_this_machine(Place(0, 1, 0), port)
    store.set("beat/0", "1 0")
    assert dist.TCPStore("127.0.0.1", port, is_master=False).get("beat/0") == b"1 0"
    socket.create_server(("127.0.0.2", port)).close()  # which is taken where somebody listens at every address


def test_two_processes_make_the_video_of_one(tmp_path):
    """Frames are compared after encoding, which spreads a level here and there; test_engine.py has them before."""
    assert run(generate.main, command(tmp_path, "alone")[2:]) == 0
    with started(2, command(tmp_path, "two", "--parallel", "auto", "--dit_fsdp")) as ranks:
        done = [(rank.communicate(timeout=PATIENCE_S), rank.returncode) for rank in ranks]
    assert [code for _, code in done] == [0, 0], done
    (out, log), (other_out, _) = done[0][0], done[1][0]
    assert out.strip() == str(tmp_path / "two.mp4") and not other_out
    assert "2 GPUs: 2 passes, since the 2 passes of a step are independent" in log
    one, two = (media_files.decoded_frames(tmp_path / f"{name}.mp4").astype(int) for name in ("alone", "two"))
    assert one.shape == two.shape and abs(one - two).mean() <= 0.25


def test_killing_a_rank_ends_the_others_soon_and_says_so(tmp_path):
    with started(2, command(tmp_path, "killed", "--ulysses_size", "2", steps="400")) as ranks:
        for line in ranks[0].stderr:
            if "Loaded" in line and "VAE" in line:
                break
        ranks[1].send_signal(signal.SIGKILL)
        _, log = ranks[0].communicate(timeout=PATIENCE_S)
    assert ranks[0].returncode != 0
    assert "lost another rank" in log or "rank 1" in log, log[-2000:]
    assert "start the same command again" in log
