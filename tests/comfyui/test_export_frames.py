"""A template as it is queued, the command that `export` writes of it, and the graph that `import` writes of that
command make the same frames to the bit."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import jobs, media_files
from support.comfy_models import api_template, shrink
from support.exported import command_of

from wanvideo import TalkingVideoPipeline
from wanvideo.cli.generate import read_job
from wanvideo.cli.graphs.graph import read_graph
from wanvideo.cli.graphs.to_job import export
from wanvideo.cli.import_ import main as import_main

pytestmark = pytest.mark.comfyui
NUM_FRAMES = 40  # two windows
# Templates whose frames are those of their command; the rest name what a command cannot say of them.
SAME = ("01_talking_person", "02_two_people_masks", "05_12gb_card")


def kept(client, server, graph, name):
    """The frames that a graph makes in ComfyUI."""
    graph = copy.deepcopy(graph)
    ids = {node["class_type"]: number for number, node in graph.items()}
    inputs = {"samples": [ids["WanVideoSampler"], 0]}
    graph["images"] = {"class_type": "WanVideoPassImagesFromSamples", "inputs": inputs}
    graph["keep"] = {"class_type": "KeepFrames", "inputs": {"images": ["images", 0], "name": name}}
    for kind in ("SaveVideo", "WanVideoTalkingVideo", "CreateVideo"):
        graph.pop(ids.get(kind, ""), None)
    client.run(graph, timeout_s=600)
    return torch.from_numpy(np.load(server.base / "output" / f"{name}.npy"))


def small(name, folder):
    """A template's graph at a size for CPUs, with pictures of one shape and short sounds in place of its samples."""
    graph = shrink(api_template(name))
    quantization = next(
        (node["inputs"]["quantization"] for node in graph.values() if node["class_type"] == "WanVideoModelLoader"), None
    )
    painted = 0
    for number, node in graph.items():
        inputs = node["inputs"]
        if node["class_type"] == "WanVideoTextEncodeCached":
            inputs["quantization"] = quantization  # --quant holds for both, which `export` says
        if node["class_type"] == "LoadImage":
            inputs["image"] = f"exported_{painted}.png"
            picture(folder / inputs["image"], painted)
            painted += 1
        if node["class_type"] == "LoadAudio":
            inputs["audio"] = f"exported_{number}.wav"
            jobs.speech(folder, NUM_FRAMES / 25 / (2 if name.startswith("02") else 1), inputs["audio"])
        if node["class_type"] == "LoadVideo":
            inputs["file"] = "exported.mp4"
            media_files.video(folder / "exported.mp4", media_files.numbered_frames(60, 96, 144))
        if node["class_type"] == "MultiTalkWav2VecEmbeds":
            inputs["num_frames"] = 0
    return graph


def picture(path, number):
    """With a part that is painted transparent, as ComfyUI's mask editor leaves it; its colors stay."""
    pixels = np.array(Image.open(jobs.picture(path.parent, 200, 150)).convert("RGBA"))
    pixels[20:130, 10 + 100 * number : 90 + 100 * number, 3] = 0
    Image.fromarray(pixels).save(path)


def frames_of(command):
    job = read_job(command)
    return torch.cat([window.frames for window in TalkingVideoPipeline(job.files, job.options).run(job.request)])


def by_command(graph, server, folder):
    queued = folder / "graph.json"
    queued.write_text(json.dumps(graph))
    exported = export(read_graph(queued), str(server.models), str(server.base / "input"), f"{folder}/graph.")
    return [*command_of(exported, folder), "--device", "cpu"]


@pytest.mark.parametrize("name", SAME)
def test_frames_are_the_same_both_ways(server, client, tmp_path, name):
    folder = server.base / "input"
    graph = small(name, folder)
    in_graph = kept(client, server, graph, f"exported {name}")
    command = by_command(graph, server, tmp_path)
    assert frames_of(command).equal(in_graph) and in_graph.float().std() > 1 and len(in_graph) == NUM_FRAMES
    assert import_main([*command, "--out", str(tmp_path / "again.json")]) == 0
    for path in tmp_path.glob("graph.*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    again = json.loads((tmp_path / "again.json").read_text())
    assert kept(client, server, again, f"imported {name}").equal(in_graph)


def test_a_dub_is_the_same_with_a_video_of_masks(server, client, tmp_path):
    """Template 08 makes its mask in the graph, which no command can say; loaded from a file it is in both."""
    folder, graph = server.base / "input", small("08_dub_video", server.base / "input")
    masks = np.zeros((60, 96, 144, 3), np.uint8)
    for number, mask in enumerate(masks):
        mask[40:80, 30 + number // 2 : 80 + number // 2] = 255
    media_files.video(folder / "masks.mp4", masks)
    (options,) = [node["inputs"] for node in graph.values() if node["class_type"] == "WanVideoSourceOptions"]
    del options["keep_mask"]
    graph = {key: node for key, node in graph.items() if node["class_type"] not in ("SolidMask", "MaskComposite")}
    graph["masks"] = {"class_type": "LoadVideo", "inputs": {"file": "masks.mp4"}}
    options["mask_video"] = ["masks", 0]
    in_graph = kept(client, server, graph, "dubbed")
    assert frames_of(by_command(graph, server, tmp_path)).equal(in_graph) and len(in_graph) == NUM_FRAMES
    assert in_graph[:, 60:].float().std(0).max() > 1  # new where the mask is


def test_what_the_one_node_graph_decides_is_the_command_s(server, client, tmp_path):
    """Its frames come out in a file, so files are compared: both are encoded window by window, with the same crf."""
    graph = small("00_quick_start", server.base / "input")
    (saved,) = [file for file in client.run(graph, timeout_s=600).files() if file.filename.endswith(".mp4")]
    in_graph = media_files.decoded_frames(client.download(saved, tmp_path))
    job = read_job([*by_command(graph, server, tmp_path), "--save_file", str(tmp_path / "own.mp4")])
    path = TalkingVideoPipeline(job.files, job.options).generate(job.request, Path(job.request.output))
    own = media_files.decoded_frames(path)
    assert len(own) == NUM_FRAMES and own.std() > 1 and np.array_equal(own, in_graph)
