"""The program under a launcher: one video of several processes, and what is left when one of them is killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from support import jobs, media_files
from support.ranks import environment, free_port

from wanvideo.cli import generate
from wanvideo.cli.main import run
from wanvideo.synthetic.models import SPEECH, WAN

ROOT = Path(__file__).resolve().parents[2]


def command(folder, name, *flags, steps="2"):
    models = jobs.official()
    job = {
        "prompt": "Someone speaks.", "audio_type": "para", "cond_video": jobs.picture(folder),
        "cond_audio": {"person1": jobs.speech(folder, 0.8), "person2": jobs.speech(folder, 0.8, "other.wav")},
    }  # fmt: skip
    path = Path(folder) / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    return [
        sys.executable, str(ROOT / "generate_infinitetalk.py"), "--ckpt_dir", str(models / WAN),
        "--wav2vec_dir", str(models / SPEECH), "--input_json", str(path), "--save_file", str(Path(folder) / name),
        "--infinitetalk_dir", str(models / "InfiniteTalk" / "multi" / "infinitetalk.safetensors"),
        "--device", "cpu", "--dtype", "fp32", "--size", "48x48", "--frame_num", "13", "--motion_frame", "5",
        "--mode", "streaming", "--scheduler", "euler", "--sample_steps", steps, "--sample_shift", "7",
        "--sample_audio_guide_scale", "1.0", *flags,
    ]  # fmt: skip


def start(world, arguments):
    port = free_port()
    return [
        subprocess.Popen(
            arguments, env=environment(rank, world, port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(world)
    ]


def test_two_processes_make_the_video_of_one(tmp_path):
    """Frames are compared after encoding, which spreads a level here and there; test_engine.py has them before."""
    assert run(generate.main, command(tmp_path, "alone")[2:]) == 0
    ranks = start(2, command(tmp_path, "two", "--parallel", "auto", "--dit_fsdp"))
    done = [(rank.communicate(timeout=120), rank.returncode) for rank in ranks]
    assert [code for _, code in done] == [0, 0], done
    (out, log), (other_out, _) = done[0][0], done[1][0]
    assert out.strip() == str(tmp_path / "two.mp4") and not other_out
    assert "2 GPUs: 2 passes, since the 2 passes of a step are independent" in log
    one, two = (media_files.decoded_frames(tmp_path / f"{name}.mp4").astype(int) for name in ("alone", "two"))
    assert one.shape == two.shape and abs(one - two).mean() <= 0.25


def test_killing_a_rank_ends_the_others_soon_and_says_so(tmp_path):
    ranks = start(2, command(tmp_path, "killed", "--ulysses_size", "2", steps="400"))
    for line in ranks[0].stderr:
        if "Loaded" in line and "VAE" in line:
            break
    ranks[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    _, log = ranks[0].communicate(timeout=60)
    assert time.monotonic() - began < 30 and ranks[0].returncode != 0
    assert "lost another rank" in log or "rank 1" in log, log[-2000:]
    assert "start the same command again" in log
