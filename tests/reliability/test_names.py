"""Which video belongs to which run can be seen: whatever ended it, a run gives its video its own name."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from support import jobs, kills, media_files

from wanvideo import TalkingVideoPipeline
from wanvideo.quality.drift import WindowMeasures
from wanvideo.runs.find import free_run, open_run
from wanvideo.runs.manifest import Manifest, Plan
from wanvideo.runs.names import video_name

FRAMES = media_files.numbered_frames(5)
WANTED = Manifest({"seed": "1"}, {}, Plan(64, 48, 25.0, 5, 1))
MEASURES = WindowMeasures(0, 0, (50.0, 1.0, 2.0), (20.0, 3.0, 4.0), 300.0, 0.0, 1.0)


def made(folder, name="talk_2.run", wanted=WANTED):
    """The finished run of a request, begun or gone on with as faces do."""
    run = open_run(wanted, Path(folder) / name, "auto", None)
    if not run.manifest.is_complete:
        run.write(FRAMES)
        run.commit(b"state", "speech", MEASURES)
    run.close()
    return run


def saved(folder):
    made(folder).save_as()


def counted(folder, file):
    done = kills.count_operations(Path(folder))
    saved(folder)
    Path(file).write_text(str(len(done)))


def killed(folder, number):
    kills.count_operations(Path(folder), int(number))
    saved(folder)


def test_whatever_ends_it_a_run_has_one_video_of_its_name(tmp_path, nursery):
    (tmp_path / "whole").mkdir()
    assert nursery.run("counted", tmp_path / "whole", tmp_path / "number") == 0
    total = int((tmp_path / "number").read_text())
    for number in [total // 2, *range(total - 14, total + 1)]:
        folder = tmp_path / str(number)
        folder.mkdir()
        assert nursery.run("killed", folder, number) == signal.SIGKILL
        before = [path.name for path in folder.glob("*.mp4")]
        assert before in ([], ["talk_2.mp4"])
        saved(folder)
        assert [path.name for path in folder.glob("*.mp4")] == ["talk_2.mp4"], number
        assert Manifest.read(folder / "talk_2.run").output == str(folder / "talk_2.mp4")


def replaced(folder):
    made(folder).save_as(Path(folder) / "talk_2.mp4", overwrite=True)


def replaced_until_linked(folder):
    replace_file = Path.replace
    Path.replace = lambda path, target: kills.die() if ".linked-" in path.name else replace_file(path, target)
    replaced(folder)


def test_a_name_in_between_is_removed_by_the_next_start_of_its_run(tmp_path, nursery):
    (tmp_path / "talk_2.mp4").write_bytes(b"before")
    theirs = tmp_path / "talk_2.run" / ".mine.linked-0a1b2c.mp4"
    assert nursery.run("replaced_until_linked", tmp_path) == signal.SIGKILL
    theirs.touch()
    left = list(tmp_path.rglob(".*.linked-*.mp4"))
    assert len(left) == 2 and (tmp_path / "talk_2.mp4").read_bytes() == b"before"
    assert nursery.run("replaced", tmp_path) == 0
    assert list(tmp_path.rglob(".*.linked-*.mp4")) == [theirs], "what the run has not made stays"
    assert (tmp_path / "talk_2.mp4").samefile(tmp_path / "talk_2.run" / "video.mp4")


def test_a_start_of_the_run_in_between_costs_no_video(tmp_path, monkeypatch):
    """Another process that begins to use the finished run removes the name that this one has just made."""
    run, link = made(tmp_path), os.link
    (tmp_path / "asked.mp4").write_bytes(b"before")
    removed = []

    def linked(source, target):
        link(source, target)
        if not removed:
            removed.extend(tmp_path.rglob(".*.linked-*.mp4"))
            made(tmp_path)

    monkeypatch.setattr(os, "link", linked)
    assert run.save_as(tmp_path / "asked.mp4", overwrite=True) == tmp_path / "asked.mp4"
    assert len(removed) == 1 and (tmp_path / "asked.mp4").samefile(run.video)
    assert not list(tmp_path.rglob(".*.linked-*.mp4"))


def test_a_name_that_is_taken_gets_a_number_and_stays(tmp_path):
    (tmp_path / "talk_2.mp4").write_bytes(b"somebody else's")
    run = made(tmp_path)
    assert run.save_as() == tmp_path / "talk_2_2.mp4" == run.save_as(), "not once more"
    assert (tmp_path / "talk_2.mp4").read_bytes() == b"somebody else's"
    assert Manifest.read(run.folder).output == str(tmp_path / "talk_2_2.mp4")


def test_a_name_that_was_asked_for_stays_and_is_told(tmp_path, caplog):
    jobs.capture_log(caplog)
    run = made(tmp_path, wanted=replace(WANTED, output=str(tmp_path / "asked.mp4")))
    assert run.save_as() == tmp_path / "asked.mp4"
    assert f"asked.mp4 is the video of the run in {run.folder}" in caplog.text
    assert made(tmp_path).save_as() == tmp_path / "asked.mp4", "the finished run is asked for again, by nobody's name"
    assert made(tmp_path).save_as(tmp_path / "other.mp4") == tmp_path / "other.mp4"
    assert Manifest.read(run.folder).output == str(tmp_path / "other.mp4")


def test_a_new_run_takes_a_name_that_its_video_can_have(tmp_path):
    (tmp_path / "talking_video").mkdir()
    (tmp_path / "talking_video" / ".lock").touch()  # of a process that was killed before it wrote a manifest
    assert free_run(tmp_path / "talking_video") == tmp_path / "talking_video"
    (tmp_path / "talking_video" / "mine.txt").touch()
    (tmp_path / "talking_video_2.mp4").touch()
    assert free_run(tmp_path / "talking_video") == tmp_path / "talking_video_3"
    assert video_name(tmp_path / "talking_video_3") == tmp_path / "talking_video_3.mp4"
    assert video_name(tmp_path / "a.b.run") == tmp_path / "a.b.mp4"
    run = made(tmp_path, "talk.run")
    (tmp_path / "talk_2.mp4").touch()
    assert made(tmp_path, "talk.run", replace(WANTED, identity={"seed": "2"})).folder == tmp_path / "talk_3.run"
    assert run.folder == tmp_path / "talk.run"


def stop(report):
    if report.window_index == 1:
        raise KeyboardInterrupt


@pytest.mark.parametrize("is_named", [False, True])
def test_a_request_that_goes_on_names_its_video_as_its_run(tmp_path, is_named):
    pipeline = TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)
    first = jobs.request(tmp_path, output=str(tmp_path / "talk_at_noon.mp4"))
    with pytest.raises(KeyboardInterrupt):
        pipeline.generate(first, on_step=stop, is_named=False)
    later = replace(first, output=str(tmp_path / "talk_at_one.mp4"))
    path = pipeline.generate(later, is_named=is_named)
    assert path.name == ("talk_at_one.mp4" if is_named else "talk_at_noon.mp4")
    assert [folder.name for folder in tmp_path.glob("*.run")] == ["talk_at_noon.run"]
