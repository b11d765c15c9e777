"""What a user sees in the page while a video is made, and before: it plays under the sampler, speakers are drawn."""

import os
from pathlib import Path

import pytest
from support.comfy_models import HEIGHT, WIDTH, template

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]
SMALL = {
    "WanVideoImageToVideoMultiTalk": {"width": WIDTH, "height": HEIGHT, "frame_window_size": 13, "motion_frame": 5},
    "MultiTalkWav2VecEmbeds": {"num_frames": 29},
    "WanVideoModelLoader": {"base_precision": "fp32"},
    "WanVideoVAELoader": {"precision": "fp32"},
    "WanVideoSampler": {"steps": 200},  # a window takes longer than looking at the one before
}
SET = """(kinds) => {
    for (const node of window.app.graph.nodes)
        for (const [name, value] of Object.entries(kinds[node.type] ?? {}))
            node.widgets.find((widget) => widget.name === name).value = value;
}"""
# Each file that the server names is played as it is at that moment.
WATCH = """() => {
    window.seen = [];
    window.app.api.addEventListener("wanvideo.video", async ({ detail }) => {
        const video = document.createElement("video"), item = { ...detail };
        window.seen.push(item);
        video.muted = true;
        video.onended = () => { item.played = video.currentTime; item.sound = video.webkitAudioDecodedByteCount; };
        const { filename, subfolder } = detail;
        const query = new URLSearchParams({ filename, subfolder, type: "output", watch: window.seen.length });
        video.onerror = () => { item.error = video.error.message; };
        video.src = window.app.api.apiURL(`/view?${query}`);
        await video.play();
        item.width = video.videoWidth;
    });
}"""
PLAYER = """async () => {
    const node = window.app.graph.nodes.find((node) => node.type.startsWith("WanVideoSampler"));
    const widget = node.widgets.find((widget) => widget.name === "talking_video"), video = widget.element;
    const box = video.getBoundingClientRect(), before = video.currentTime;
    await new Promise((resolve) => setTimeout(resolve, 400));
    const text = node.widgets.map((widget) => String(widget.value ?? "")).join(" ");
    return { width: video.videoWidth, duration: video.duration, moved: video.currentTime !== before, text,
             shown: [box.width, box.height], src: video.src, kept: widget.serialize !== false };
}"""
ADD = """() => {
    const graph = window.app.graph, kinds = ["LoadImage", "LoadAudio", "LoadAudio", "WanVideoSpeakers"];
    const nodes = kinds.map((kind, at) => {
        const node = window.LiteGraph.createNode(kind);
        node.pos = [at < 3 ? 0 : 450, at < 3 ? at * 420 : 0];
        graph.add(node);
        return node;
    });
    const [picture, one, two, speakers] = nodes, slot = (name) => speakers.inputs.findIndex((i) => i.name === name);
    const set = (node, name, value) => { node.widgets.find((widget) => widget.name === name).value = value; };
    set(picture, "image", "two_people.jpg");
    set(one, "audio", "speech.flac");
    set(two, "audio", "speech_2.flac");
    set(speakers, "multi_audio_type", "add");
    picture.connect(0, speakers, slot("image"));
    one.connect(0, speakers, slot("audio_1"));
    two.connect(0, speakers, slot("audio_2"));
}"""


def inputs_of(graph):
    """What a graph says to the server; ComfyUI's page adds players of its own to what it sends."""
    return {
        number: {name: value for name, value in node["inputs"].items() if name != "video-preview"}
        for number, node in graph.items()
    }


@pytest.fixture
def pictures(tmp_path):
    folder = Path(os.environ.get("WANVIDEO_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes2"])
def test_finished_windows_play_under_the_sampler_while_the_rest_is_made(server, open_page, pictures, nodes2):
    page = open_page(server, nodes2=nodes2)
    page.load(template("01_talking_person"))
    page.page.evaluate(SET, SMALL)
    page.page.evaluate("(seed) => window.app.graph.nodes.forEach((node) => node.widgets?.forEach((widget) => "
                       "{ if (widget.name === 'seed') widget.value = seed; }))", int(nodes2) + 71)  # fmt: skip
    graph = inputs_of(page.api_graph())
    page.page.evaluate(WATCH)
    run = page.queue(timeout_s=300)
    assert run.status == "success", run.detail
    page.page.wait_for_function("() => window.seen.every((item) => item.played || item.error)", timeout=20_000)
    seen = page.page.evaluate("() => window.seen")
    assert not [item for item in seen if "error" in item], seen
    assert [item["status"] for item in seen] == ["1/3", "2/3", "3/3"]
    assert [item["filename"] for item in seen[:2]] == ["growing.mp4"] * 2
    assert all(item["width"] == WIDTH and item["sound"] > 0 for item in seen), seen
    frames = [round(item["played"] * 25) for item in seen]  # sound may end a little later
    assert all(0 <= count - wanted < 4 for count, wanted in zip(frames, (13, 21, 29), strict=True)), frames
    player = page.page.evaluate(PLAYER)
    assert player["width"] == WIDTH and player["moved"] and not player["kept"]
    assert round(player["duration"] * 25) == 29 and "growing" not in player["src"]
    assert min(player["shown"]) > 30
    assert seen[-1]["filename"] in player["text"]
    page.screenshot(pictures / f"preview{'_nodes2' if nodes2 else ''}.png")
    assert inputs_of(page.api_graph()) == graph
    assert page.console_errors == [] and page.http_errors == []


def test_speakers_are_drawn_in_their_node(server, open_page, pictures):
    page = open_page(server)
    page.page.evaluate("() => window.app.graph.clear()")
    page.page.evaluate(ADD)
    run = page.queue(timeout_s=60)
    assert run.status == "success", run.detail
    assert [list(output) for output in run.executed.values()] == [["images"]]
    page.screenshot(pictures / "speakers.png")
    assert page.console_errors == []
