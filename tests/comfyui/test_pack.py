"""The pack in a real ComfyUI, queued over HTTP as scripts and other programs do."""

import contextlib
import copy
import re

import pytest
import soundfile
from support.comfy_client import ComfyClient, PromptRefused
from support.comfy_models import (
    HEIGHT,
    TEMPLATES,
    WIDTH,
    WORKFLOWS,
    api_template,
    changes,
    overridden,
    shrink,
)
from support.comfy_server import PACK_NAME, REPOSITORY, ComfyServer, install_pack
from support.media_files import decoded_frames

from wanvideo.geometry import frames_of
from wanvideo.video.reader import probe

pytestmark = pytest.mark.comfyui
SPEECH = WORKFLOWS.parent / "wanvideo" / "assets" / "speech.flac"
PAGES = WORKFLOWS.parent / "wanvideo" / "web" / "docs"
SAMPLERS = ("WanVideoSampler", "WanVideoSamplerv2")


def short(name="01_talking_person", **embeds):
    """A template that makes one or two windows."""
    graph = shrink(api_template(name))
    inputs_of(graph, "MultiTalkWav2VecEmbeds").update({"num_frames": 29} | embeds)
    return graph


def inputs_of(graph, kind):
    return next(node["inputs"] for node in graph.values() if node["class_type"] == kind)


def id_of(graph, *kinds):
    return next(number for number, node in graph.items() if node["class_type"] in kinds)


@contextlib.contextmanager
def new_log(server):
    """Collects the lines that the server logs in the block."""
    lines, before = [], len(server.log())
    yield lines
    lines += server.log()[before:].splitlines()


def loaded(lines):
    return [line.split(" from ")[0] for line in lines if "Loaded a" in line]


def test_every_node_is_there_with_all_it_says(client):
    nodes = client.nodes_of(PACK_NAME)
    assert len(nodes) >= 38
    for name, node in nodes.items():
        if node.get("deprecated"):  # what only refuses a graph is in no menu
            continue
        assert node["description"] and node["display_name"] != name and node["category"].startswith("Talking Video"), (
            name
        )
        for group in ("required", "optional"):
            for item, spec in node["input"].get(group, {}).items():
                assert spec[1].get("tooltip"), f"{name}.{item} has no tooltip"


def test_the_pack_is_imported_fast_and_without_a_network(server):
    (seconds,) = re.findall(rf"([\d.]+) seconds: \S*{PACK_NAME}", server.log())
    assert float(seconds) < 2.0


GRAPHS = [name for name in TEMPLATES if name != "00_quick_start"]  # which tests/comfyui/test_talk.py runs


@pytest.mark.parametrize("name", GRAPHS)
def test_a_template_makes_its_video_as_it_is_queued(server, client, tmp_path, name):
    graph = api_template(name)
    small = shrink(graph)
    embeds = inputs_of(small, "MultiTalkWav2VecEmbeds")
    expected = frames_of(soundfile.info(SPEECH).duration)
    if name != "01_talking_person":
        embeds["num_frames"] = expected = 53
    picture = inputs_of(small, "WanVideoImageToVideoMultiTalk")
    if picture["output_path"]:
        picture["output_path"] = "long audio of this test"
    with overridden(server, changes(graph, small)):
        run = client.run(graph, timeout_s=600)
    sampler = id_of(graph, *SAMPLERS)
    (saved,) = [file for file in run.files() if file.filename.endswith(".mp4")]
    info = probe(client.download(saved, tmp_path))
    assert (info.width, info.height, info.frames) == (WIDTH, HEIGHT, expected)
    assert info.fps == 25 and abs(info.audio_duration_s - info.duration_s) <= 1 / 25
    values = [(data["value"], data["max"]) for data in run.data_of("progress") if data["node"] == sampler]
    assert values[-1][0] == values[-1][1] and len(values) >= 4
    assert run.previews
    assert any(re.search(r"window 1/\d+ · step 1/\d · [\d.]+ s/step · \d+:\d\d left", text) for text in run.texts)
    if name == "04_long_audio":
        (written,) = (server.base / "output" / picture["output_path"]).glob("*.mp4")
        assert probe(written).frames == 53


def test_the_same_graph_twice_runs_nothing(client):
    graph = short()
    client.run(graph)
    again = client.run(graph)
    assert again.cached_nodes() == set(graph) and id_of(graph, *SAMPLERS) not in again.executed_nodes()


def test_a_new_seed_loads_nothing_and_a_new_prompt_only_the_text_encoder(server, client):
    graph = short()
    client.run(graph)
    inputs_of(graph, "WanVideoSampler")["seed"] += 1
    with new_log(server) as lines:
        run = client.run(graph)
    assert loaded(lines) == [] and id_of(graph, *SAMPLERS) in run.executed_nodes()
    inputs_of(graph, "WanVideoTextEncodeCached")["positive_prompt"] = "Somebody whispers."
    with new_log(server) as lines:
        run = client.run(graph)
    assert len(loaded(lines)) == 1 and "UMT5" in loaded(lines)[0]
    with new_log(server) as lines:
        inputs_of(graph, "WanVideoTextEncodeCached")["negative_prompt"] += ", noise"
        client.run(graph)
        inputs_of(graph, "WanVideoTextEncodeCached")["positive_prompt"] = "A woman looks into the camera and talks."
        client.run(graph)
    known = copy.deepcopy(graph)
    with new_log(server) as lines:
        inputs_of(known, "WanVideoTextEncodeCached")["positive_prompt"] = "Somebody whispers."
        client.run(known)
    assert loaded(lines) == [], "both prompts are on disk already"


def test_a_changed_lora_strength_reloads_nothing(server, client):
    graph = short()
    inputs_of(graph, "WanVideoSampler")["seed"] = 77
    client.run(graph)
    inputs_of(graph, "WanVideoLoraSelect")["strength"] = 0.5
    with new_log(server) as lines:
        client.run(graph)
    assert loaded(lines) == [] and any("at 0.5: matched" in line for line in lines), "the LoRA is in the loader"
    loader = id_of(graph, "WanVideoModelLoader")
    lora = graph[loader]["inputs"].pop("lora")
    graph["90"] = {"class_type": "WanVideoSetLoRAs", "inputs": {"model": [loader, 0], "lora": lora}}
    inputs_of(graph, "WanVideoSampler")["model"] = ["90", 0]
    client.run(graph)
    inputs_of(graph, "WanVideoLoraSelect")["strength"] = 0.3
    with new_log(server) as lines:
        client.run(graph)
    assert loaded(lines) == [] and any("at 0.3: matched" in line for line in lines)


def test_interrupting_stops_in_the_middle_of_a_window_and_keeps_finished_ones(server, client):
    graph = short(num_frames=0)
    # A step takes some 30 ms: what is told and asked meanwhile may take several.
    inputs_of(graph, "WanVideoSampler").update(seed=5, steps=25, scheduler="multitalk")
    values = []

    def stop_in_the_second_window(event):
        if event.kind == "progress" and event.data["node"] == id_of(graph, *SAMPLERS):
            values.append(event.data["value"])
            if event.data["value"] == 27:
                client.interrupt(event.data["prompt_id"])

    with new_log(server) as lines:
        client.run(graph, expect="interrupted", on_event=stop_in_the_second_window)
    assert 27 <= values[-1] < 45
    (kept,) = [line for line in lines if "The video was not finished. Its first 29 frames are in" in line]
    path = kept.split(" are in ")[1].split(";")[0]
    assert probe(path).frames == 29 and len(decoded_frames(path)) == 29
    client.run(short())


def test_free_releases_the_models_and_they_come_back(server, client):
    graph = short()
    inputs_of(graph, "WanVideoSampler")["seed"] = 6
    inputs_of(graph, "WanVideoSampler")["force_offload"] = False
    client.run(graph)
    with new_log(server) as lines:
        client.free()
        inputs_of(graph, "WanVideoSampler")["seed"] = 7
        client.run(graph)
    assert any("WanTransformer left the device" in line for line in lines)
    assert any("image-to-video transformer" in line for line in loaded(lines)), "its memory was given back"


def test_comfyui_cannot_decode_the_last_window_as_the_whole_video(client):
    graph = short(num_frames=53)
    sampler = id_of(graph, "WanVideoSampler")
    graph["81"] = {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}}
    graph["82"] = {"class_type": "VAEDecode", "inputs": {"vae": ["81", 0], "samples": [sampler, 0]}}
    graph["83"] = {"class_type": "PreviewImage", "inputs": {"images": ["82", 0]}}
    message = client.run(graph, expect="error").error()["exception_message"]
    assert "Take its frames from WanVideoPassImagesFromSamples" in message


def test_all_ways_out_of_the_sampler_show_the_same_frames(client, tmp_path):
    graph = short("06_from_wanvideowrapper")
    sampler, vae = id_of(graph, "WanVideoSampler"), id_of(graph, "WanVideoVAELoader")
    for number, (kind, inputs) in enumerate({
        "WanVideoDecode": {"vae": [vae, 0], "samples": [sampler, 0], "enable_vae_tiling": False, "tile_x": 272,
                           "tile_y": 272, "tile_stride_x": 144, "tile_stride_y": 128},
        "WanVideoPassImagesFromSamples": {"samples": [sampler, 0]},
    }.items()):  # fmt: skip
        graph[f"8{number}"] = {"class_type": kind, "inputs": inputs}
        graph[f"9{number}"] = {
            "class_type": "SaveImage",
            "inputs": {"images": [f"8{number}", 0], "filename_prefix": f"ways/{number}"},
        }
    run = client.run(graph)
    pictures = {}
    for file in run.files():
        if file.filename.endswith(".png"):
            pictures.setdefault(file.node, []).append(client.download(file, tmp_path).read_bytes()[-5000:])
    assert len(pictures["90"]) == 29 and pictures["90"] == pictures["91"]


def test_a_missing_negative_prompt_is_found_before_the_transformer_is_loaded(server, client):
    client.free()
    graph = short()
    inputs_of(graph, "WanVideoSampler")["cfg"] = 5.0
    cached = id_of(graph, "WanVideoTextEncodeCached")
    graph["91"] = {
        "class_type": "LoadWanVideoT5TextEncoder",
        "inputs": {"model_name": graph[cached]["inputs"]["model_name"], "precision": "fp32"},
    }
    graph["92"] = {"class_type": "WanVideoTextEncodeSingle", "inputs": {"prompt": "She talks.", "t5": ["91", 0]}}
    inputs_of(graph, "WanVideoSampler")["text_embeds"] = ["92", 0]
    with new_log(server) as lines:
        run = client.run(graph, expect="error")
    assert "negative prompt" in run.error()["exception_message"]
    assert not any("image-to-video transformer" in line for line in loaded(lines))


def test_saved_names_are_found_on_any_system_and_missing_ones_answered(client):
    graph = short()
    inputs_of(graph, "WanVideoModelLoader")["model"] = r"WanVideo\2_1\wan2.1_i2v_480p_14B_fp16.safetensors"
    client.run(graph)
    inputs_of(graph, "WanVideoVAELoader")["model_name"] = "wanvideo\\no_such_vae.safetensors"
    with pytest.raises(PromptRefused, match=r"no_such_vae.safetensors is missing(?s:.)*https://(?s:.)*vae"):
        client.run(graph)


def test_an_unknown_scheduler_is_answered_with_the_nearest(client):
    graph = short()
    inputs_of(graph, "WanVideoSampler")["scheduler"] = "deis"
    with pytest.raises(PromptRefused, match="not offered. The nearest one is"):
        client.run(graph)


OTHER_PACK = """
class WanVideoSampler:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}
    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "process", "other"
NODE_CLASS_MAPPINGS = {"WanVideoSampler": WanVideoSampler}
"""


def test_two_packs_with_the_same_names_live_side_by_side(comfyui, tmp_path):
    server = ComfyServer(comfyui, tmp_path)
    other = server.custom_nodes / "ComfyUI-WanVideoWrapper"
    other.mkdir()
    (other / "__init__.py").write_text(OTHER_PACK, encoding="utf-8")
    install_pack(REPOSITORY, server.custom_nodes, PACK_NAME)
    with server:
        client = ComfyClient(server.url)
        nodes = client.object_info()
        assert nodes["WanVideoSampler"]["category"] == "other"
        assert nodes["TalkWanVideoSampler"]["python_module"].endswith(PACK_NAME)
        assert "ours are called TalkWanVideoSampler" in server.log()
        for language in ("en", "zh"):
            page = client.get_bytes(f"/extensions/{PACK_NAME}/docs/TalkWanVideoSampler/{language}.md")
            assert page == (PAGES / "WanVideoSampler" / f"{language}.md").read_bytes()
        chinese = client.get("/i18n")["zh"]["nodeDefs"]
        assert set(client.nodes_of(PACK_NAME)) <= set(chinese)
        assert chinese["TalkWanVideoSampler"] == chinese["WanVideoSampler"]
