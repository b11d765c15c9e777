"""`runs` in folders as they are found: empty, damaged, of a newer version, linked, or with what others put there."""

import json
import time
from dataclasses import replace

import pytest

from wanvideo.cli.main import main
from wanvideo.runs.find import Found
from wanvideo.runs.manifest import FORMAT, NAME, Manifest, Plan, Progress
from wanvideo.runs.store import Run

WANTED = Manifest({"seed": "1"}, {}, Plan(64, 48, 25.0, 25, 3))


def run(folder, **changes):
    folder.mkdir(parents=True)
    replace(WANTED, **changes).write(folder)
    return folder


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "videos"
    run(root / "good.run")
    run(root / "deleted.run", video="video.mp4", progress=Progress(3, 25, 1000))
    (root / "empty.run").mkdir()
    (root / "broken.run").mkdir()
    (root / "broken.run" / NAME).write_text("{")
    newer = run(root / "newer.run") / NAME
    newer.write_text(json.dumps({**json.loads(newer.read_text()), "wanvideo_run": FORMAT + 1}))
    run(tmp_path / "elsewhere" / "other.run")
    (root / "link.run").symlink_to(tmp_path / "elsewhere" / "other.run")
    (root / "nowhere.run").symlink_to(tmp_path / "nothing")
    (root / "notes.run").write_text("a file")
    return root


def test_the_list_says_of_each_folder_what_it_is(root, capsys):
    assert main(["runs", "list", str(root)]) == 0
    listed, rest = capsys.readouterr().out.split("\n\n")
    rows = {line.split("  ")[0].strip(): line for line in listed.splitlines()}
    assert "stopped" in rows["good.run"] and "video deleted" in rows["deleted.run"]
    assert any(name.startswith("link.run -> ") and name.endswith("other.run") for name in rows)
    reasons = dict(line.strip().split(": ", 1) for line in rest.splitlines()[1:])
    assert reasons["empty.run"] == f"no {NAME}" and reasons["broken.run"].startswith(f"{NAME}, line 1, column 2")
    assert reasons["newer.run"].startswith(f"{NAME} is of a newer version of this program. Update")
    assert reasons["nowhere.run"].endswith("which is not there") and "notes.run" not in reasons


def test_removing_deletes_what_runs_write_and_nothing_else(root, tmp_path, capsys):
    (root / "good.run" / "my notes.txt").write_text("mine")
    (root / "good.run" / "state_000001.safetensors").write_text("x")
    for name in ("good", "deleted", "empty", "broken", "newer"):
        assert main(["runs", "remove", str(root / f"{name}.run")]) == 0
    assert "good.run, but for my notes.txt, which no run wrote" in capsys.readouterr().out
    assert [path.name for path in (root / "good.run").iterdir()] == ["my notes.txt"]
    assert main(["runs", "remove", str(root / "link.run")]) == 2 and (root / "link.run" / NAME).exists()
    assert "is a link to" in capsys.readouterr().err
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    for folder in (tmp_path / "pictures", root / "good.run", root / "none.run", root / "notes.run"):
        assert main(["runs", "remove", str(folder)]) == 2
    assert sorted(path.name for path in root.iterdir()) == ["good.run", "link.run", "notes.run", "nowhere.run"]
    assert (tmp_path / "pictures" / "a.png").exists()


def test_names_that_only_begin_as_those_of_a_run_are_others_files(root, capsys):
    folder, mine = root / "good.run", ["growing.mp4.bak", "state_000001.txt", "state_of_things.txt", "video.mp4.json"]
    ours = [
        "growing.mp4",
        "state_000002.safetensors",
        ".state_000003.safetensors.tmp-0a1b2c",
        ".video.finishing-0a1b2c.mp4",
    ]
    for stop in (Run(folder, WANTED, None).abandon, lambda: main(["runs", "remove", str(folder)])):
        for name in (*mine, *ours):
            (folder / name).write_text("x")
        stop()
        assert sorted(path.name for path in folder.iterdir()) == mine
    assert "which no run wrote" in capsys.readouterr().out


def test_what_is_no_run_is_said_in_one_sentence(root, capsys):
    for command in ("show", "resume"):
        for name in ("empty", "notes", "none", "nowhere"):
            assert main(["runs", command, str(root / f"{name}.run")]) == 2
            assert f"is no run: there is no {NAME} in it" in capsys.readouterr().err
        assert main(["runs", command, str(root / "newer.run")]) == 2
        assert "of a newer version" in capsys.readouterr().err


def test_500_runs_are_listed_at_once(tmp_path, capsys, monkeypatch):
    """Each manifest is read once."""
    for number in range(500):
        run(tmp_path / f"talk_{number:03}.run")
    read, counted = Manifest.read, []
    monkeypatch.setattr(Manifest, "read", lambda folder: counted.append(folder) or read(folder))
    started = time.process_time()  # which other processes do not move
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert len(counted) == len(set(counted)) == 500
    assert len(capsys.readouterr().out.splitlines()) == 501 and time.process_time() - started < 10


def test_a_run_that_is_given_up_before_its_first_frame_takes_no_other_file_with_it(root):
    folder = root / "good.run"
    (folder / "my notes.txt").write_text("mine")
    Run(folder, WANTED, None, goes_on=True).abandon()
    assert [path.name for path in folder.iterdir()] == ["my notes.txt"]
    (folder / "my notes.txt").unlink()
    Run(folder, WANTED, None).abandon()
    assert not folder.exists()


def test_a_run_that_goes_away_while_it_is_listed_is_no_error(root, monkeypatch):
    found = Found(run(root / "leaving.run"), WANTED)
    size = (found.folder / NAME).stat().st_size
    assert found.num_bytes == size and found.changed_at > 0
    (found.folder / "state_000001.safetensors").write_text("x")
    listed = list(found.folder.iterdir())
    (found.folder / "state_000001.safetensors").unlink()
    monkeypatch.setattr(type(found.folder), "iterdir", lambda folder: iter(listed))
    assert found.num_bytes == size
    monkeypatch.undo()
    (found.folder / NAME).unlink()
    found.folder.rmdir()
    assert found.num_bytes == 0 and found.changed_at == 0
