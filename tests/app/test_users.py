"""Several people who reach one app: each browser lists, plays and resumes its own runs, and nobody else's."""

import urllib.error
import urllib.request

import pytest
from support import jobs
from support.app_page import AppPage
from support.needed import need
from support.studio import base

from wanvideo.app.form import Form, Knobs
from wanvideo.app.queue import FINISHED
from wanvideo.app.studio import USERS, Studio
from wanvideo.app.uploads import Uploads
from wanvideo.errors import InputError
from wanvideo.runs.manifest import Manifest, Plan
from wanvideo.runs.store import DRIFT, GROWING

FIRST, SECOND = "1" * 32, "2" * 32


def test_each_browser_has_its_own_runs_also_after_the_server_was_started_anew(browser, served, tmp_path):
    need("gradio", "gradio")
    address = served(is_shared=True)
    first, second = AppPage(browser, address), AppPage(browser, address)
    first.fill(tmp_path, seconds=0.4)
    first.click("run")
    first.until("finished")
    first.shows("runs", "talking_video_1.run")
    assert first.played() == [48, 10]
    (run,) = (tmp_path / "out").rglob("talking_video_1.run")
    source = first.page.locator("#video video").get_attribute("src")
    assert run.parent.name in source and run.parent.parent == tmp_path / "out" / USERS
    for button in ("watch", "resume"):
        second.page.reload()
        second.shows("runs", "There are none yet.")
        second.choose_run("talking_video_1.run")
        second.click(button)
        second.page.get_by_text("There is no run 'talking_video_1.run' in the list").first.wait_for()
    assert urllib.request.urlopen(f"{address}/{source}", timeout=60).status == 200
    for path in ("talking_video_1.run", f"{SECOND}/talking_video_1.run", f"../{USERS}/{run.parent.name}", "%2e%2e/x"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/talk/video/{path}", timeout=60)
    port = int(address.rpartition(":")[2])
    served.stop()
    assert served(is_shared=True, port=port) == address
    again = AppPage(browser, f"{address}/zh", first.context)
    again.shows("runs", "talking_video_1.run")
    assert not first.errors and not second.errors


def make_run(folder):
    folder.mkdir(parents=True)
    Manifest({"seed": "1"}, {}, Plan(64, 48, 25.0, 25, 3)).write(folder)


@pytest.fixture
def studio(tmp_path):
    arriving = tmp_path / ".arriving"
    arriving.mkdir()
    studio = Studio(base(), tmp_path, Uploads(tmp_path / "uploads", arriving, 10**8), is_shared=True)
    yield studio
    studio.close()


def test_the_same_request_of_two_users_is_two_runs(studio):
    arriving = studio.uploads.arriving
    form = Form(
        jobs.picture(arriving), "She talks.", (jobs.speech(arriving, 0.4),), knobs=Knobs(seconds=0.4, base_seed=1)
    )
    tasks = [studio.submit(form, user) for user in (FIRST, SECOND)]
    while not all(task.message or task.output for task in tasks):
        studio.queue._thread.join(0.02)
    assert [task.state for task in tasks] == [FINISHED] * 2
    for task, user in zip(tasks, (FIRST, SECOND), strict=True):
        assert task.output == studio.folder / USERS / studio.place(user) / "talking_video_1.mp4"
        assert studio.run_of(task) == "talking_video_1.run" == studio.runs(user)[0].name
    assert tasks[0].output.stat().st_ino != tasks[1].output.stat().st_ino


@pytest.mark.parametrize(
    "user", ["", "..", "../..", FIRST[:-1], f"{FIRST}/..", f"{FIRST}\n", "A" * 32, None, 7, [FIRST], {"a": 1}]
)
def test_only_what_a_browser_was_given_is_a_user(studio, user):
    for ask in (studio.runs, studio.home, lambda user: studio.submit(Form("", ""), user),
                lambda user: studio.video_of("a.run", user), lambda user: studio.resume("a.run", user)):  # fmt: skip
        with pytest.raises(InputError, match="does not know whose it is"):
            ask(user)
    assert studio.user(user) != user and studio.runs(studio.user(user)) == []
    assert studio.user(FIRST) == FIRST


def test_who_sees_where_videos_are_is_not_their_user(studio):
    """A folder's name and the address of a video, which people send each other, let nobody list, resume or cancel."""
    place = studio.place(FIRST)
    assert FIRST not in place and studio.place(place) != place
    run = studio.home(place) / "talking_video_1.run"
    make_run(run)
    (run / GROWING).write_bytes(b"first")
    assert studio.video_of(run.name, place).read_bytes() == b"first" and len(studio.runs(FIRST)) == 1
    assert studio.runs(place) == []
    for name in (place, SECOND):
        with pytest.raises(InputError, match="no run"):
            studio.resume(run.name, name)
    with pytest.raises(InputError, match="no run"):
        studio.video_of(run.name, FIRST)


def test_a_link_to_another_user_s_files_is_not_followed(studio):
    theirs, own = (studio.home(studio.place(user)) / "talking_video_1.run" for user in (FIRST, SECOND))
    for run in (theirs, own):
        make_run(run)
    for name in (GROWING, DRIFT):
        (theirs / name).write_bytes(b"theirs")
        (own / name).symlink_to(theirs / name)
    with pytest.raises(InputError, match="no video here"):
        studio.video_of(own.name, studio.place(SECOND))
    assert studio.drift_of(own.name, studio.place(SECOND)) is None
    assert studio.drift_of(theirs.name, studio.place(FIRST)) == theirs / DRIFT


def test_one_person_on_this_machine_has_all_runs(studio):
    alone = Studio(base(), studio.folder, studio.uploads)
    assert alone.user(FIRST) == "" and alone.home("../..") == studio.folder == alone.home("")
    alone.close()
