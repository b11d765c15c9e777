"""Run folders that somebody else made or changed: they name no file of another place, and nothing there is written."""

import json
import os
from dataclasses import replace

import pytest
from support import media_files

from wanvideo.errors import OutputError
from wanvideo.quality.drift import WindowMeasures
from wanvideo.runs import measured
from wanvideo.runs.find import open_run, remove
from wanvideo.runs.manifest import NAME, Manifest, Plan
from wanvideo.runs.store import GROWING, VIDEO

FRAMES = media_files.numbered_frames(15)
WANTED = Manifest({"seed": "1"}, {"frames": "10"}, Plan(64, 48, 25.0, 10, 2), can_grow=True)
LONGER = replace(WANTED, sound={"frames": "15"}, plan=Plan(64, 48, 25.0, 15, 3))
MEASURES = WindowMeasures(0, 0, (50.0, 1.0, 2.0), (20.0, 3.0, 4.0), 300.0, 0.0, 1.0)


def write(run, until):
    for index in range(run.manifest.progress.num_windows, until):
        run.write(FRAMES[5 * index : 5 * index + 5])
        run.commit(b"state", "speech", MEASURES)


@pytest.fixture
def made(tmp_path):
    """A finished run whose video may be continued."""
    run = open_run(WANTED, tmp_path / "videos" / "talk.run", "auto", None)
    write(run, 2)
    run.close()
    return run.folder


@pytest.fixture
def secret(made, tmp_path):
    """A video of somebody's, elsewhere on the machine."""
    path = tmp_path / "private" / "secret.mp4"
    path.parent.mkdir()
    path.write_bytes((made / VIDEO).read_bytes())
    return path


def change(folder, **values):
    file = folder / NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_finished_video_is_continued_from_its_own_file_only(made, secret):
    run = open_run(LONGER, made.with_name("longer.run"), "auto", None)
    assert run.manifest.progress.num_windows == 1, "as it is"
    run.abandon()
    for name in (str(secret), f"../../private/{secret.name}", "a\0b"):
        change(made, video=name)
        run = open_run(LONGER, made.with_name("longer.run"), "auto", None)
        assert run.manifest.progress.num_windows == 0
        run.abandon()


def test_what_is_no_video_is_not_continued_and_holds_nobody_up(made, caplog):
    (made / VIDEO).write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n")
    run = open_run(LONGER, made.with_name("longer.run"), "auto", None)
    assert run.manifest.progress.num_windows == 0 and "a playlist, which names other files" in caplog.text
    run.abandon()


def test_no_other_file_becomes_the_video_of_a_run(made, secret):
    change(made, video=str(secret))
    run = open_run(WANTED, made, str(made), None)
    assert run.video is None, "it is made again"
    write(run, 2)
    run.close()
    assert not run.save_as().samefile(secret)


@pytest.mark.parametrize("place", ["private/taken.mp4", "videos/talk.py", "videos/inner/taken.mp4"])
def test_no_video_is_saved_where_only_a_run_s_folder_says(tmp_path, place):
    run = open_run(WANTED, tmp_path / "videos" / "talk.run", "auto", None)
    write(run, 1)
    run.abandon()
    target = tmp_path / place
    target.parent.mkdir(exist_ok=True)
    change(run.folder, output=str(target))
    run = open_run(WANTED, run.folder, "auto", None)
    assert run.manifest.progress.num_windows == 1
    write(run, 2)
    run.close()
    assert run.save_as() == tmp_path / "videos" / "talk.mp4" and not target.exists()


@pytest.mark.parametrize("state", ["../../private/secret.mp4", "C:secret.mp4", "notes.txt", ".."])
def test_a_state_has_a_name_that_runs_give(made, state):
    progress = json.loads((made / NAME).read_text())["progress"]
    change(made, progress={**progress, "state": state})
    with pytest.raises(OutputError, match="of other kinds than a run has"):
        Manifest.read(made)


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system opens no file without following links")
@pytest.mark.parametrize("name", [".lock", GROWING])
def test_nothing_is_written_through_a_link(tmp_path, name):
    mine, folder = tmp_path / "mine.txt", tmp_path / "talk.run"
    mine.write_text("mine")
    folder.mkdir()
    (folder / name).symlink_to(mine)
    with pytest.raises(OutputError, match="symbolic links"):
        open_run(WANTED, folder, "auto", None)
    if name == ".lock":
        with pytest.raises(OutputError, match="symbolic links"):
            remove(folder)
    assert mine.read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system opens no file without following links")
def test_measures_are_not_appended_through_a_link(tmp_path):
    """Nor through one to a file that has as many bytes as the run's own has."""
    folder, mine = tmp_path / "talk.run", tmp_path / "mine.txt"
    run = open_run(WANTED, folder, "auto", None)
    write(run, 1)
    run.abandon()
    measures = folder / measured.NAME
    before = measures.read_bytes()
    mine.write_bytes(before)
    measures.unlink()
    measures.symlink_to(mine)
    with pytest.raises(OSError, match="symbolic links"):
        measured.append(folder, MEASURES)
    run = open_run(WANTED, folder, "auto", None)
    write(run, 2)
    run.close()
    assert measures.read_bytes() == 2 * before and not measures.is_symlink() and mine.read_bytes() == before
