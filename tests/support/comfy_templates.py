"""What a template must be in every ComfyUI: whole when it is opened, and the same graph in its two forms."""

from __future__ import annotations

from typing import Any

from .comfy_client import ComfyClient
from .comfy_models import api_template, template
from .comfy_page import ComfyPage
from .comfy_server import PACK_NAME


def assert_opens_whole(page: ComfyPage, client: ComfyClient, name: str) -> None:
    """Open a template: nothing is missing, marked or said, and the page sends the graph that its API file holds."""
    report = page.load(template(name), name)
    assert not (report.missing or report.marked or report.absent or report.dialogs), f"{name}: {report}"
    assert_same_graph(page.api_graph(), client, name)


def assert_same_graph(sent: dict[str, Any], client: ComfyClient, name: str) -> None:
    """What the page sends is the graph of a template's API file.

    Nodes of this pack have the same inputs to the last one. Of ComfyUI's nodes those inputs count that the file and the
    server both know: newer versions add some, as SaveVideo's "format.codec" (0.33), and older ones lack some, as
    CreateVideo's "bit_depth" (0.3.75). The page also sends players of its own.
    """
    filed, known = api_template(name), client.object_info()
    assert set(sent) == set(filed), name
    for number, node in filed.items():
        assert sent[number]["class_type"] == node["class_type"], f"{name}, node {number}"
        info = known[node["class_type"]]
        ours = info["python_module"] == f"custom_nodes.{PACK_NAME}"
        common = set(node["inputs"]) & {key for group in info["input"].values() for key in group}
        page_inputs, file_inputs = (
            {key: value for key, value in inputs.items() if (key != "video-preview" if ours else key in common)}
            for inputs in (sent[number]["inputs"], node["inputs"])
        )
        assert page_inputs == file_inputs, f"{name}, node {number} {node['class_type']}"


def linked_to_a_refused_input() -> dict[str, Any]:
    """A graph as others save it: all sockets are in it, and one that is refused is linked."""
    graph = template("01_talking_person")
    sampler = next(node for node in graph["nodes"] if node["type"] == "WanVideoSampler")
    kinds = {"feta_args": "FETAARGS", "flowedit_args": "FLOWEDITARGS", "context_options": "WANVIDCONTEXT"}
    refused = [{"name": name, "type": kind, "link": None} for name, kind in kinds.items()]
    refused[-1]["link"] = 999
    first, *others = (item for item in sampler["inputs"] if item["name"] not in kinds)
    sampler["inputs"] = [first, *refused, *others]
    places = {item["link"]: place for place, item in enumerate(sampler["inputs"])}
    for link in graph["links"]:
        link[4] = places[link[0]] if link[3] == sampler["id"] else link[4]
    output = {"name": "wanvidcontext", "type": "WANVIDCONTEXT", "links": [999]}
    graph["nodes"].append(
        {"id": 900, "type": "WanVideoContextOptions", "pos": [0, -400], "size": [200, 60], "flags": {}, "mode": 0,
         "order": 0, "inputs": [], "outputs": [output], "properties": {}, "widgets_values": []}
    )  # fmt: skip
    graph["links"].append([999, 900, 0, sampler["id"], 3, "WANVIDCONTEXT"])
    return graph


def assert_shows_a_refused_input_where_it_is_linked(page: ComfyPage, client: ComfyClient) -> None:
    """In no other graph, where it was linked, also when it is saved and loaded again, and it is refused when queued."""
    page.load(template("01_talking_person"))
    own = page.sockets("WanVideoSampler")
    assert len(own) == 10 and not {"context_options", "feta_args", "uni3c_embeds"} & set(own)
    page.load(linked_to_a_refused_input())
    assert page.sockets("WanVideoSampler") == [*own, "context_options"]
    graph = page.api_graph()
    sampler = next(node for node in graph.values() if node["class_type"] == "WanVideoSampler")
    assert sampler["inputs"]["context_options"] == ["900", 0]
    del sampler["inputs"]["context_options"], graph["900"]
    assert_same_graph(graph, client, "01_talking_person")  # the other links are where they were
    page.save_and_reload()
    assert page.sockets("WanVideoSampler") == [*own, "context_options"]
    run = page.queue(timeout_s=30)
    assert run.status == "refused" and "900 WanVideoContextOptions" in page.marked()


COPY = """() => {
    const { graph, canvas } = window.app, number = window.LiteGraph.createNode("PrimitiveFloat");
    graph.add(number);
    const sampler = graph.nodes.find((node) => node.type === "WanVideoSampler");
    number.connect(0, sampler, sampler.inputs.findIndex((input) => input.name === "cfg"));
    canvas.copyToClipboard([number, sampler, graph.getNodeById(900)]);
    canvas.pasteFromClipboard();
}"""


def assert_copies_keep_their_links(page: ComfyPage) -> None:
    """A sampler that is copied with what is linked to it, a refused input among it, is linked alike."""
    page.load(linked_to_a_refused_input())
    page.page.evaluate(COPY)
    graph = page.api_graph()
    one, other = (node["inputs"] for node in graph.values() if node["class_type"] == "WanVideoSampler")
    for name in ("cfg", "context_options"):
        (number, _), (source, _) = one[name], other[name]
        assert number != source and graph[number]["class_type"] == graph[source]["class_type"]
    kept = {name: value for name, value in one.items() if not isinstance(value, list)}
    assert kept == {name: value for name, value in other.items() if not isinstance(value, list)}
