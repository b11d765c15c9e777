"""Bypassed and muted nodes of a saved graph are left out as the page leaves them out of what it queues."""

import json

import pytest
from support.exported import EXAMPLES

from wanvideo.cli.graphs.graph import Link, read_graph
from wanvideo.cli.graphs.to_job import export

RUNS, MUTED, BYPASSED = 0, 2, 4


def entry(number, inputs=(), outputs=(), mode=RUNS, kind="Any"):
    """A node of the page. Args: inputs: (name, type, link) each. outputs: types."""
    keys = [{"name": name, "type": type_, "link": link} for name, type_, link in inputs]
    return {"id": number, "type": kind, "mode": mode, "inputs": keys, "outputs": [{"type": kind} for kind in outputs]}


def read(folder, nodes, links, subgraphs=()):
    graph = {"nodes": nodes, "links": links, "definitions": {"subgraphs": list(subgraphs)}}
    (folder / "graph.json").write_text(json.dumps(graph), encoding="utf-8")
    return read_graph(folder / "graph.json")


SOURCES = [entry(1, outputs=["IMAGE", "MASK"]), entry(2, outputs=["IMAGE"])]
LINKS = [[10, 1, 0, 3, 0, "IMAGE"], [11, 2, 0, 3, 1, "IMAGE"]]


@pytest.mark.parametrize(
    "inputs, outputs, slot, wanted, found",
    [
        ([("n", "INT", None), ("a", "IMAGE", 10)], ["IMAGE"], 0, "IMAGE", Link("1")),  # the first of the type
        ([("a", "IMAGE", 10), ("b", "IMAGE", 11)], ["IMAGE", "IMAGE"], 1, "IMAGE", Link("2")),  # the one beside it
        ([("a", "IMAGE", None), ("b", "IMAGE", 11)], ["IMAGE"], 0, "IMAGE", None),  # though it has no link
        ([("a", "IMAGE", 10)], ["MASK"], 0, "MASK", None),
        ([("a", "IMAGE", 10)], ["*"], 0, "IMAGE", Link("1")),
        ([("a", "IMAGE", 10)], ["IMAGE"], 0, "LATENT,IMAGE", Link("1")),
        ([], ["IMAGE"], 0, "IMAGE", None),
    ],
)
def test_a_bypassed_node_passes_on_the_input_that_the_page_takes(tmp_path, inputs, outputs, slot, wanted, found):
    nodes = [*SOURCES, entry(3, inputs, outputs, BYPASSED), entry(4, [("x", wanted, 12)])]
    graph = read(tmp_path, nodes, [*LINKS, [12, 3, slot, 4, 0, outputs[slot]]])
    assert graph.nodes["4"].inputs.get("x") == found and "3" not in graph.nodes


def test_bypassed_nodes_may_follow_one_another_and_go_in_a_circle(tmp_path):
    passing = [entry(3, [("a", "IMAGE", 10)], ["IMAGE"], BYPASSED), entry(4, [("a", "IMAGE", 12)], ["IMAGE"], BYPASSED)]
    end, links = entry(5, [("x", "IMAGE", 13)]), [[12, 3, 0, 4, 0, "IMAGE"], [13, 4, 0, 5, 0, "IMAGE"]]
    assert read(tmp_path, [*SOURCES, *passing, end], [*LINKS, *links]).nodes["5"].links == {"x": Link("1")}
    passing[0]["inputs"][0]["link"] = 14
    links.append([14, 4, 0, 3, 0, "IMAGE"])
    assert not read(tmp_path, [*SOURCES, *passing, end], [*LINKS, *links]).nodes["5"].links


def test_what_a_muted_node_gave_is_linked_to_nothing(tmp_path):
    nodes = [entry(1, outputs=["IMAGE"], mode=MUTED), entry(3, [("x", "IMAGE", 10)])]
    assert not read(tmp_path, nodes, LINKS[:1]).nodes["3"].links


@pytest.mark.parametrize("outer, inner", [(BYPASSED, RUNS), (RUNS, BYPASSED), (MUTED, RUNS)])
def test_subgraphs_are_passed_and_have_bypassed_nodes_themselves(tmp_path, outer, inner):
    ends = [("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")] * 2
    values = [(1, -10, 0, 7, 0, "IMAGE"), (2, 7, 0, -20, 0, "IMAGE")]
    definition = {
        "id": "inside", "inputs": [{"name": "a"}], "outputs": [{"name": "b"}],
        "nodes": [entry(7, [("y", "IMAGE", 1)], ["IMAGE"], inner)],
        "links": [dict(zip(names, link, strict=True)) for names, link in zip(ends, values, strict=True)],
    }  # fmt: skip
    around = entry(3, [("a", "IMAGE", 10)], ["IMAGE"], outer, "inside")
    links = [*LINKS[:1], [12, 3, 0, 4, 0, "IMAGE"]]
    graph = read(tmp_path, [*SOURCES, around, entry(4, [("x", "IMAGE", 12)])], links, [definition])
    assert graph.nodes["4"].links == ({} if outer == MUTED else {"x": Link("1")})
    assert set(graph.nodes) == {"1", "2", "4"}


def test_a_lora_before_a_bypassed_one_is_still_there(tmp_path):
    """It was lost with all that stood before it, and so were the frames."""
    saved = json.loads((EXAMPLES / "01_talking_person.json").read_text(encoding="utf-8"))
    usual = export(read_graph(EXAMPLES / "01_talking_person.json"))
    first = next(node for node in saved["nodes"] if node["type"] == "WanVideoLoraSelect")
    second = json.loads(json.dumps(first)) | {"id": 900, "mode": BYPASSED}
    (link,) = [link for link in saved["links"] if link[1] == first["id"]]
    saved["nodes"].append(second)
    saved["links"].append([901, first["id"], 0, 900, 0, "WANVIDLORA"])
    second["inputs"][0]["link"], link[1] = 901, 900
    (tmp_path / "graph.json").write_text(json.dumps(saved), encoding="utf-8")
    found = export(read_graph(tmp_path / "graph.json"))
    assert "--lora_dir" in usual.flags and found == usual
