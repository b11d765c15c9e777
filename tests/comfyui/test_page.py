"""The templates in the real page of ComfyUI: they open whole, look right, run, and keep what was set."""

import json
from pathlib import Path
from urllib.parse import quote

import pytest
from support.comfy_models import HEIGHT, TEMPLATES, WIDTH, overridden, template, write_wrong_files
from support.comfy_server import PACK_NAME
from support.comfy_templates import (
    assert_opens_whole,
    assert_same_graph,
    assert_shows_a_refused_input_where_it_is_linked,
)

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]
SMALL = {
    "WanVideoImageToVideoMultiTalk": {
        "width": WIDTH, "height": HEIGHT, "frame_window_size": 13, "motion_frame": 5, "size": "custom",
    },
    "WanVideoTalk": {"width": WIDTH, "height": HEIGHT, "size": "custom"},
    "ImageScale": {"width": WIDTH, "height": HEIGHT},
    "MultiTalkWav2VecEmbeds": {"num_frames": 13},
    "WanVideoModelLoader": {"base_precision": "fp32"},
    "WanVideoVAELoader": {"precision": "fp32"},
}  # fmt: skip
BADGE = 24  # the classic page writes above a node which pack it is of


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes2"])
def test_templates_open_and_keep_every_widget(server, client, open_page, pictures, nodes2):
    page = open_page(server, nodes2=nodes2)
    for name in TEMPLATES:
        assert_opens_whole(page, client, name)
        shot = page.screenshot(pictures / f"{name}{'_nodes2' if nodes2 else ''}.png")
        assert shot.stat().st_size > 50_000
        assert not page.overlaps(gap=BADGE), name
        before, after = page.save_and_reload()
        assert before == after, name
    assert page.console_errors == [] and page.http_errors == []


@pytest.mark.parametrize("name, nodes2", [*((name, False) for name in TEMPLATES), ("00_quick_start", True)])
def test_a_template_plays_its_video_after_one_click_and_nothing_overlaps(
    server, client, open_page, pictures, name, nodes2
):
    client.free()  # what another test has computed would be taken as it is
    page = open_page(server, nodes2=nodes2)
    page.load(template(name), name)
    with overridden(server, SMALL):
        run = page.queue(timeout_s=300)
    assert run.status == "success", run.detail
    (saved,) = [output for output in run.executed.values() if "images" in output]
    assert saved["images"][0]["filename"].endswith(".mp4")
    # Under the node that makes it, where it is saved, and that of a source.
    num_videos = 3 if name in ("03_restyle_video", "08_dub_video") else 2
    shown = [player for player in page.players(num_videos) if (player.width, player.height) == (WIDTH, HEIGHT)]
    assert len(shown) == 2 and all(player.moves and player.has_sound for player in shown)
    assert len({round(player.duration_s * 25) for player in shown}) == 1
    for drawn in (nodes2, not nodes2):
        page.draw_nodes(nodes2=drawn)
        page.screenshot(pictures / f"{name}_finished{'_nodes2' if drawn else ''}.png")
        assert not page.overlaps(gap=BADGE)
    assert_same_graph(page.api_graph(), client, name)  # run again, it goes on with an interrupted run
    assert page.console_errors == []


def test_what_is_wrong_is_marked_at_its_node(server, open_page):
    write_wrong_files(server.base)
    page = open_page(server)
    for kind, name, value, marked in (
        ("WanVideoTalk", "width", 833, "3 WanVideoTalk"),
        ("WanVideoTalk", "lora", "no_lora.safetensors", "3 WanVideoTalk"),
        ("LoadAudio", "audio", "silent.wav", "3 WanVideoTalk"),
    ):
        page.load(template("00_quick_start"))
        page.set_widget("WanVideoTalk", "size", "custom")
        page.set_widget(kind, name, value)
        run = page.queue(timeout_s=30)
        assert run.status == ("error" if kind == "LoadAudio" else "refused") and page.marked() == [marked], (name, run)


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes2"])
def test_a_refused_input_is_shown_only_where_it_is_linked(server, client, open_page, nodes2):
    assert_shows_a_refused_input_where_it_is_linked(open_page(server, nodes2=nodes2), client)


def test_the_server_offers_templates_help_and_translations(client):
    offered = client.get("/workflow_templates")[PACK_NAME]
    jobs = {
        path.stem for path in Path(__file__).resolve().parents[2].joinpath("examples").glob("*.json")
    }  # ComfyUI lists every folder of this name as graphs
    assert sorted(set(offered) - jobs) == TEMPLATES
    for name in TEMPLATES:
        picture = client.get_bytes(f"/api/workflow_templates/{PACK_NAME}/{quote(name)}.jpg")
        assert picture.startswith(b"\xff\xd8") and len(picture) > 5000
    nodes = [name for name, info in client.nodes_of(PACK_NAME).items() if not info.get("deprecated")]  # those in menus
    assert len(nodes) >= 40
    for node in nodes:
        for language in ("en", "zh"):
            assert client.get_bytes(f"/extensions/{PACK_NAME}/docs/{node}/{language}.md")
    translated = client.get("/i18n")["zh"]["nodeDefs"]
    assert set(nodes) <= set(translated)


def test_a_chinese_page_shows_chinese_nodes(server, open_page, pictures):
    page = open_page(server, locale="zh")
    page.load(template("01_talking_person"))
    shown = json.loads(page.page.evaluate("() => JSON.stringify(window.app.graph.nodes.map((node) => node.title))"))
    assert sum(any("\u4e00" <= letter <= "\u9fff" for letter in title) for title in shown) >= 8
    page.screenshot(pictures / "01_talking_person_zh.png")
