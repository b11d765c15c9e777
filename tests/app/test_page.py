"""The pages in a real browser: two users at once, painted regions, spoken text, both languages, and what is refused."""

import json
import urllib.error
import urllib.request

import pytest
from support import jobs, media_files
from support.app_page import MOST_BYTES, AppPage
from support.needed import need

from wanvideo.app.studio import DRIFT

need("gradio", "gradio")
need("espeakng_loader", "espeakng-loader")


def test_two_users_make_videos_cancel_and_resume(browser, address, gate, tmp_path):
    first, second = AppPage(browser, address), AppPage(browser, f"{address}/zh")
    first.fill(tmp_path, seconds=1.4)
    second.fill(tmp_path, seconds=0.6, name="short.wav", frequency=300.0)
    first.click("plan")
    first.page.wait_for_function("document.querySelector('#planned textarea')?.value.includes('windows of 2 steps')")
    gate.hold(2)
    first.click("run")
    first.shows("status", "window 3 of 4, step 5 of 8")
    second.click("run")
    second.until("waiting")
    assert "前面还有 1 个" in second.text("status") and second.page.is_enabled("#cancel")
    width, frames = first.played()
    assert width == 48 and 21 <= frames < 35, "two windows play while the third is made"
    assert first.page.locator("#status progress").evaluate("bar => [bar.value, bar.max]") == [5, 8]
    first.screenshot(tmp_path / "growing.png")
    second.screenshot(tmp_path / "waiting.png")
    first.click("cancel")
    first.until("cancelled")
    second.until("finished")
    second.shows("runs", "talking_video_2.run")
    second.page.locator("#video video[data-run='talking_video_2.run'][src*='v=1000000']").wait_for()
    assert second.played() == [48, 15] and "已停止" in second.text("runs")
    first.click("refresh")
    first.shows("runs", "talking_video_2.run")
    first.choose_run("talking_video_1.run")
    plot = tmp_path / "out" / "talking_video_1.run" / DRIFT
    plot.write_bytes((tmp_path / "face.png").read_bytes())
    gate.open()
    first.click("resume")
    first.until("finished")
    first.page.locator("#video video[data-run='talking_video_1.run'][src*='v=1000000']").wait_for()
    assert first.played() == [48, 35]
    assert first.page.locator("#video figure img").evaluate("drift => drift.decode().then(() => drift.naturalWidth)")
    first.screenshot(tmp_path / "english.png")
    second.screenshot(tmp_path / "chinese.png")
    assert not first.errors and not second.errors


@pytest.mark.parametrize("address", ["192x128"], indirect=True)
def test_three_painted_persons_speak_what_is_written(browser, address, tmp_path):
    user = AppPage(browser, address)
    user.upload("picture", jobs.picture(tmp_path, 480, 320))
    user.choose("people", "3")
    user.choose("speech", "Text that is spoken")
    user.page.locator("#text textarea").fill("(s1) Hi. (s2) Oh. (s3) Ah.")
    user.choose("regions", "boxes around what is painted")
    user.paint(0.25, 0.5, 0.75)
    user.screenshot(tmp_path / "painted.png")
    user.click("run")
    user.until("finished")
    (manifest,) = (tmp_path / "out").glob("*.run/manifest.json")
    speakers = json.loads(manifest.read_text())["job"]["request"]["speakers"]
    assert [speaker["audio"][-6:] for speaker in speakers] == ["s1.wav", "s2.wav", "s3.wav"]
    sides = [side for speaker in speakers for side in (speaker["box"][1], speaker["box"][3])]
    assert sides == sorted(sides) and sides[2] < 240 < sides[3], "from left to right, apart"


def test_a_video_grows_under_who_watches_it(browser, address, gate, tmp_path):
    user = AppPage(browser, address)
    user.fill(tmp_path, seconds=1.0)
    gate.hold(1)
    user.click("run")
    user.shows("status", "window 2 of 3")
    assert user.played()[0] == 48
    gate.open()
    user.page.wait_for_function(
        "document.querySelector('#video video')?.currentTime > 0.9"
    )  # nobody pressed play again
    user.page.reload()
    user.until("finished")
    assert user.played() == [48, 25], "it is there again after the page was left"


@pytest.mark.parametrize("address", ["96x64"], indirect=True)
def test_only_what_is_painted_of_a_video_is_made_anew(browser, address, tmp_path):
    user = AppPage(browser, f"{address}/zh")
    user.choose("kind", "视频")
    user.upload("source", str(media_files.video(tmp_path / "source.mp4", media_files.numbered_frames(20, 64, 96))))
    user.page.locator("#seen video").wait_for()
    user.upload("sound-1", jobs.speech(tmp_path, 0.6))
    user.choose("keep", "仅重做涂抹处")
    user.paint(0.5)
    user.screenshot(tmp_path / "dub.png")
    user.click("run")
    user.until("finished")
    (manifest,) = (tmp_path / "out").glob("*.run/manifest.json")
    keep = json.loads(manifest.read_text())["job"]["request"]["keep"]
    assert keep["mask"].endswith(".png") and keep["mouth"] is None and keep["feather"] == 16
    assert user.played() == [96, 15]


def test_what_is_wrong_is_said_on_the_page_and_files_stay_inside(browser, address, tmp_path):
    user = AppPage(browser, address)
    user.click("run")
    user.page.get_by_text("Choose a picture or a video to upload").wait_for()
    large = tmp_path / "large.wav"
    large.write_bytes(bytes(MOST_BYTES + 1))
    user.page.locator("#sound-1 input[type=file]").set_input_files(large)
    user.page.get_by_text("maximum allowed size").first.wait_for()
    for place in ("talk/video", "talk/drift", "talk/upload"):
        for name in ("../manifest.json", "..%2F..%2Fetc%2Fpasswd", "none.run", "0.png"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{address}/{place}/{name}", timeout=60)
    with pytest.raises(urllib.error.HTTPError, match="403|404"):
        urllib.request.urlopen(f"{address}/gradio_api/file=/etc/passwd", timeout=60)
