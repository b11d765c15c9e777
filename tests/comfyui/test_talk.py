"""The node that does all of it, in a real ComfyUI: a picture and speech in, a video out, and what it says without."""

import copy
import re
import shutil

import pytest
import soundfile
from support.comfy_client import ComfyClient, PromptRefused
from support.comfy_models import HEIGHT, TEMPLATES, WIDTH, api_template, changes, overridden, shrink, template
from support.comfy_server import PACK_NAME, REPOSITORY, ComfyServer, install_pack

from wanvideo.geometry import frames_of
from wanvideo.video.reader import probe

pytestmark = pytest.mark.comfyui
ASSETS = REPOSITORY / "wanvideo" / "assets"


def talk_of(graph):
    return next(node["inputs"] for node in graph.values() if node["class_type"] == "WanVideoTalk")


def new_lines(server, before):
    return server.log()[before:].splitlines()


def test_the_quick_start_makes_its_video_as_it_is_queued(server, client, tmp_path):
    graph = api_template("00_quick_start")
    with overridden(server, changes(graph, shrink(graph))):
        run = client.run(graph, timeout_s=600)
    assert any(re.search(r"^.*talking_video\S*/video.mp4", text) for text in run.texts), "the node says where it is"
    (saved,) = [file for file in run.files() if file.filename.endswith(".mp4")]
    info = probe(client.download(saved, tmp_path))
    expected = frames_of(soundfile.info(ASSETS / "speech.flac").duration)
    assert (info.width, info.height, info.frames) == (WIDTH, HEIGHT, expected)
    assert abs(info.audio_duration_s - info.duration_s) <= 1 / 25


def test_a_new_seed_and_a_new_lora_strength_load_nothing(server, client):
    graph = shrink(api_template("00_quick_start"))
    client.run(graph, timeout_s=600)
    before = len(server.log())
    talk_of(graph).update(seed=43, lora_strength=0.4)
    client.run(graph, timeout_s=600)
    lines = new_lines(server, before)
    assert not [line for line in lines if "Loaded a" in line] and any("at 0.4: matched" in line for line in lines)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_taken_as_it_is(client, name):
    """Every file that it names is there and is what it should be; at its own size a laptop would sample for minutes."""
    client.free()  # or nothing might be left to run

    def stop_at_once(event):
        if event.kind == "executing":
            client.interrupt(event.data["prompt_id"])

    client.run(api_template(name), expect="interrupted", on_event=stop_at_once, timeout_s=120)


def test_the_quick_start_has_four_nodes():
    nodes = [node["type"] for node in template("00_quick_start")["nodes"] if node["type"] != "MarkdownNote"]
    assert sorted(nodes) == ["LoadAudio", "LoadImage", "SaveVideo", "WanVideoTalk"]


def test_what_is_wrong_is_said_when_the_graph_is_queued(client):
    for change, said in (
        ({"audio_2": ["2", 0], "audio_3": ["2", 0]}, "3 speakers need a mask each"),
        ({"image": None}, "Somebody has to be seen"),
        ({"size": "custom", "width": 840}, "Use 832 or 848"),
        ({"lora": "no_such.safetensors"}, "no_such.safetensors is missing"),
    ):
        graph = copy.deepcopy(api_template("00_quick_start"))
        talk_of(graph).update({name: value for name, value in change.items() if value is not None})
        for name in (name for name, value in change.items() if value is None):
            del talk_of(graph)[name]
        with pytest.raises(PromptRefused, match=said):
            client.run(graph)


def test_without_models_all_that_is_missing_is_one_message_and_samples_are_placed_once(comfyui, tmp_path):
    server = ComfyServer(comfyui, tmp_path)
    install_pack(REPOSITORY, server.custom_nodes, PACK_NAME)
    own = tmp_path / "input" / "talking_video_portrait.jpg"
    shutil.copyfile(ASSETS / "two_people.jpg", own)
    with server:
        client = ComfyClient(server.url)
        with pytest.raises(PromptRefused) as refused:
            client.run(api_template("00_quick_start"))
        for name in ("480p_14B", "InfiniTetalk-Single", "vae.saf", "umt5", "clip_vision_h", "wav2vec2", "lightx2v"):
            assert name in str(refused.value)
        assert "GB) into diffusion_models" in str(refused.value) and "https://huggingface.co/" in str(refused.value)
        placed = {path.name for path in (tmp_path / "input").iterdir()}
        assert {"talking_video_speech.flac", "talking_video_source.mp4", "talking_video_left.webp"} <= placed
        assert own.read_bytes() == (ASSETS / "two_people.jpg").read_bytes()
        blueprints = [
            entry["name"]
            for entry in client.get("/global_subgraphs").values()
            if entry["info"]["node_pack"].endswith(PACK_NAME)
        ]
        assert blueprints == ["Talking Video (picture + speech)"]
