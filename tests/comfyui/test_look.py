"""What a user sees in the page while a video is made, and before: it plays under the sampler, speakers are drawn."""

import io

import av
import pytest
from support.comfy_models import HEIGHT, WIDTH, api_template, template

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]
SAVES = ("SaveVideo", "WanVideoSampler", "WanVideoTalkingVideo")
SMALL = {
    "WanVideoImageToVideoMultiTalk": {
        "width": WIDTH,
        "height": HEIGHT,
        "frame_window_size": 13,
        "motion_frame": 5,
        "size": "custom",
    },
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
# Each file that the server names is fetched as it is at that moment.
WATCH = """() => {
    window.seen = [];
    window.app.api.addEventListener("wanvideo.video", async ({ detail }) => {
        const item = { ...detail }, { filename, subfolder } = detail;
        window.seen.push(item);
        const query = new URLSearchParams({ filename, subfolder, type: "output", watch: window.seen.length });
        const answer = await fetch(window.app.api.apiURL(`/view?${query}`));
        item.code = answer.status;
        item.bytes = Array.from(new Uint8Array(await answer.arrayBuffer()));
    });
}"""
PLAYER = """async () => {
    const node = window.app.graph.nodes.find((node) => node.type.startsWith("WanVideoSampler"));
    const widget = node.widgets.find((widget) => widget.name === "talking_video"), video = widget.element;
    const box = video.getBoundingClientRect(), before = video.currentTime;
    await new Promise((resolve) => setTimeout(resolve, 400));
    const text = node.widgets.map((widget) => String(widget.value ?? "")).join(" ");
    return { width: video.videoWidth, duration: video.duration, moved: video.currentTime !== before, text,
             sound: video.webkitAudioDecodedByteCount,
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
    set(picture, "image", "talking_video_portrait.jpg");
    set(one, "audio", "talking_video_speech.flac");
    set(two, "audio", "talking_video_speech_2.flac");
    set(speakers, "multi_audio_type", "add");
    picture.connect(0, speakers, slot("image"));
    one.connect(0, speakers, slot("audio_1"));
    two.connect(0, speakers, slot("audio_2"));
}"""


def inputs_of(graph):
    """What a graph says to the server; ComfyUI's page adds players of its own, and draws a new seed after a run."""
    return {
        number: {name: value for name, value in node["inputs"].items() if name not in ("video-preview", "seed")}
        for number, node in graph.items()
    }


def played(data):
    """How many frames an mp4 shows; it has sound as well."""
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.audio
        return sum(frame.width == WIDTH for frame in container.decode(video=0))


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
    page.page.wait_for_function("() => window.seen.every((item) => item.bytes)", timeout=20_000)
    seen = page.page.evaluate("() => window.seen")
    assert [item["status"] for item in seen] == ["1/3", "2/3", "3/3"]
    assert [item["filename"] for item in seen[:2]] == ["growing.mp4"] * 2
    found = [item for item in seen if item["code"] == 200]  # a busy page may ask when the file is finished and gone
    assert found[0]["filename"] == "growing.mp4" and found[-1] is seen[-1]
    frames = {"1/3": 13, "2/3": 21, "3/3": 29}
    assert all(played(bytes(item["bytes"])) >= frames[item["status"]] for item in found)
    player = page.page.evaluate(PLAYER)
    assert player["width"] == WIDTH and player["moved"] and player["sound"] and not player["kept"]
    assert round(player["duration"] * 25) == 29 and "growing" not in player["src"]
    assert min(player["shown"]) > 30
    assert seen[-1]["filename"] in player["text"]
    page.screenshot(pictures / f"preview{'_nodes2' if nodes2 else ''}.png")
    assert inputs_of(page.api_graph()) == graph
    assert page.console_errors == []


def test_speakers_are_drawn_in_their_node(server, open_page, pictures):
    page = open_page(server)
    page.page.evaluate("() => window.app.graph.clear()")
    page.page.evaluate(ADD)
    run = page.queue(timeout_s=60)
    assert run.status == "success", run.detail
    assert [list(output) for output in run.executed.values()] == [["images"]]
    page.screenshot(pictures / "speakers.png")
    assert page.console_errors == []


def test_a_plan_takes_less_than_a_second_and_loads_nothing(server, client):
    client.free()
    graph = api_template("01_talking_person")
    loader, sound, vae = (
        next(number for number, node in graph.items() if node["class_type"] == kind)
        for kind in ("WanVideoModelLoader", "LoadAudio", "WanVideoVAELoader")
    )
    inputs = {
        "model": [loader, 0], "vae": [vae, 0], "audio_1": [sound, 0], "width": 832, "height": 480,
        "frame_window_size": 81, "motion_frame": 9, "num_frames": 0, "steps": 4, "cfg": 1.0, "audio_cfg_scale": 1.0,
        "shift": 11.0, "scheduler": "flowmatch_distill",
    }  # fmt: skip
    kept = {number: node for number, node in graph.items() if node["class_type"] not in SAVES}
    before, begun = len(server.log()), []

    def note(event):
        if event.kind == "executing" and event.data["node"] == "plan":
            begun.append(server.cpu_s())

    run = client.run({**kept, "plan": {"class_type": "WanVideoPlan", "inputs": inputs}}, on_event=note)
    assert run.status == "success" and server.cpu_s() - begun[-1] < 1
    assert any("3 windows of 4 steps" in text and "MB on the disk" in text for text in run.texts)
    assert "Loaded a" not in server.log()[before:]
