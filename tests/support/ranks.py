"""Ranks of a job as processes on this machine's CPU, which talk over gloo."""

import contextlib
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from support import jobs
from torch import multiprocessing

from wanvideo.parallel.launch import Place
from wanvideo.parallel.mesh import Mesh
from wanvideo.synthetic.models import SPEECH, WAN

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
LONGEST_S = 600  # of all ranks of a test, up to eight on two cores


def run_ranks(layout, work, *args):
    """`work(mesh, *args)` on as many ranks as the layout has, forked from here: what each of them returns."""
    with tempfile.TemporaryDirectory() as folder:
        start_ranks(layout.world, _rank, layout, work, args, folder)
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(layout.world)]


def start_ranks(world, work, *args):
    """`work(rank, *args)` in `world` processes, forked from here; waits for all of them."""
    with _left_alone():
        ranks = multiprocessing.start_processes(work, args, nprocs=world, start_method="fork", join=False)
        deadline = time.monotonic() + LONGEST_S
        while not ranks.join(timeout=1):
            if time.monotonic() > deadline:
                for process in ranks.processes:
                    process.kill()
                raise TimeoutError(f"{world} ranks did not end within {LONGEST_S} s")


@contextlib.contextmanager
def _left_alone():
    """Ranks must not collect what earlier tests left: a decoder that is freed would wait for threads it never had."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _rank(rank, layout, work, args, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=layout.world)
    with torch.no_grad():
        result = work(Mesh(layout, CPU), *args)
    torch.save(result, Path(folder) / str(rank))
    dist.barrier()
    dist.destroy_process_group()


def environment(rank, world, port):
    """What torchrun sets for a rank on this machine."""
    return {**os.environ, **Place(rank, world, rank).environment("127.0.0.1", port)}


def command(folder, name, *flags, steps="2"):
    """A command line of `generate` with two speakers and tiny models."""
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
