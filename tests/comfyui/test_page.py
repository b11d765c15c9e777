"""The templates in the real page of ComfyUI: they open whole, look right, run, and keep what was set."""

import json
from pathlib import Path
from urllib.parse import quote

import pytest
from support.comfy_models import HEIGHT, TEMPLATES, WIDTH, template
from support.comfy_server import PACK_NAME
from support.comfy_templates import assert_opens_whole

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]
SET = """([kind, values]) => {
    for (const node of window.app.graph.nodes.filter((node) => node.type === kind))
        for (const [name, value] of Object.entries(values))
            node.widgets.find((widget) => widget.name === name).value = value;
}"""
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


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes2"])
def test_templates_open_and_keep_every_widget(server, client, open_page, pictures, nodes2):
    page = open_page(server, nodes2=nodes2)
    for name in TEMPLATES:
        assert_opens_whole(page, client, name)
        shot = page.screenshot(pictures / f"{name}{'_nodes2' if nodes2 else ''}.png")
        assert shot.stat().st_size > 50_000
        before, after = page.save_and_reload()
        assert before == after, name
    assert page.console_errors == [] and page.http_errors == []


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_runs_from_the_page(server, open_page, name):
    page = open_page(server)
    page.load(template(name), name)
    for kind, values in SMALL.items():
        page.page.evaluate(SET, [kind, values])
    run = page.queue(timeout_s=300)
    assert run.status == "success", run.detail
    (saved,) = [output for output in run.executed.values() if "images" in output]
    assert saved["images"][0]["filename"].endswith(".mp4")
    assert page.console_errors == []


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
