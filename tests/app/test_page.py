"""The pages in a real browser: two users at once, painted regions, spoken text, both languages, and what is refused."""

import importlib.util
import json
import urllib.error
import urllib.request

import pytest
from support import jobs
from support.comfy_page import launch_chromium
from support.comfy_server import Unavailable
from support.speech import install_kokoro
from support.studio import base, free_port

from wanvideo.app import server
from wanvideo.app.studio import Studio
from wanvideo.app.uploads import Uploads

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")
PLAYED = """async () => {
    let video;
    while (!(video = document.querySelector('#video video'))) await new Promise((done) => setTimeout(done, 100));
    video.muted = true;
    await video.play();
    await new Promise((done) => setTimeout(done, 300));
    return [video.currentTime > 0, video.videoWidth, Math.round(video.duration * 25)];
}"""


@pytest.fixture
def address(tmp_path, monkeypatch, request):
    install_kokoro(monkeypatch)
    arriving = tmp_path / "out" / ".arriving"
    arriving.mkdir(parents=True)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(arriving))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    studio = Studio(
        [*base("multi"), "--size", getattr(request, "param", "48x48")],
        tmp_path / "out",
        Uploads(tmp_path / "out" / "uploads", arriving, 10**6),
    )
    port = free_port()
    pages = server.launch(studio, server.HOST, port, 10**6, is_blocking=False)
    yield f"http://{server.HOST}:{port}"
    pages.close()
    studio.close()


@pytest.fixture
def browser():
    try:
        with launch_chromium() as browser:
            yield browser
    except Unavailable as error:
        pytest.skip(str(error))


def opened(browser, address):
    page = browser.new_context(viewport={"width": 1400, "height": 1500}).new_page()
    page.goto(address)
    page.wait_for_selector("#run")
    page.wait_for_timeout(800)
    return page


def fill(page, folder, **sound):
    page.locator("#picture input[type=file]").set_input_files(jobs.picture(folder, 96, 96))
    page.locator("#sound-1 input[type=file]").set_input_files(jobs.speech(folder, **sound))
    page.locator("#prompt textarea").fill("She talks.")
    page.wait_for_timeout(800)


def until(page, text):
    page.wait_for_function(
        "text => document.querySelector('#status').innerText.includes(text)", arg=text, timeout=60_000
    )


def test_two_users_make_videos_cancel_and_resume(browser, address, tmp_path):
    first, second = opened(browser, address), opened(browser, f"{address}/zh")
    fill(first, tmp_path, seconds=14.0)
    fill(second, tmp_path, seconds=0.6, name="short.wav", frequency=300.0)
    first.click("#plan")
    first.wait_for_function("document.querySelector('#planned textarea')?.value.includes('windows of 2 steps')")
    first.click("#run")
    first.wait_for_selector("#video video")
    second.click("#run")
    until(second, "等待中")
    assert "前面还有 1 个" in second.inner_text("#status")
    assert second.is_enabled("#cancel")
    assert first.evaluate(PLAYED)[:2] == [True, 48], "it plays while it grows"
    first.click("#cancel")
    until(first, "cancelled")
    until(second, "已完成")
    second.wait_for_timeout(1500)  # the last of the videos that are put there
    assert second.evaluate(PLAYED) == [True, 48, 15] and "已停止" in second.inner_text("#runs")
    first.click("#refresh")
    first.locator("#chosen input").fill("talking_video_1.run")
    first.keyboard.press("Enter")
    first.click("#resume")
    until(first, "running")
    until(first, "finished")
    first.wait_for_timeout(1500)
    assert first.evaluate(PLAYED) == [True, 48, 350]
    first.screenshot(path=tmp_path / "english.png", full_page=True)
    second.screenshot(path=tmp_path / "chinese.png", full_page=True)


@pytest.mark.parametrize("address", ["192x128"], indirect=True)
def test_painted_regions_and_spoken_text_reach_the_run(browser, address, tmp_path):
    page = opened(browser, address)
    page.locator("#picture input[type=file]").set_input_files(jobs.picture(tmp_path, 480, 320))
    page.locator("#people").get_by_text("2", exact=True).click()
    page.get_by_text("Text that is spoken").click()
    page.get_by_label("What is said").fill("(s1) Hello. (s2) Hi.")
    page.get_by_text("boxes around what is painted").click()
    page.wait_for_selector("#painted canvas")
    page.wait_for_timeout(1500)
    paint(page, tmp_path)
    page.click("#run")
    until(page, "finished")
    (manifest,) = (tmp_path / "out").glob("*.run/manifest.json")
    left, right = json.loads(manifest.read_text())["job"]["request"]["speakers"]
    assert left["audio"].endswith("s1.wav") and right["audio"].endswith("s2.wav")
    assert left["box"][3] < 300 < right["box"][3] and left["box"][1] < right["box"][1], (left["box"], right["box"])


def paint(page, folder):
    """A stroke on the left for person 1, and on the right for person 2."""
    canvas = page.locator("#painted canvas").first
    for person, place in (("Person 1", 0.25), ("Person 2", 0.75)):
        choose_layer(page, person)
        box = canvas.bounding_box()
        middle = box["x"] + box["width"] * place, box["y"] + box["height"] / 2
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 12, middle[1] + 12, steps=4)
        page.mouse.up()
        page.wait_for_timeout(500)
    page.screenshot(path=folder / "painted.png", full_page=True)


def choose_layer(page, person):
    page.locator("#painted .layer-title-button").click()
    page.locator("#painted li button", has_text=person).click()
    page.wait_for_timeout(300)


def test_what_is_wrong_is_said_on_the_page_and_files_stay_inside(browser, address, tmp_path):
    page = opened(browser, address)
    page.click("#run")
    page.get_by_text("Choose a picture or a video to upload").wait_for()
    for name in ("../manifest.json", "..%2F..%2Fetc%2Fpasswd", "none.run"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/{'talk/video'}/{name}", timeout=5)
    with pytest.raises(urllib.error.HTTPError, match="403|404"):
        urllib.request.urlopen(f"{address}/gradio_api/file=/etc/passwd", timeout=5)
