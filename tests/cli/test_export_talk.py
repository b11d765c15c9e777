"""The one-node graph as a command: the same models, numbers and people that the node chooses by itself."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from support import jobs
from support.exported import EXAMPLES, command_of
from support.folders import comfy_folders
from support.pack import load_pack

from wanvideo.cli.export import main as export_main
from wanvideo.cli.generate import read_job
from wanvideo.cli.graphs.graph import read_graph
from wanvideo.cli.graphs.to_job import export
from wanvideo.errors import InputError
from wanvideo.video.picture import load_mask, load_picture

load_pack()
common, talk = (sys.modules[f"pack_under_test.{name}"] for name in ("nodes_common", "nodes_talk"))
NAME = "00_quick_start"


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "input"
    folder.mkdir()
    return folder


def exported(graph, inputs, folder):
    file = folder / "graph.json"
    file.write_text(json.dumps(graph), encoding="utf-8")
    return export(read_graph(file), str(jobs.comfy()), str(inputs), f"{folder}/graph.")


def changed(**values):
    graph = json.loads((EXAMPLES / "api" / f"{NAME}.json").read_text(encoding="utf-8"))
    graph["3"]["inputs"].update(values)
    return graph


def with_loader(graph, kind, count, key, names, **values):
    """`count` more loaders, linked to these inputs."""
    for number, name in enumerate(names, 50 + count):
        graph[str(number)] = {"class_type": kind, "inputs": {key: f"{name}.png", **values}}
        graph["3"]["inputs"][name] = [str(number), 0 if kind != "LoadImage" else 1]


def test_both_forms_and_the_blueprint_are_one_command(inputs, tmp_path):
    page = json.loads((EXAMPLES / f"{NAME}.json").read_text(encoding="utf-8"))
    queued, saved = exported(changed(), inputs, tmp_path), exported(page, inputs, tmp_path)
    assert (queued.job, queued.flags, queued.notes) == (saved.job, saved.flags, saved.notes) and not queued.notes
    (blueprint,) = (EXAMPLES.parent / "subgraphs").glob("*.json")
    inner = json.loads(blueprint.read_text(encoding="utf-8"))
    (talking,) = [node for node in page["nodes"] if node["type"] == "WanVideoTalk"]
    (stands,) = inner["nodes"]
    ends = {item["name"]: item["link"] for item in talking["inputs"]}
    stands |= {"id": talking["id"], "outputs": talking["outputs"]}
    stands["inputs"] = [item | {"link": ends[item["name"]]} for item in stands["inputs"]]
    page["nodes"] = [stands if node is talking else node for node in page["nodes"]]
    page["definitions"] = inner["definitions"]
    blue = exported(page, inputs, tmp_path)
    assert (blue.job, blue.flags) == (queued.job, queued.flags)
    stands["widgets_values"] = ["He sings.", "01_ultra_fast", 5]
    own = exported(page, inputs, tmp_path)
    assert own.job["prompt"] == "He sings." and read_job(command_of(own, tmp_path)).request.seed == 5


def test_what_is_left_to_the_node_is_what_the_node_decides(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "folder_paths", comfy_folders(jobs.comfy(), tmp_path))
    for values in ({}, {"preset": "01_ultra_fast"}, {"preset": "05_low_vram"}, {"lora": "none"}):
        job = read_job(command_of(exported(changed(**values), inputs, tmp_path), tmp_path))
        preset = talk.settled_preset(values.get("preset", "auto"), values.get("lora", "auto"))
        names = talk.find_models(preset, values.get("lora", "auto"), 1)
        settings, asked = job.request.settings, preset.settings
        same = ("scheduler", "steps", "shift", "guidance_scale", "audio_guidance_scale", "window_frames",
                "motion_frames", "color_match", "color_strength", "tiled_vae")  # fmt: skip
        assert [getattr(settings, name) for name in same] == [getattr(asked, name) for name in same]
        assert job.files.transformer.endswith(names.transformer) and str(job.files.adapter).endswith(names.adapter)
        assert [lora.path.endswith(names.lora) for lora in job.files.loras] == ([True] if names.lora else [])
        assert job.options.quantize == preset.options.quantize and job.request.size == preset.size
        assert job.request.max_frames == 0 and job.request.seed == 42


def test_values_of_its_own_come_along(inputs, tmp_path):
    values = {
        "preset": "04_high_quality", "steps": 7, "audio_cfg_scale": 2.5, "audio_scale": 1.5, "lora_strength": 0.3,
        "lora": next(jobs.comfy().joinpath("loras").iterdir()).name, "size": "custom", "width": 96, "height": 64,
        "negative_prompt": "bad", "seed": 9,
    }  # fmt: skip
    job = read_job(command_of(exported(changed(**values), inputs, tmp_path), tmp_path))
    settings = job.request.settings
    assert (settings.steps, settings.audio_guidance_scale, settings.audio_scale) == (7, 2.5, 1.5)
    assert job.files.loras[0].strength == 0.3 and job.request.size == (96, 64)
    assert (job.request.negative_prompt, job.request.seed) == ("bad", 9)


def test_six_people_have_their_sounds_and_painted_masks(inputs, tmp_path):
    graph = changed(multi_audio_type="para")
    audios, masks = [f"audio_{i}" for i in range(2, 7)], [f"mask_{i}" for i in range(1, 7)]
    with_loader(graph, "LoadAudio", 0, "audio", audios)
    with_loader(graph, "LoadImage", 10, "image", masks[:3])
    with_loader(graph, "LoadImageMask", 20, "image", masks[3:], channel="green")
    for number, name in enumerate(masks):
        pixels = np.zeros((32, 96, 4), np.uint8)
        pixels[..., 3] = 255
        where = np.s_[:, 16 * number : 16 * number + 16]
        pixels[where] = (1, 2, 3, 0) if number < 3 else (0, 255, 0, 255)
        Image.fromarray(pixels).save(inputs / f"{name}.png")
    found = exported(graph, inputs, tmp_path)
    job = read_job(command_of(found, tmp_path))
    assert not found.notes and job.request.audio_type == "para" and len(job.request.speakers) == 6
    for number, speaker in enumerate(job.request.speakers):
        mask = load_mask(speaker.mask)
        assert mask.any(0).nonzero()[0].tolist() == list(range(16 * number, 16 * number + 16))


def test_a_transparent_picture_is_given_the_colors_that_comfyui_sees(inputs, tmp_path):
    pixels = np.full((24, 32, 4), (200, 100, 50, 0), np.uint8)
    Image.fromarray(pixels).save(inputs / "talking_video_portrait.jpg", "PNG")
    found = exported(changed(), inputs, tmp_path)
    found.save_pictures()
    assert (load_picture(found.job["cond_video"]) == pixels[..., :3]).all()


def test_models_that_are_not_there_are_named_with_the_flag(tmp_path):
    with pytest.raises(InputError, match=r"Models are missing: .*lightx2v(.|\n)*--models"):
        export_main([str(EXAMPLES / f"{NAME}.json"), "--out", str(tmp_path), "--models", str(tmp_path)])


def test_a_subgraph_that_holds_itself_is_refused(tmp_path):
    inner = {"id": "a", "nodes": [{"id": 1, "type": "a"}], "links": [], "inputs": []}
    graph = {"nodes": [{"id": 1, "type": "a"}], "links": [], "definitions": {"subgraphs": [inner]}}
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    with pytest.raises(InputError, match="subgraphs are more than"):
        read_graph(tmp_path / "graph.json")
