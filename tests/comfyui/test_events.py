"""What is said under nodes reaches those of the workflow that runs: beside other tabs, and inside subgraphs."""

import json

import pytest
from support.comfy_models import ROOT, api_template
from support.comfy_templates import assert_copies_keep_their_links

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]
ADD = """() => {
    const graph = window.app.graph, nodes = ["WanVideoModelLoader", "WanVideoPlan"].map((kind, at) => {
        const node = window.LiteGraph.createNode(kind);
        node.pos = [at * 500, 0];
        graph.add(node);
        return node;
    });
    nodes[0].connect(0, nodes[1], nodes[1].inputs.findIndex((input) => input.name === "model"));
}"""
RECORD = """() => {
    window.told = [];
    window.app.api.addEventListener("wanvideo.text", ({ detail }) => window.told.push(detail));
}"""
AGAIN = """() => {
    for (const detail of [...window.told])
        window.app.api.dispatchEvent(new CustomEvent("wanvideo.text", { detail }));
}"""
GROUP = """() => {
    const { node } = window.app.graph.convertToSubgraph(new Set(window.app.graph.nodes));
    const other = window.LiteGraph.createNode(node.type);
    other.pos = [0, 600];
    window.app.graph.add(other);
    return [node.id, other.id].map(String);
}"""
INSIDE = """([id]) => {
    const graph = window.app.graph.getNodeById(Number(id)).subgraph;
    const plan = graph.nodes.find((node) => node.type === "WanVideoPlan");
    return plan.widgets.find((widget) => widget.name === "talking_text")?.element.firstChild.textContent ?? "";
}"""


@pytest.fixture
def page(server, open_page):
    page = open_page(server)
    page.page.evaluate("() => window.app.graph.clear()")
    page.page.evaluate(ADD)
    page.page.evaluate(RECORD)
    return page


def switch(page):
    """Go to the tab before, as its command does."""
    page.page.evaluate("() => window.app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    page.page.wait_for_timeout(500)


def test_what_is_said_while_another_tab_is_open_is_there_when_its_own_is(page):
    own = page.workflow()
    page.load(own | {"id": "0b0d8b7e-6a52-4c7e-9a3e-1f1c5d6f7a01"}, "one")
    run = page.queue(timeout_s=60)
    assert run.status == "success", run.detail
    text = page.said("WanVideoPlan")
    assert "1 window of" in text
    page.load(own | {"id": "0b0d8b7e-6a52-4c7e-9a3e-1f1c5d6f7a02"}, "other")
    page.page.evaluate(AGAIN)
    page.page.wait_for_timeout(500)
    assert page.said("WanVideoPlan") == ""
    switch(page)
    assert page.said("WanVideoPlan") == text
    assert page.console_errors == []


def test_what_is_said_inside_subgraphs_is_at_the_node_that_says_it(page):
    ids = page.page.evaluate(GROUP)
    run = page.queue(timeout_s=60)
    assert run.status == "success", run.detail
    nodes = {detail["node"].split(":")[0] for detail in page.page.evaluate("() => window.told")}
    assert nodes == set(ids)
    assert "1 window of" in page.page.evaluate(INSIDE, ids)
    assert page.console_errors == []


def test_copies_keep_their_links(page):
    assert_copies_keep_their_links(page)


def test_the_blueprint_opens_whole(page):
    (file,) = (ROOT / "subgraphs").glob("*.json")
    report = page.load(json.loads(file.read_text(encoding="utf-8")))
    assert not (report.missing or report.marked or report.absent or report.dialogs), report
    (filed,) = (node for node in api_template("00_quick_start").values() if node["class_type"] == "WanVideoTalk")
    widgets = {name: value for name, value in filed["inputs"].items() if not isinstance(value, list)}
    assert page.api_graph()["2:1"]["inputs"] == widgets
