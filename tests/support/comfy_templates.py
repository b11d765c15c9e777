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
