"""A template as it is queued, the command that `export` writes of it, and the graph that `import` writes of that
command make the same frames to the bit."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from support import jobs
from support.comfy_models import api_template, shrink

from wanvideo import TalkingVideoPipeline
from wanvideo.cli.export import export
from wanvideo.cli.generate import read_job
from wanvideo.cli.graphs import read_graph
from wanvideo.cli.import_ import main as import_main

pytestmark = pytest.mark.comfyui
NUM_FRAMES = 40  # two windows


def kept(client, server, graph, name):
    """The frames that a graph makes in ComfyUI."""
    graph = json.loads(json.dumps(graph))
    ids = {node["class_type"]: number for number, node in graph.items()}
    graph["images"] = {
        "class_type": "WanVideoPassImagesFromSamples",
        "inputs": {"samples": [ids["WanVideoSampler"], 0]},
    }
    graph["keep"] = {"class_type": "KeepFrames", "inputs": {"images": ["images", 0], "name": name}}
    for kind in ("SaveVideo", "WanVideoTalkingVideo"):
        graph.pop(ids.get(kind, ""), None)
    client.run(graph)
    return torch.from_numpy(np.load(server.base / "output" / f"{name}.npy"))


@pytest.mark.parametrize("name", ["01_talking_person", "05_12gb_card"])
def test_frames_are_the_same_both_ways(server, client, tmp_path, name):
    picture = jobs.picture(server.base / "input", 200, 150, "exported.png")
    sound = jobs.speech(server.base / "input", NUM_FRAMES / 25, "exported.wav")
    graph = shrink(api_template(name))
    (loader,) = [node["inputs"] for node in graph.values() if node["class_type"] == "WanVideoModelLoader"]
    for node in graph.values():
        if node["class_type"] == "WanVideoTextEncodeCached":
            node["inputs"]["quantization"] = loader["quantization"]  # --quant holds for both, which `export` says
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = Path(picture).name
        if node["class_type"] == "LoadAudio":
            node["inputs"]["audio"] = Path(sound).name
    queued = tmp_path / "graph.json"
    queued.write_text(json.dumps(graph))
    in_graph = kept(client, server, graph, f"exported {name}")
    exported = export(read_graph(queued), str(server.models), str(server.base / "input"))
    (tmp_path / "job.json").write_text(json.dumps(exported.job))
    command = [*shlex.split(exported.command(str(tmp_path / "job.json")))[4:], "--device", "cpu"]
    assert frames_of(command).equal(in_graph) and in_graph.float().std() > 1 and len(in_graph) == NUM_FRAMES
    assert import_main([*command, "--out", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert kept(client, server, again, f"imported {name}").equal(in_graph)


def frames_of(command):
    job = read_job(command)
    return torch.cat([window.frames for window in TalkingVideoPipeline(job.files, job.options).run(job.request)])
