"""The oldest supported ComfyUI, and the newest page: templates open whole and run, and nodes are what they were.

The other tests run in one ComfyUI, which COMFYUI_VERSION, COMFYUI_PAGE or COMFYUI_PATH names; these run in each that
can be had from the package index, beside that one.
"""

import re
import shutil
from pathlib import Path

import pytest
from support.comfy_client import ComfyClient
from support.comfy_models import (
    HEIGHT,
    MULTI,
    TEMPLATES,
    WIDTH,
    api_template,
    overridden,
    required,
    shrink,
    start_with_pack,
    template,
)
from support.comfy_server import NEWEST, NEWEST_PAGE, OLDEST, PACK_NAME, find_comfyui
from support.comfy_templates import (
    assert_copies_keep_their_links,
    assert_opens_whole,
    assert_shows_a_refused_input_where_it_is_linked,
)

pytestmark = pytest.mark.comfyui
MATRIX = [(OLDEST, None), (NEWEST, NEWEST_PAGE)]


@pytest.fixture(scope="module", params=MATRIX, ids=["oldest", "newest page"])
def other(request, tmp_path_factory):
    version, page = request.param
    with required():
        comfyui = find_comfyui(version, page)
    with start_with_pack(comfyui, tmp_path_factory.mktemp(f"comfyui-{version}")) as server:
        # The oldest page looks for a file only in the folder from which its graph downloads it.
        shutil.copyfile(server.models / MULTI, server.models / "diffusion_models" / Path(MULTI).name)
        assert ComfyClient(server.url).version() == version
        yield server


def contract_of(node):
    """What graphs and other programs rely on: inputs in their order with type and default, and outputs."""
    inputs = [
        (group, name, spec[0] if isinstance(spec[0], str) else "COMBO", (spec[1:] or [{}])[0].get("default"))
        for group in ("required", "optional") for name, spec in node["input"].get(group, {}).items()
    ]  # fmt: skip
    return inputs, node["output"], node["output_name"], node["output_node"]


def test_nodes_are_the_same_in_every_version(server, other):
    here, there = (ComfyClient(one.url).nodes_of(PACK_NAME) for one in (server, other))
    assert len(here) >= 38
    assert {name: contract_of(node) for name, node in there.items()} == {
        name: contract_of(node) for name, node in here.items()
    }


@pytest.mark.browser
@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes2"])
def test_templates_open_whole(other, open_page, nodes2):
    page = open_page(other, nodes2=nodes2)
    for name in TEMPLATES:
        assert_opens_whole(page, ComfyClient(other.url), name)
    before, after = page.save_and_reload()
    assert before == after
    assert page.console_errors == [] and page.http_errors == []


@pytest.mark.browser
@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes2"])
def test_a_refused_input_is_shown_only_where_it_is_linked(other, open_page, nodes2):
    assert_shows_a_refused_input_where_it_is_linked(open_page(other, nodes2=nodes2), ComfyClient(other.url))


@pytest.mark.browser
def test_copies_keep_their_links(other, open_page):
    assert_copies_keep_their_links(open_page(other))


@pytest.mark.browser
def test_the_result_is_named_in_its_node_in_both_renderers(other, open_page, pictures):
    page = open_page(other)
    page.load(template("00_quick_start"))
    with overridden(other, {"WanVideoTalk": {"width": WIDTH, "height": HEIGHT, "size": "custom"}}):
        run = page.queue()
    assert run.status == "success", run.detail
    for nodes2 in (False, True):
        page.draw_nodes(nodes2=nodes2)
        page.screenshot(pictures / f"named_{ComfyClient(other.url).version()}{'_nodes2' if nodes2 else ''}.png")
        assert re.fullmatch(r"talking_video\S*/video.mp4", page.said("WanVideoTalk"))


@pytest.mark.parametrize("name", ["01_talking_person", "02_two_people_masks", "06_from_wanvideowrapper"])
def test_a_template_makes_a_video(other, name):
    graph = shrink(api_template(name))
    for node in graph.values():
        if node["class_type"] == "MultiTalkWav2VecEmbeds":
            node["inputs"]["num_frames"] = 29
    assert any(file.filename.endswith(".mp4") for file in ComfyClient(other.url).run(graph).files())
