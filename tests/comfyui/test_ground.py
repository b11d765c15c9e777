"""The ground under the node tests: a real server, its websocket and its page, with core nodes and two tiny packs."""

import copy
import time

import av
import numpy as np
import psutil
import pytest
import soundfile
from PIL import Image
from support import comfy_page, comfy_server
from support.comfy_client import ComfyClient, PromptRefused, UnexpectedEnd
from support.comfy_server import ComfyServer, Unavailable

pytestmark = pytest.mark.comfyui

VIDEO_GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 8, "color": 0xFF0000}},
    "2": {"class_type": "EmptyAudio", "inputs": {"duration": 1.0, "sample_rate": 16000, "channels": 1}},
    "3": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 8.0, "audio": ["2", 0]}},
    "4": {
        "class_type": "SaveVideo",
        "inputs": {"video": ["3", 0], "filename_prefix": "ground/video", "format": "auto", "codec": "auto"},
    },
}
COUNT_GRAPH = {
    "7": {"class_type": "GroundCount", "inputs": {"steps": 4, "step_s": 0.12, "fail": False}},
    "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "ground/count"}},
}
COUNT_NODE = """
import time
import comfy.utils
import torch
from PIL import Image
from .shade import SHADE

class GroundCount:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "steps": ("INT", {"default": 4, "min": 1, "max": 1000}),
            "step_s": ("FLOAT", {"default": 0.12, "min": 0.0, "max": 1.0, "step": 0.01}),
            "fail": ("BOOLEAN", {"default": False}),
        }}
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "count", "ground"

    def count(self, steps, step_s, fail):
        progress = comfy.utils.ProgressBar(steps)
        for step in range(steps):
            time.sleep(step_s)
            progress.update_absolute(step + 1, steps, ("JPEG", Image.new("RGB", (32, 32), (step * 8, 0, 0)), 32))
        if fail:
            raise ValueError("counted in vain")
        return (torch.full((1, 32, 32, 3), SHADE),)

NODE_CLASS_MAPPINGS = {"GroundCount": GroundCount}
"""
WORKFLOW = {
    "last_node_id": 2,
    "last_link_id": 1,
    "nodes": [
        {
            "id": 1, "type": "EmptyImage", "pos": [100, 100], "size": [270, 130], "flags": {}, "order": 0, "mode": 0,
            "inputs": [], "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}], "properties": {},
            "widgets_values": [64, 48, 2, 255],
        },
        {
            "id": 2, "type": "SaveImage", "pos": [500, 100], "size": [270, 270], "flags": {}, "order": 1, "mode": 0,
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}], "outputs": [], "properties": {},
            "widgets_values": ["ground/说话 🙂"],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    "groups": [],
    "config": {},
    "extra": {},
    "version": 0.4,
}  # fmt: skip


@pytest.fixture(scope="module")
def ground(comfyui, tmp_path_factory):
    """A server with one pack that works, in a folder whose name is no Python name, and one that does not."""
    server = ComfyServer(comfyui, tmp_path_factory.mktemp("ground"))
    for name, files in {
        "ground-pack": {"__init__.py": COUNT_NODE, "shade.py": "SHADE = 0.5\n"},
        "broken-pack": {"__init__.py": "from .no_such_module import nothing\n"},
    }.items():
        for file, source in files.items():
            (server.custom_nodes / name).mkdir(exist_ok=True)
            (server.custom_nodes / name / file).write_text(source, encoding="utf-8")
    with server:
        yield server


@pytest.fixture
def client(ground):
    return ComfyClient(ground.url)


def test_core_and_pack_nodes_are_there(client):
    assert set(client.nodes_of("ground-pack")) == {"GroundCount"}
    assert {"EmptyImage", "LoadAudio", "CreateVideo", "SaveVideo"} <= set(client.object_info())
    assert client.object_info("EmptyImage")["EmptyImage"]["output"] == ["IMAGE"]


def test_a_pack_that_cannot_be_imported_is_named_with_its_error(ground):
    ((name, said),) = ground.import_errors().items()
    assert name == "broken-pack"
    assert "no_such_module" in said and "Traceback" in said


def test_a_graph_gives_a_video_with_sound(client, tmp_path):
    run = client.run(VIDEO_GRAPH)
    assert run.data_of("execution_start") and run.data_of("execution_cached") and run.data_of("executed")
    assert set(run.executed_nodes()) == set(VIDEO_GRAPH)
    assert client.history(run.prompt_id)["status"]["completed"]
    (file,) = run.files()
    assert file.node == "4" and file.subfolder == "ground"
    with av.open(client.download(file, tmp_path)) as video:
        assert {stream.type for stream in video.streams} == {"video", "audio"}
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 8 and frames[0].shape == (48, 64, 3)
    assert frames[0][..., 0].min() > 200 and frames[0][..., 1:].max() < 50
    assert "2" in client.run(VIDEO_GRAPH).cached_nodes()


def test_progress_and_previews_reach_the_client(client):
    client.free()
    run = client.run(COUNT_GRAPH)
    assert [data["value"] for data in run.data_of("progress") if data["node"] == "7"][-1] == 4
    assert any(
        data["nodes"]["7"]["state"] == "running" for data in run.data_of("progress_state") if "7" in data["nodes"]
    )
    assert len(run.previews) == 4
    assert {preview.mime for preview in run.previews} == {"image/jpeg"}
    assert run.previews[0].picture.startswith(b"\xff\xd8") and run.previews[0].at_s < run.previews[-1].at_s


def test_uploads_are_found_by_their_loaders(client, tmp_path):
    Image.fromarray(np.full((16, 24, 3), 90, np.uint8)).save(tmp_path / "人物.png")
    soundfile.write(tmp_path / "speech.wav", np.zeros(8000, np.float32), 16000)
    (clip,) = client.run(VIDEO_GRAPH).files()
    names = {
        "LoadImage": client.upload(tmp_path / "人物.png"),
        "LoadAudio": client.upload(tmp_path / "speech.wav", subfolder="voices"),
        "LoadVideo": client.upload(client.download(clip, tmp_path)),
    }
    assert names["LoadAudio"] == "voices/speech.wav"
    run = client.run({
        "1": {"class_type": "LoadImage", "inputs": {"image": names["LoadImage"]}},
        "2": {"class_type": "LoadAudio", "inputs": {"audio": names["LoadAudio"]}},
        "3": {"class_type": "LoadVideo", "inputs": {"file": names["LoadVideo"]}},
        "4": {"class_type": "GetVideoComponents", "inputs": {"video": ["3", 0]}},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
        "7": {"class_type": "PreviewAudio", "inputs": {"audio": ["2", 0]}},
    })  # fmt: skip
    assert sorted(file.node for file in run.files() if file.node != "7") == ["5"] + ["6"] * 8


def test_a_run_is_interrupted(client):
    graph = copy.deepcopy(COUNT_GRAPH)
    graph["7"]["inputs"]["steps"] = 500

    def interrupt_after_a_step(event):
        if event.kind == "progress":
            client.interrupt(event.data["prompt_id"])

    run = client.run(graph, expect="interrupted", on_event=interrupt_after_a_step)
    assert run.history["status"]["status_str"] == "error" and not run.outputs()
    assert client.queue() == {"queue_running": [], "queue_pending": []}


def test_a_run_that_takes_too_long_is_ended(client):
    graph = copy.deepcopy(COUNT_GRAPH)
    graph["7"]["inputs"]["steps"] = 501
    with pytest.raises(TimeoutError, match="did not end within 0.5 s"):
        client.run(graph, timeout_s=0.5)
    end = time.monotonic() + 40  # all of its steps would take 60
    while client.queue()["queue_running"]:
        assert time.monotonic() < end, "the run goes on"
        time.sleep(0.05)


def test_a_failing_node_is_reported_with_its_error(client):
    graph = copy.deepcopy(COUNT_GRAPH)
    graph["7"]["inputs"] |= {"fail": True, "steps": 1}
    with pytest.raises(UnexpectedEnd, match="error instead of success in node 7 GroundCount(?s:.)*counted in vain"):
        client.run(graph)
    assert client.run(graph, expect="error").error()["exception_type"] == "ValueError"


def test_a_wrong_value_in_one_branch_is_not_passed_over(client):
    graph = copy.deepcopy(COUNT_GRAPH) | copy.deepcopy(VIDEO_GRAPH)
    graph["7"]["inputs"]["steps"] = 5000
    with pytest.raises(PromptRefused, match="node 7 GroundCount: .*max.*steps"):
        client.run(graph)
    with pytest.raises(PromptRefused, match="NoSuchNode"):
        client.run({"1": {"class_type": "NoSuchNode", "inputs": {}}})


@pytest.mark.browser
@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes2"])
def test_a_workflow_is_shown_run_and_kept(ground, client, open_page, tmp_path, nodes2):
    page = open_page(ground, nodes2=nodes2)
    report = page.load(WORKFLOW)
    assert report.types == ["EmptyImage", "SaveImage"]
    assert not (report.missing or report.marked or report.absent or report.dialogs)
    empty = page.screenshot(tmp_path / "empty.png")
    run = page.queue()
    assert run.status == "success" and len(run.executed["2"]["images"]) == 2
    assert colors_of(page.screenshot(tmp_path / "run.png")) - colors_of(empty) >= {(0, 0, 255)}
    client.run(page.api_graph())
    before, after = page.save_and_reload()
    assert before == after
    assert before["1"] == {"width": 64, "height": 48, "batch_size": 2, "color": 255}
    assert before["2"] == {"filename_prefix": "ground/说话 🙂"}
    assert page.console_errors == [] and page.http_errors == []


@pytest.mark.browser
def test_the_page_tells_what_is_wrong_with_a_workflow(ground, open_page):
    page = open_page(ground)
    broken = copy.deepcopy(WORKFLOW)
    broken["nodes"][0]["type"] = "NoSuchNode"
    report = page.load(broken)
    assert report.missing == ["NoSuchNode"] and report.marked == ["1 NoSuchNode"]
    assert any("missing" in dialog.lower() for dialog in report.dialogs)
    with page.page.expect_response("**/none.js"):
        page.page.evaluate("() => { console.error('a slip'); fetch('/extensions/ground-pack/none.js'); }")
    assert [error.split(" (")[0] for error in page.console_errors] == ["a slip"]
    assert page.http_errors == ["404 /extensions/ground-pack/none.js"]
    refused = page.queue()
    assert refused.status == "refused" and "class_type" in str(refused.detail["refusal"])


def test_a_stopped_server_leaves_no_process(comfyui, tmp_path):
    server = ComfyServer(comfyui, tmp_path)
    server.start()
    family = [server.process, *server.process.children(recursive=True)]
    server.stop()
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)


def test_a_server_that_cannot_start_shows_its_log(comfyui, tmp_path):
    with pytest.raises(RuntimeError, match="ComfyUI ended with(?s:.)*--no-such-argument"):
        ComfyServer(comfyui, tmp_path, ["--no-such-argument"]).start()


def test_what_is_missing_is_said_before_anything_is_downloaded(monkeypatch, tmp_path):
    for name in ("CI", "COMFYUI_PATH", "COMFYUI_VERSION", "WANVIDEO_TEST_DOWNLOAD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(Unavailable, match="COMFYUI_PATH .* WANVIDEO_TEST_DOWNLOAD=1"):
        comfy_server.find_comfyui()
    with pytest.raises(ValueError, match="0.1.0 is not known. Known: 0.30.0"):
        comfy_server.find_comfyui("0.1.0")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no ComfyUI"):
        comfy_server.find_comfyui()
    monkeypatch.setenv("CHROMIUM_PATH", str(tmp_path / "chromium"))
    with pytest.raises(ValueError, match="CHROMIUM_PATH"):
        comfy_page.find_chromium("")


def colors_of(picture):
    return {tuple(color) for color in np.unique(np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3), axis=0)}
