"""Folders of videos that are moved or renamed, copied to where nobody's links are, or that belong to somebody else."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from support import media_files

from wanvideo.errors import OutputError, ResumeError
from wanvideo.lock import FileLock
from wanvideo.quality.drift import WindowMeasures
from wanvideo.runs.find import Found, Neighbors, free_run, is_locked, last_writes, open_run, remove
from wanvideo.runs.manifest import Manifest, Plan
from wanvideo.runs.store import GROWING, Run

FRAMES = media_files.numbered_frames(5)
WANTED = Manifest({"seed": "1"}, {}, Plan(64, 48, 25.0, 10, 2))
MEASURES = WindowMeasures(0, 0, (50.0, 1.0, 2.0), (20.0, 3.0, 4.0), 300.0, 0.0, 1.0)


def window(run):
    run.write(FRAMES)
    run.commit(b"state", "speech", MEASURES)


def begun(folder, output=None):
    """A run that was stopped after its first window."""
    run = open_run(replace(WANTED, output=output and str(output)), folder / "talk.run", "auto", None)
    window(run)
    run.abandon()
    return run.folder


def finished(folder):
    """The run of the same request, gone on with by whoever finds it, under no name of its own."""
    run = open_run(WANTED, folder / "later.run", "auto", None)
    if not run.manifest.is_complete:
        window(run)
    run.close()
    return run


def test_a_stopped_run_that_was_moved_gives_its_video_the_name_beside_it(tmp_path):
    before, now = tmp_path / "before", tmp_path / "now"
    begun(before, before / "asked.mp4")
    before.rename(now)
    assert finished(now).save_as() == now / "asked.mp4"
    assert not before.exists() and Manifest.read(now / "talk.run").output == str(now / "asked.mp4")


def test_a_copy_of_a_run_does_not_write_where_it_was_copied_from(tmp_path):
    begun(tmp_path / "a", tmp_path / "a" / "asked.mp4")
    os.system(f"cp -r '{tmp_path / 'a'}' '{tmp_path / 'b'}'")
    assert finished(tmp_path / "b").save_as() == tmp_path / "b" / "asked.mp4"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["talk.run"]


def test_a_name_in_a_folder_that_is_gone_is_that_of_the_run(tmp_path):
    (tmp_path / "gone").mkdir()
    begun(tmp_path / "videos", tmp_path / "gone" / "asked.mp4")
    assert Manifest.read(tmp_path / "videos" / "talk.run").output == str(tmp_path / "gone" / "asked.mp4")
    (tmp_path / "gone").rmdir()
    assert finished(tmp_path / "videos").save_as() == tmp_path / "videos" / "talk.mp4"


def test_a_name_of_the_same_place_written_in_another_way_is_kept(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = Path("../videos")
    begun(folder, (folder / "talk.mp4").absolute())
    assert len(last_writes(folder / "talk.mp4", Neighbors())) == 1
    assert Manifest.read(tmp_path / "videos" / "talk.run").output == str(tmp_path / "videos" / "talk.mp4")


def test_where_there_are_no_links_a_moved_video_is_still_there(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    before, now = tmp_path / "before", tmp_path / "now"
    begun(before)
    video = finished(before).save_as()
    assert video == before / "talk.mp4" and not (before / "talk.run" / "video.mp4").exists()
    before.rename(now)
    again = open_run(WANTED, now / "talk.run", "auto", None)
    again.close()
    assert again.video.samefile(now / "talk.mp4") and not Found(again.folder, again.manifest).is_gone
    assert again.save_as() == now / "talk.mp4"


def test_a_folder_that_was_moved_while_it_is_written_goes_on_where_it_is(tmp_path):
    run = open_run(WANTED, tmp_path / "before" / "talk.run", "auto", None)
    window(run)
    (tmp_path / "before").rename(tmp_path / "now")
    run.write(FRAMES)
    with pytest.raises(OutputError, match="Ask for the same video where the folder is now"):
        run.commit(b"state", "speech", MEASURES)
    run.abandon()
    assert [path.name for path in tmp_path.iterdir()] == ["now"]
    assert finished(tmp_path / "now").manifest.progress.num_frames == 10


@pytest.fixture
def of_another_user(monkeypatch):
    """Marks folders in which this user may read and nothing else, as root in a test cannot."""
    folders, real = [], os.open

    def opened(path, flags, *args, **kwargs):
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT) and Path(os.fspath(path)).parent in folders:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", opened)
    return folders.append


def test_a_run_of_another_user_is_left_and_holds_nobody_up(tmp_path, of_another_user, caplog):
    theirs = begun(tmp_path)
    of_another_user(theirs)
    with pytest.raises(ResumeError, match="cannot be written by this user"):
        open_run(WANTED, tmp_path / "mine.run", str(theirs), None)
    mine = open_run(WANTED, tmp_path / "mine.run", "auto", None)
    assert mine.folder == tmp_path / "mine.run" and "cannot be written by this user" in caplog.text
    mine.abandon()
    named_alike = open_run(WANTED, theirs, "auto", None)
    assert named_alike.folder == tmp_path / "talk_2.run"
    named_alike.abandon()
    with pytest.raises(OutputError, match="cannot be written by this user"):
        remove(theirs)
    assert (theirs / GROWING).exists() and Manifest.read(theirs).progress.num_windows == 1


def test_another_user_sees_that_a_run_is_written(tmp_path, of_another_user):
    theirs = begun(tmp_path)
    held = FileLock(theirs / ".lock")
    of_another_user(theirs)
    assert is_locked(theirs)
    mine = open_run(WANTED, tmp_path / "mine.run", "auto", None)
    assert mine.folder == tmp_path / "mine.run"
    mine.abandon()
    held.release()
    assert not is_locked(theirs)


def test_a_folder_that_cannot_be_looked_into_is_taken(tmp_path, monkeypatch):
    closed, real = tmp_path / "talk.run", Path.iterdir
    closed.mkdir()

    def looked(folder):
        if folder == closed:
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(Path, "iterdir", looked)
    assert free_run(closed) == tmp_path / "talk_2.run"
    run = open_run(WANTED, closed, "auto", None)
    assert run.folder == tmp_path / "talk_2.run"
    run.abandon()
    with pytest.raises(OutputError, match="cannot be deleted"):
        remove(closed)


def test_what_a_window_writes_does_not_grow_with_those_before_it(tmp_path):
    run = Run(tmp_path / "talk.run", replace(WANTED, plan=Plan(64, 48, 25.0, 5000, 1000)), None)
    sizes = []
    for _ in range(40):
        run.write(FRAMES[:1])
        run.commit(b"state", "speech", MEASURES)
        sizes.append((run.folder / "manifest.json").stat().st_size)
    assert sizes[-1] - sizes[0] < 10, sizes
    assert run.measures == (MEASURES,) * 40
    run.abandon()


def test_two_that_take_a_new_folder_at_once_have_one_each(tmp_path, monkeypatch):
    first, real = [], Run.__init__

    def taken(run, folder, *args, **kwargs):
        if not first:  # what another process does between a look at the folder and its lock
            (tmp_path / "talk.run").mkdir()
            first.append(FileLock(tmp_path / "talk.run" / ".lock"))
        real(run, folder, *args, **kwargs)

    monkeypatch.setattr(Run, "__init__", taken)
    run = open_run(WANTED, tmp_path / "talk.run", "auto", None)
    assert run.folder == tmp_path / "talk_2.run"
    run.abandon()
    first[0].release()
