"""Graphs as job and command, and back: nothing that frames depend on is lost, and what has no counterpart is said."""

import json

import pytest
from support.exported import EXAMPLES, command_of

from wanvideo.cli import export as exporting
from wanvideo.cli.generate import read_job
from wanvideo.cli.graphs.graph import Graph, GraphNode, Link, read_graph
from wanvideo.cli.graphs.to_job import export
from wanvideo.cli.import_ import main as import_main
from wanvideo.errors import InputError, OutputError

TEMPLATES = [path for path in sorted((EXAMPLES / "api").glob("*.json")) if path.stem != "00_quick_start"]
# What the command line cannot say of a template.
NOTES = {
    "02_two_people_masks": [
        f"alpha of input/talking_video_{side}.webp, which is not there: name ComfyUI's folder of pictures with --inputs"
        for side in ("left", "right")
    ],
    "03_restyle_video": [
        "WanVideoEncode: the command line begins from noise alone", "start_step of WanVideoSampler (2)",
        "samples of WanVideoSampler (from WanVideoEncode)",
        "ImageFromBatch: the job follows the whole video, not one of its frames",
        "ImageScale: the command line fits the picture to the video itself",
        "GetVideoComponents: the job follows the video by its time",
    ],
    "08_dub_video": ["keep_mask of WanVideoSourceOptions (from MaskComposite)"],
    "05_12gb_card": ["--quant fp8 holds for the text encoder too"],
    "07_InfiniteTalk单人图生视频": ["--quant fp8 holds for the text encoder too"],
    "06_from_wanvideowrapper": [
        "base_precision fp16_fast: products are summed in float32",
        "num_frames 400: longer speech is cut there before it is encoded, by --max_frame_num after; "
        "cut the sound's file for the same frames",
        "precision bf16 of WanVideoVAELoader: the command line has fp16",
        "precision bf16 of WanVideoTextEncodeCached: the command line has fp16",
        "ImageScale: the command line fits the picture to the video itself",
        "WanVideoClipVisionEncode: the command line shows CLIP the picture as it is sampled",
    ],
}  # fmt: skip


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_both_forms_of_a_template_are_one_command_that_is_understood(path, tmp_path):
    queued, page = export(read_graph(path)), export(read_graph(EXAMPLES / path.name))
    assert queued.notes == page.notes and queued.job == page.job and queued.flags == page.flags
    assert sorted(queued.notes) == sorted(NOTES.get(path.stem, []))
    job = read_job(command_of(queued, tmp_path))
    graph = json.loads(path.read_text(encoding="utf-8"))
    (sampler,) = [node["inputs"] for node in graph.values() if node["class_type"] == "WanVideoSampler"]
    settings = job.request.settings
    assert (settings.steps, settings.shift, settings.scheduler) == (
        sampler["steps"],
        sampler["shift"],
        sampler["scheduler"],
    )
    assert job.request.seed == sampler["seed"] and settings.guidance_scale == sampler["cfg"]
    assert job.files.transformer.startswith("models/diffusion_models/") and job.files.loras[0].strength in (0.8, 1)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_there_and_back_is_the_same_request(path, tmp_path, capsys):
    first = export(read_graph(path), prefix="input/")
    command = command_of(first, tmp_path)
    assert import_main([*command, "--out", str(tmp_path / "graph.json")]) == 0
    second = export(read_graph(tmp_path / "graph.json"))
    assert second.job == first.job
    (tmp_path / "again").mkdir()
    there, back = read_job(command), read_job(command_of(second, tmp_path / "again"))
    assert (back.request.settings, back.request.speakers, back.request.seed, back.request.size) == (
        there.request.settings, there.request.speakers, there.request.seed, there.request.size
    )  # fmt: skip
    assert (back.files, back.options) == (there.files, there.options)
    assert f"copy into ComfyUI/input: {there.request.reference}" in capsys.readouterr().out


def test_the_command_writes_the_job_and_a_script(tmp_path, capsys):
    assert exporting.main([str(TEMPLATES[1]), "--out", str(tmp_path), "--models", "/m", "--inputs", "/i"]) == 0
    printed = capsys.readouterr().out
    assert "no counterpart: alpha of /i/talking_video_left.webp, which is not there" in printed
    job = json.loads((tmp_path / "02_two_people_masks.job.json").read_text(encoding="utf-8"))
    assert job["cond_audio"] == {"person1": "/i/talking_video_speech.flac", "person2": "/i/talking_video_speech_2.flac"}
    script = (tmp_path / "02_two_people_masks.sh").read_text(encoding="utf-8")
    assert "/m/vae/wan_2.1_vae.safetensors" in script and script.startswith("#!/bin/sh\npython -m wanvideo generate")


def test_values_and_links_are_followed_through_passing_nodes():
    nodes = (
        GraphNode("1", "INTConstant", {"value": 640}),
        GraphNode("2", "SetNode", {"name": "w", "INT": Link("1")}),
        GraphNode("3", "GetNode", {"name": "w"}),
        GraphNode("4", "ImageResizeKJv2", {"width": Link("3"), "height": 480}),
        GraphNode("5", "GetImageSizeAndCount", {"image": Link("4")}),
        GraphNode("6", "Reroute", {"any": Link("5")}),
        GraphNode("7", "Sink", {"width": Link("6"), "height": Link("6"), "seed": Link("1"), "none": Link("99")}),
    )
    graph = Graph({node.id: node for node in nodes})
    sink = graph.nodes["7"]
    assert [graph.value(sink, name, 1) for name in ("width", "height", "seed", "none")] == [640, 480, 640, 1]
    assert graph.source(sink, "width").kind == "GetImageSizeAndCount"
    assert [graph.is_held(sink, name) for name in ("width", "height", "seed", "none", "own")] == [True] * 3 + [
        False,
        True,
    ]


def test_a_number_that_the_graph_computes_is_said(tmp_path):
    graph = json.loads(TEMPLATES[0].read_text(encoding="utf-8"))
    (sampler,) = [node["inputs"] for node in graph.values() if node["class_type"] == "WanVideoSampler"]
    graph["900"] = {"class_type": "PrimitiveInt", "inputs": {"value": 4}}
    graph["901"] = {"class_type": "Doubled", "inputs": {"a": ["900", 0]}}
    graph["902"] = {"class_type": "Drawn", "inputs": {"most": 9}}
    graph["903"] = {"class_type": "Circle", "inputs": {"value": ["903", 0]}}
    sampler |= {"steps": ["901", 0], "shift": ["902", 0], "seed": ["900", 0], "cfg": ["903", 0]}
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(graph))
    assert export(read_graph(file)).notes == (
        "cfg of WanVideoSampler (from Circle): 6.0 is taken", "steps of WanVideoSampler (from Doubled): 4 is taken",
        "shift of WanVideoSampler (from Drawn): 5.0 is taken",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["PrimitiveNode", "PrimitiveFloat", "FloatConstant"])
def test_a_number_of_a_node_of_its_own_is_found_in_a_saved_graph(tmp_path, kind):
    graph = json.loads((EXAMPLES / "01_talking_person.json").read_text(encoding="utf-8"))
    (sampler,) = [node for node in graph["nodes"] if node["type"] == "WanVideoSampler"]
    graph["nodes"].append({"id": 900, "type": kind, "widgets_values": [2.5, "fixed"]})
    graph["links"].append([901, 900, 0, sampler["id"], 0, "FLOAT"])
    sampler["inputs"].append({"name": "shift", "type": "FLOAT", "link": 901, "widget": {"name": "shift"}})
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(graph))
    found = export(read_graph(file))
    assert found.flags[found.flags.index("--sample_shift") + 1] == "2.5" and not found.notes


def test_what_exists_is_left_as_it_is_unless_told_otherwise(tmp_path):
    graph = tmp_path / "talk.json"
    graph.write_bytes(TEMPLATES[0].read_bytes())
    (tmp_path / "talk.sh").write_text("mine")
    with pytest.raises(OutputError, match="talk.sh exists and is left as it is. Name another place with --out, or add"):
        exporting.main([str(graph)])
    assert (tmp_path / "talk.sh").read_text() == "mine" and not (tmp_path / "talk.job.json").exists()
    assert exporting.main([str(graph), "--overwrite"]) == 0
    command = command_of(export(read_graph(graph)), tmp_path)
    job = (tmp_path / "a.job.json").read_bytes()
    with pytest.raises(OutputError, match="a.job.json exists and is left as it is"):
        import_main([*command, "--out", str(tmp_path / "a.job.json")])
    assert (tmp_path / "a.job.json").read_bytes() == job


def test_a_source_that_the_graph_trims_is_said():
    graph = json.loads((EXAMPLES / "api" / "08_dub_video.json").read_text(encoding="utf-8"))
    (image,) = [node for node in graph.values() if node["class_type"] == "WanVideoImageToVideoMultiTalk"]
    graph["slice"] = {"class_type": "Video Slice", "inputs": {"video": image["inputs"]["source_video"], "duration": 2}}
    image["inputs"]["source_video"] = ["slice", 0]
    nodes = {
        key: GraphNode(key, node["class_type"], {
            name: Link(value[0]) if isinstance(value, list) else value for name, value in node["inputs"].items()
        })
        for key, node in graph.items()
    }  # fmt: skip
    assert "Video Slice: give a file that holds only this part" in export(Graph(nodes)).notes


def test_what_is_no_graph_is_said(tmp_path):
    file = tmp_path / "graph.json"
    for text, message in (
        ('{"1": {"inputs": {}}}', "is not a graph"), ('{"nodes": [], "links": []}', "has no nodes"),
        ('{"1": {"class_type": "SaveVideo", "inputs": {}}}', "has 0 nodes of the kind WanVideoTalk or WanVideoSampler"),
        ('{"nodes": [1], "links": []}', "is not a graph"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            export(read_graph(file))


def test_what_no_node_can_do_is_said(tmp_path):
    command = command_of(export(read_graph(TEMPLATES[0])), tmp_path)
    out = ["--out", str(tmp_path / "g.json")]
    assert import_main([*command, *out, "--size", "infinitetalk-720"]) == 0  # one that follows the picture
    assert (
        read_graph(tmp_path / "g.json").of_kind("WanVideoImageToVideoMultiTalk")[0].inputs["size"] == "infinitetalk-720"
    )
    with pytest.raises(InputError, match="nodes LoadImage, one is needed"):
        import_main([*command, *out, "--overwrite", "--template", str(TEMPLATES[1])])
