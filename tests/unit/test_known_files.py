"""What was read of a file is remembered until the file changes: manifests that pages ask for, media that runs name."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from wanvideo import untrusted
from wanvideo.app.queue import FINISHED, Task
from wanvideo.app.studio import Studio
from wanvideo.app.uploads import Uploads
from wanvideo.errors import InputError, OutputError
from wanvideo.runs import identity, manifest
from wanvideo.runs.find import Neighbors, find_runs, last_writes
from wanvideo.runs.identity import identify_media
from wanvideo.runs.manifest import NAME, Manifest, Plan, Progress
from wanvideo.untrusted import once_per_state

WANTED = Manifest({"seed": "1"}, {}, Plan(64, 48, 25.0, 25, 3))


@pytest.fixture
def settled(monkeypatch):
    """As if every file had been written a while ago."""
    monkeypatch.setattr(untrusted, "SETTLED_S", 0.0)


@pytest.fixture
def reads(monkeypatch):
    """Names of the manifests' folders that are read."""
    names, real = [], manifest.read_json
    monkeypatch.setattr(manifest, "read_json", lambda file, *more: names.append(file.parent.name) or real(file, *more))
    return names


def write_runs(root, *names):
    for name in names:
        (root / name).mkdir()
        replace(WANTED, output=str(root / name)).write(root / name)


def test_a_file_is_read_again_where_it_has_changed_or_was_refused(tmp_path, settled):
    path, other, asked = tmp_path / "a", tmp_path / "b", []

    @once_per_state(2)
    def content(file):
        asked.append(file.name)
        text = file.read_text()
        if text == "wrong":
            raise InputError("It is wrong. Mend it.")
        return text

    path.write_text("one")
    assert [content(path) for _ in range(3)] == ["one"] * 3 and asked == ["a"]
    other.write_text("two")
    other.replace(path)
    assert content(path) == "two" and asked == ["a"] * 2
    path.write_text("wrong")
    for _ in range(2):
        with pytest.raises(InputError, match="wrong"):
            content(path)
    assert asked == ["a"] * 4
    with pytest.raises(FileNotFoundError):
        content(other)


def test_a_file_that_was_written_a_moment_ago_is_not_remembered(tmp_path):
    """Its times may be those of the next change too: all of a tick, or of two seconds on some file systems."""
    path = tmp_path / "a"
    for text in ("one", "two", "six"):
        path.write_text(text)
        os.utime(path, (1, 1))
        assert once_per_state(5)(lambda file: file.read_text())(path) == text


def test_manifests_that_have_not_changed_are_read_once(tmp_path, settled, reads):
    write_runs(tmp_path, "a.run", "b.run", "c.run")
    first = list(find_runs(tmp_path))
    for _ in range(5):
        assert list(find_runs(tmp_path)) == first
    assert reads == ["a.run", "b.run", "c.run"]
    WANTED.at(Progress(1, 5, 100)).write(tmp_path / "b.run")
    assert [run.manifest.progress.num_windows for run in find_runs(tmp_path)] == [0, 1, 0]
    (tmp_path / "c.run" / NAME).write_text("{")
    assert [run.folder.name for run in find_runs(tmp_path)] == ["a.run", "b.run"]
    assert reads[3:] == ["b.run", "c.run"]


def test_a_large_file_that_several_runs_name_is_hashed_once(tmp_path, settled, monkeypatch):
    path, hashed, real = tmp_path / "source.mp4", [], identity._identity
    monkeypatch.setattr(identity, "_identity", lambda *given: hashed.append(given) or real(*given))
    path.write_bytes(bytes(5_000_000))
    before = identify_media(path)
    assert identify_media(str(path)) == before and len(hashed) == 1
    with path.open("r+b") as file:
        file.seek(4_000_000)
        file.write(b"x")
    assert identify_media(path) != before and len(hashed) == 2
    with pytest.raises(InputError):
        identify_media(tmp_path / "missing.mp4")


def test_the_runs_beside_a_video_are_those_that_have_its_name(tmp_path, reads):
    mine = ("job_1.run", "job_1_2.run", "job_1_10.run")
    write_runs(tmp_path, *mine, "job_10.run", "job_1x.run", "job_1_x.run", "job.run", "other.run", "[ab].run")
    (tmp_path / "job_1_3.run").mkdir()
    (tmp_path / "job_1_4.run").write_text("a file")
    neighbors = Neighbors()
    assert {run.folder.name for run in neighbors.runs_of(tmp_path / "job_1.mp4")} == {*mine} == {*reads}
    assert [run.folder.name for run in neighbors.runs_of(tmp_path / "[ab].mp4")] == ["[ab].run"]
    assert not list(neighbors.runs_of(tmp_path / "nowhere" / "job_1.mp4"))
    assert last_writes(tmp_path / "job_1.mp4", neighbors) == frozenset()


def test_a_folder_is_listed_once_for_all_videos_in_it(tmp_path, monkeypatch):
    listed, real = [], Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: listed.append(folder) or real(folder))
    write_runs(tmp_path, "a.run")
    neighbors = Neighbors()
    for number in range(100):
        assert not list(neighbors.runs_of(tmp_path / f"video_{number}.mp4"))
    assert listed == [tmp_path]


def test_a_run_that_is_gone_on_with_is_read_as_it_is(tmp_path, settled, reads):
    """Whatever was remembered of it: only the file counts once it is nobody else's."""
    write_runs(tmp_path, "a.run")
    list(find_runs(tmp_path))
    assert reads == ["a.run"] and Manifest.read(tmp_path / "a.run").plan == WANTED.plan and reads == ["a.run"] * 2
    (tmp_path / "a.run" / NAME).unlink()
    assert not list(find_runs(tmp_path))
    with pytest.raises(OutputError):
        Manifest.read(tmp_path / "a.run")


def test_pages_that_ask_every_second_read_no_manifest_again(tmp_path, settled, reads):
    write_runs(tmp_path, *(f"talking_video_{number}.run" for number in range(20)))
    studio = Studio((), tmp_path, Uploads(tmp_path / "uploads", tmp_path / ".arriving", 1))
    task = Task(lambda task: tmp_path, state=FINISHED, output=tmp_path / "none.mp4")
    for _ in range(10):
        assert studio.run_of(task) is None and len(studio.runs()) == 20
    studio.close()
    assert len(reads) == 20
