"""Graphs that were saved beside WanVideoWrapper, where our nodes have a prefix, run where that pack is gone."""

import re

import pytest
from support.comfy_models import api_template, shrink, template
from support.comfy_server import PACK_NAME

pytestmark = pytest.mark.comfyui
NAME = "01_talking_person"


def test_a_queued_graph_with_the_other_names_runs(client):
    ours, graph = client.nodes_of(PACK_NAME), shrink(api_template(NAME))
    for node in graph.values():
        if node["class_type"] == "MultiTalkWav2VecEmbeds":
            node["inputs"]["num_frames"] = 29
        if node["class_type"] in ours:
            node["class_type"] = f"Talk{node['class_type']}"
    assert any(file.filename.endswith(".mp4") for file in client.run(graph).files())


@pytest.mark.browser
def test_the_page_offers_to_replace_them_and_keeps_every_value(server, client, open_page):
    ours, graph = client.nodes_of(PACK_NAME), template(NAME)
    renamed = [node for node in graph["nodes"] if node["type"] in ours]
    for node in renamed:
        node["type"] = f"Talk{node['type']}"
    page = open_page(server)
    assert len(page.load(graph).missing) == len(renamed) == 11
    page.page.get_by_text("View details").first.click()
    page.page.get_by_role("button", name=re.compile("^replace all$", re.IGNORECASE)).click()
    page.page.wait_for_function(
        "() => window.app.graph.nodes.every((node) => LiteGraph.registered_node_types[node.type])"
    )
    sent, filed = page.api_graph(), api_template(NAME)
    for number, node in filed.items():
        assert sent[number]["class_type"] == node["class_type"]
        if node["class_type"] in ours:
            assert sent[number]["inputs"] == node["inputs"]
