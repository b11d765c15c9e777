"""What is wrong with a graph is said when it is queued, or before anything is loaded for it."""

import json
import os

import pytest
from support.comfy_client import PromptRefused
from support.comfy_models import api_template, shrink, write_wrong_files

pytestmark = pytest.mark.comfyui


@pytest.fixture
def graph():
    graph = shrink(api_template("01_talking_person"))
    inputs_of(graph, "MultiTalkWav2VecEmbeds")["num_frames"] = 29
    return graph


def inputs_of(graph, kind):
    return next(node["inputs"] for node in graph.values() if node["class_type"] == kind)


def link(graph, kind, name, value):
    """The value of a widget from another node, as primitives and constants of other packs do it."""
    graph["any"] = {"class_type": "AnyValue", "inputs": {"value": str(value), "kind": type(value).__name__}}
    inputs_of(graph, kind)[name] = ["any", 0]


def loaded(server, before):
    return [line for line in server.log()[before:].splitlines() if "Loaded a" in line]


AT_ONCE = {
    "steps": ("WanVideoSampler", {"start_step": 9}, "start_step"),
    "cfg": ("WanVideoSampler", {"cfg": float("nan")}, "cfg nan is not usable"),
    "riflex": ("WanVideoSampler", {"riflex_freq_index": 4}, "riflex_freq_index is not supported"),
    "scheduler": ("WanVideoSampler", {"scheduler": "nope"}, "nope"),
    "width": ("WanVideoImageToVideoMultiTalk", {"width": 104}, "width 104 is not usable"),
    "motion": ("WanVideoImageToVideoMultiTalk", {"motion_frame": 29}, "motion_frame 29 must be smaller"),
    "folder": ("WanVideoImageToVideoMultiTalk", {"output_path": "../away"}, "leads out of ComfyUI's output folder"),
    "kind": (
        "MultiTalkModelLoader",
        {"model": "wan2.1_i2v_480p_14B_fp16.safetensors"},
        "wan2.1_i2v_480p_14B_fp16.safetensors(?s:.)*audio adapter",
    ),
    "lora": ("WanVideoLoraSelect", {"lora": "../vae/wan_2.1_vae.safetensors"}, "leads out of the folders"),
    "attention": ("WanVideoModelLoader", {"attention_mode": "nope"}, "not in"),
}


@pytest.mark.parametrize("mistake", AT_ONCE)
def test_a_wrong_value_is_refused_when_the_graph_is_queued(server, client, graph, mistake):
    kind, values, said = AT_ONCE[mistake]
    inputs_of(graph, kind).update(values)
    before = len(server.log())
    with pytest.raises(PromptRefused, match=said):
        client.run(graph)
    assert not loaded(server, before)


def first(graph, kind):
    return next(number for number, node in graph.items() if node["class_type"] == kind)


# What is wrong -> template, node, input, value, node that is marked, what it says.
MISTAKES = {
    "mask": ("02_two_people_masks", "LoadImage", "image", "unpainted.png", "MultiTalkWav2VecEmbeds", "is empty"),
    "lora": ("01_talking_person", "WanVideoLoraSelect", "lora", "no_lora.safetensors", "WanVideoLoraSelect", "LoRA"),
    "adapter": (
        "01_talking_person", "MultiTalkModelLoader", "model", "wan2.1_i2v_480p_14B_fp16.safetensors",
        "MultiTalkModelLoader", "audio adapter",
    ),
    "width": (
        "06_from_wanvideowrapper", "WanVideoImageToVideoMultiTalk", "width", 833, "WanVideoImageToVideoMultiTalk",
        "833 is not usable",
    ),
    "silence": ("01_talking_person", "LoadAudio", "audio", "silent.wav", "MultiTalkWav2VecEmbeds", "is silent"),
    "talk lora": ("00_quick_start", "WanVideoTalk", "lora", "no_lora.safetensors", "WanVideoTalk", "LoRA"),
    "talk silence": ("00_quick_start", "LoadAudio", "audio", "silent.wav", "WanVideoTalk", "is silent"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_is_answered_at_its_node_in_seconds_and_nothing_is_loaded(server, client, mistake):
    name, kind, item, value, marked, said = MISTAKES[mistake]
    client.free()
    write_wrong_files(server.base)
    graph = api_template(name)
    inputs_of(graph, kind)[item] = value
    before, start = len(server.log()), server.cpu_s()
    try:
        error = client.run(graph, expect="error").error()
        answer = f"node {error['node_id']} {error['node_type']}: {error['exception_message']}"
    except PromptRefused as refused:
        answer = str(refused)
    assert server.cpu_s() - start < 5
    assert f"node {first(graph, marked)} {marked}" in answer and said in answer
    assert not loaded(server, before)


@pytest.mark.parametrize("name, value", [("steps", 2000), ("start_step", 9), ("cfg", 5000.0), ("shift", float("nan"))])
def test_a_wrong_value_that_is_linked_to_the_last_node_loads_nothing(server, client, graph, name, value):
    client.free()
    link(graph, "WanVideoSampler", name, value)
    inputs_of(graph, "WanVideoTextEncodeCached")["positive_prompt"] = f"Never encoded before: {name}."
    before = len(server.log())
    run = client.run(graph, expect="error")
    assert run.error()["node_type"] == "WanVideoSampler"
    assert not loaded(server, before)


def test_a_linked_file_name_works_and_a_missing_input_is_answered_by_comfyui(client, graph):
    link(graph, "WanVideoVAELoader", "model_name", inputs_of(graph, "WanVideoVAELoader")["model_name"])
    client.run(graph)
    del inputs_of(graph, "WanVideoVAELoader")["model_name"]
    with pytest.raises(PromptRefused, match="Required input is missing") as refused:
        client.run(graph)
    assert "NoneType" not in str(refused.value) and "positional" not in str(refused.value)


def test_paths_outside_are_answered_alike_whether_there_is_a_file_or_not(server, client, graph):
    secret = server.base / "secret.safetensors"
    secret.write_bytes(b"a secret that nobody is told")
    answers = set()
    for name in (secret, server.base / "absent.safetensors"):
        inputs_of(graph, "WanVideoVAELoader")["model_name"] = str(name)
        with pytest.raises(PromptRefused) as refused:
            client.run(graph)
        answers.add(str(refused.value).replace(name.name, "NAME"))
        assert "leads out of the folders" in str(refused.value) and "a secret" not in str(refused.value)
    assert len(answers) == 1
    link(graph, "WanVideoVAELoader", "model_name", str(secret))
    assert "leads out of the folders" in client.run(graph, expect="error").error()["exception_message"]


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_output_stays_in_the_output_folder(server, client, graph, tmp_path):
    (server.base / "output" / "link").symlink_to(tmp_path)
    for path in ("link", "link/deep", "/tmp/away", "a/../../b", "\\\\server\\share", "C:\\away", "a\nb", "a\0b"):
        inputs_of(graph, "WanVideoImageToVideoMultiTalk")["output_path"] = path
        with pytest.raises(PromptRefused, match="output_path"):
            client.run(graph)
    link(graph, "WanVideoImageToVideoMultiTalk", "output_path", "../away")
    assert "leads out" in client.run(graph, expect="error").error()["exception_message"]
    assert not list(tmp_path.iterdir())


def test_emptied_numbers_of_saved_graphs_are_their_defaults(server, client, graph):
    inputs_of(graph, "WanVideoSampler").update({"start_step": "", "end_step": None})
    client.run(graph)
    assert "start_step was empty: 0 is used" in server.log()


def test_nodes_that_only_feed_what_is_refused_say_what_to_do(client, graph):
    graph["context"] = {"class_type": "WanVideoContextOptions", "inputs": {"context_frames": 81}}
    inputs_of(graph, "WanVideoSampler")["context_options"] = ["context", 0]
    with pytest.raises(PromptRefused, match="WanVideoContextOptions is not supported by this pack: .*window by window"):
        client.run(graph)


def test_speech_that_is_cut_is_said_in_the_page(client, graph):
    inputs_of(graph, "MultiTalkWav2VecEmbeds")["num_frames"] = 30
    run = client.run(graph)
    assert any("num_frames 30 ends the video after 1.20 s" in text for text in run.texts)


def test_answers_are_in_the_language_of_the_page(server, client, graph):
    settings = server.base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    known = settings.read_text(encoding="utf-8") if settings.is_file() else "{}"
    inputs_of(graph, "WanVideoImageToVideoMultiTalk")["width"] = 104
    try:
        settings.write_text(json.dumps(json.loads(known) | {"Comfy.Locale": "zh"}), encoding="utf-8")
        with pytest.raises(PromptRefused, match="width 104 不可用"):
            client.run(graph)
    finally:
        settings.write_text(known, encoding="utf-8")
