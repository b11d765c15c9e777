"""Graphs that users have, from the folder that WANVIDEO_USER_GRAPHS names: each loads with every widget it was saved
with, and those in API format run, with other packs' nodes replaced by ComfyUI's own.
"""

import copy
import json
import os
import shutil
from pathlib import Path, PureWindowsPath

import pytest
import safetensors.torch
from support.comfy_models import ASSETS, BASE, HEIGHT, MULTI, TEXT, WHOLE_CLIP, WIDTH, shrink
from support.comfy_server import PACK_NAME
from support.quantized_files import write_gguf

pytestmark = pytest.mark.comfyui
FOLDER = os.environ.get("WANVIDEO_USER_GRAPHS")
GRAPHS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in Path(FOLDER or "/dev/null").glob("*.json")
}
SAVED = [name for name, graph in GRAPHS.items() if "nodes" in graph]
QUEUED = [name for name, graph in GRAPHS.items() if "nodes" not in graph]
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN")
CONTROLS = ("fixed", "increment", "decrement", "randomize")

if not GRAPHS:
    pytest.skip("WANVIDEO_USER_GRAPHS names no folder with graphs", allow_module_level=True)


def widgets_of(node, values):
    """The page's reading of widgets_values: by position, with the seed's control left out."""
    named, values = {}, list(values or [])
    for group in ("required", "optional"):
        for name, spec in node["input"].get(group, {}).items():
            if isinstance(spec[0], list) or spec[0] in (*WIDGETS, "COMBO"):
                if not values:
                    return named, []
                named[name] = (values.pop(0), spec)
                if spec[1].get("control_after_generate") and values and values[0] in CONTROLS:
                    values.pop(0)
    return named, values


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_graph_fits_our_nodes(client, name):
    ours = client.nodes_of(PACK_NAME)
    seen = 0
    for node in GRAPHS[name]["nodes"]:
        if node["type"] not in ours:
            continue
        seen += 1
        schema = ours[node["type"]]
        inputs = schema["input"].get("required", {}) | schema["input"].get("optional", {})
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                kind = inputs[slot["name"]][0]
                assert slot["type"] in (kind, "*") or isinstance(kind, list), f"{node['type']}.{slot['name']}"
        for index, output in enumerate(node.get("outputs", [])):
            if output.get("links"):
                assert schema["output"][index] == output["type"], f"{node['type']} output {index}"
        named, left = widgets_of(schema, node.get("widgets_values"))
        assert not left, f"{node['type']}: more values than widgets: {left}"
        for item, (value, spec) in named.items():
            options = spec[0] if isinstance(spec[0], list) else None
            is_file = options is not None and isinstance(value, str) and "." in value
            if options is not None and not is_file:
                assert value in options, f"{node['type']}.{item} = {value!r}"
            elif spec[0] in ("INT", "FLOAT"):
                assert spec[1]["min"] <= value <= spec[1]["max"], f"{node['type']}.{item} = {value!r}"
            elif spec[0] == "BOOLEAN":
                assert isinstance(value, bool), f"{node['type']}.{item} = {value!r}"
    assert seen >= 10


@pytest.mark.browser
@pytest.mark.parametrize("name", SAVED)
def test_a_saved_graph_opens_in_the_page(server, client, open_page, name):
    page = open_page(server)
    report = page.load(GRAPHS[name])
    ours = set(client.nodes_of(PACK_NAME))
    named = {
        node["type"] for node in GRAPHS[name]["nodes"] if node["type"].startswith(("WanVideo", "MultiTalk", "Wav2"))
    }
    assert named <= ours and not named & set(report.missing)
    assert page.console_errors == []


def with_core_nodes(graph):
    """Other packs' nodes replaced by ComfyUI's own that do the same."""
    graph, aliases = copy.deepcopy(graph), {}
    for number, node in list(graph.items()):
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "INTConstant":
            node["class_type"] = "PrimitiveInt"
        elif kind == "ImageResizeKJv2":
            node["class_type"] = "ImageScale"
            node["inputs"] = {
                "image": inputs["image"], "upscale_method": "lanczos", "crop": "center", "width": WIDTH,
                "height": HEIGHT,
            }  # fmt: skip
        elif kind == "GetImageSizeAndCount":
            aliases[number, 0] = inputs["image"]
            node["class_type"] = "GetImageSize"
            aliases |= {(number, 1): [number, 0], (number, 2): [number, 1]}
        elif kind == "MelBandRoFormerSampler":
            aliases[number, 0] = inputs["audio"]
            del graph[number]
        elif kind == "MelBandRoFormerModelLoader":
            del graph[number]
        elif kind == "VHS_VideoCombine":
            graph[f"{number}00"] = {
                "class_type": "CreateVideo",
                "inputs": {"images": inputs["images"], "audio": inputs["audio"], "fps": 25.0},
            }
            node["class_type"] = "SaveVideo"
            node["inputs"] = {"video": [f"{number}00", 0], "filename_prefix": "user", "format": "auto", "codec": "auto"}
    for node in graph.values():
        for name, value in node["inputs"].items():
            while isinstance(value, list) and tuple(value) in aliases and aliases[tuple(value)] != value:
                value = aliases[tuple(value)]
                node["inputs"][name] = value
                if value[1] in (0, 1) and graph.get(value[0], {}).get("class_type") == "GetImageSize":
                    break
    return graph


@pytest.mark.parametrize("name", QUEUED)
def test_a_queued_graph_runs(server, client, name):
    graph = shrink(with_core_nodes(GRAPHS[name]))
    put_files(server, graph)
    for node in graph.values():
        if node["class_type"] == "MultiTalkWav2VecEmbeds":
            node["inputs"]["num_frames"] = 40
    run = client.run(graph, timeout_s=600)
    assert [file for file in run.files() if file.filename.endswith(".mp4")]


def put_files(server, graph):
    """What the graph names: tiny models under its names, a bundled picture and bundled speech."""
    models = server.models
    stands_in = {
        ("WanVideoModelLoader", "model"): ("diffusion_models", BASE),
        ("MultiTalkModelLoader", "model"): ("diffusion_models", MULTI),
        ("WanVideoVAELoader", "model_name"): ("vae", "vae/wan_2.1_vae.safetensors"),
        ("WanVideoTextEncodeCached", "model_name"): ("text_encoders", TEXT),
    }
    for node in graph.values():
        if node["class_type"] == "CLIPVisionLoader":  # ComfyUI's own knows only the whole ViT-H
            node["inputs"]["clip_name"] = WHOLE_CLIP
        for (kind, item), (folder, source) in stands_in.items():
            if node["class_type"] == kind and isinstance(node["inputs"].get(item), str):
                target = models / folder / Path(*PureWindowsPath(node["inputs"][item]).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.suffix == ".gguf":
                    write_gguf(target, safetensors.torch.load_file(models / source), "Q8_0")
                else:
                    shutil.copyfile(models / source, target)
        for kind, item, asset in (("LoadImage", "image", "portrait.jpg"), ("LoadAudio", "audio", "speech.flac")):
            if node["class_type"] == kind:
                shutil.copyfile(ASSETS / asset, server.base / "input" / node["inputs"][item])
