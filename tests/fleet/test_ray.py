"""Jobs on a Ray cluster: one sentence where Ray is missing; with it, a local cluster that loses an actor."""

import json
import os
import signal
from importlib.util import find_spec

import pytest
from support import jobs, media_files
from support.fleet_flags import SMALL, job_file, model_flags

from wanvideo.cli import batch
from wanvideo.cli.main import run
from wanvideo.errors import UnsupportedError
from wanvideo.fleet import ray as engine


def test_without_ray_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="pip install ray"):
        engine.ray_places(None, 1, 2)


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray, an optional package of 79 MB, is not installed")
def test_a_local_cluster_does_the_jobs_and_makes_a_dead_actor_anew(tmp_path, capsys, monkeypatch):
    jobs.official()
    killed = []
    real = engine.RayPlace.run

    def murderous(place, work, on_step, on_line):
        def step(report):
            on_step(report)
            if not killed:
                killed.append(work.name)
                os.kill(place._ray.get(place._actor.process.remote()), signal.SIGKILL)

        return real(place, work, step, on_line)

    monkeypatch.setattr(engine.RayPlace, "run", murderous)
    path = job_file(tmp_path, *({"name": name, "flags": {"base_seed": n}} for n, name in enumerate("abcdef")))
    flags = ["--engine", "ray", "--workers", "2", "--json", "--out", str(tmp_path), *model_flags(), *SMALL]
    assert run(batch.main, [path, *flags]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1] == {"event": "end", "done": 6, "jobs": 6}
    assert [event["job"] for event in events if event["event"] == "retried"] == killed
    assert {event["where"] for event in events if event["event"] == "done"} == {"actor 1", "actor 2"}
    assert all(len(media_files.decoded_frames(tmp_path / f"{name}.mp4")) == 25 for name in "abcdef")
