"""A batch on three real servers, one of which is killed in the middle; and workers of a server, which `/free` ends."""

import contextlib
import json
import threading
import time

import psutil
import pytest
from support import jobs, media_files
from support.comfy_client import ComfyClient
from support.comfy_models import api_template, shrink
from support.comfy_server import ComfyServer

from wanvideo.cli import batch
from wanvideo.cli.main import run
from wanvideo.fleet import comfy
from wanvideo.fleet.server import Server

pytestmark = pytest.mark.comfyui
PARTS = {
    "LoadImage": {"image": "$image"}, "LoadAudio": {"audio": "$audio1"}, "WanVideoSampler": {"seed": "$base_seed"},
    "WanVideoTextEncodeCached": {"positive_prompt": "$prompt"},
}  # fmt: skip


def graph_of():
    graph = shrink(api_template("01_talking_person"))
    for node in graph.values():
        node["inputs"] |= PARTS.get(node["class_type"], {})
    return graph


@pytest.fixture
def others(comfyui, server, tmp_path):
    """Two more servers beside the one of all tests, with its pack and models."""
    with contextlib.ExitStack() as stack:
        found = []
        for number in range(2):
            base = tmp_path / f"server {number}"
            base.mkdir()
            for name in ("models", "custom_nodes"):
                (base / name).symlink_to(getattr(server, name))
            found.append(ComfyServer(comfyui, base))
        starts = [threading.Thread(target=other.start) for other in found]
        for other, start in zip(found, starts, strict=True):
            stack.callback(other.stop)
            start.start()
        for start in starts:
            start.join()
        assert all(other.url and not other.import_errors() for other in found)
        yield found


def is_running(url, prompt):
    return any(prompt in item for item in ComfyClient(url).get("/queue")["queue_running"])


def test_three_servers_serve_a_batch_and_one_is_killed_in_the_middle(server, others, tmp_path, monkeypatch, capsys):
    victim, killed = others[0], []
    real = Server.has

    def has(asked, prompt):
        if asked.url == victim.url and not killed and is_running(victim.url, prompt):
            killed.append(prompt)
            victim.process.kill()
        return real(asked, prompt)

    monkeypatch.setattr(Server, "has", has)
    for name, seconds in (("POLL_S", 0.2), ("LOST_S", 2.0), ("AWAY_S", 1.0)):
        monkeypatch.setattr(comfy, name, seconds)
    job = {"cond_image": jobs.picture(tmp_path), "cond_audio": {"person1": jobs.speech(tmp_path, 1.0)}}
    lines = [{**job, "prompt": f"Job {n}.", "name": f"{n}", "flags": {"base_seed": n}} for n in range(4)]
    (tmp_path / "jobs.json").write_text(json.dumps(lines))
    (tmp_path / "graph.json").write_text(json.dumps(graph_of()))
    flags = ["--template", str(tmp_path / "graph.json"), "--out", str(tmp_path / "out"), "--json", "--server"]
    urls = [victim.url, others[1].url, server.url]
    assert run(batch.main, [str(tmp_path / "jobs.json"), "--engine", "comfy", *flags, *urls]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (retried,) = [event for event in events if event["event"] == "retried"]
    assert killed and retried["where"] == victim.url and "does not answer" in retried["note"]
    done = {event["job"]: event for event in events if event["event"] == "done"}
    assert len(done) == 4 and done[retried["job"]]["tries"] == 2
    assert {event["where"] for event in done.values()} == set(urls) - {victim.url}
    videos = [media_files.decoded_frames(tmp_path / "out" / f"{name}.mp4") for name in range(4)]
    assert {video.shape for video in videos} == {(25, 64, 96, 3)} and (videos[0] != videos[1]).any()


def workers_of(server):
    """Processes that sample for a server."""
    return [child for child in server.process.children() if "wanvideo.fleet.worker" in " ".join(child.cmdline())]


def test_workers_show_what_they_make_and_free_ends_them(server, client):
    graph = shrink(api_template("01_talking_person"))
    loader = next(name for name, node in graph.items() if node["class_type"] == "WanVideoModelLoader")
    sampler = next(node for node in graph.values() if node["class_type"] == "WanVideoSampler")
    graph["ranks"] = {
        "class_type": "WanVideoParallel",
        "inputs": {"model": [loader, 0], "gpus": 2, "ulysses_size": 2, "ring_size": 1, "shard": False},
    }
    sampler["inputs"] |= {"model": ["ranks", 0], "seed": 23}
    graph = {name: node for name, node in graph.items() if node["class_type"] != "SaveVideo"}
    graph["keep"] = {"class_type": "SaveVideo", "inputs": {
        "video": [next(name for name, node in graph.items() if node["class_type"] == "WanVideoTalkingVideo"), 0],
        "filename_prefix": "parallel", "format": "auto", "codec": "auto",
    }}  # fmt: skip
    done = client.run(graph)
    workers = workers_of(server)
    assert done.status == "success" and len(workers) == 2 and done.previews and any("step" in t for t in done.texts)
    client.free()
    _, left = psutil.wait_procs(workers, timeout=60)
    assert not left, "their memory is not given back"
    end = time.monotonic() + 30
    while workers_of(server):
        assert time.monotonic() < end
        time.sleep(0.1)
