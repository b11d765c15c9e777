"""A run whose process ends at any of its file operations: what is there plays, and the rest comes out the same."""

import contextlib
import errno
import itertools
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import kills, media_files

from wanvideo.errors import OutputError
from wanvideo.quality.drift import WindowMeasures
from wanvideo.runs import store
from wanvideo.runs.find import open_run
from wanvideo.runs.manifest import Manifest, Plan
from wanvideo.runs.store import GROWING, Run
from wanvideo.video.soundtrack import Soundtrack, Waveform

WINDOWS = (13, 8, 8, 5)
PLAN = Plan(64, 48, 25.0, sum(WINDOWS), len(WINDOWS))
WANTED = Manifest({"seed": "1"}, {"speech": "a"}, PLAN)
MEASURES = WindowMeasures(0, 0, (50.0, 1.0, 2.0), (20.0, 3.0, 4.0), 300.0, 0.0, 1.0)
SOUND = Soundtrack((Waveform(media_files.tone(16000, 2).T, 16000),))
FRAMES = torch.from_numpy(
    np.clip(
        media_files.numbered_frames(sum(WINDOWS)).astype(int)
        + np.random.default_rng(0).integers(-4, 5, (sum(WINDOWS), 48, 64, 3)), 0, 255,
    ).astype(np.uint8)
)  # fmt: skip


def make(folder: Path, name: str = "talk", windows: int = len(WINDOWS)) -> Path | None:
    """A run as `engine.recorded` makes it, from wherever it is; stopped after so many windows."""
    run = open_run(WANTED, folder / f"{name}.run", "auto", SOUND)
    done = run.manifest.progress.num_windows
    assert run.state == (f"state {done}".encode() if done and run.video is None else None)
    ends = list(itertools.accumulate(WINDOWS))
    for index in range(done, windows):
        run.write(FRAMES[ends[index] - WINDOWS[index] : ends[index]])
        run.commit(f"state {index + 1}".encode(), f"speech {index + 1}", MEASURES)
    if windows < len(WINDOWS):
        run.abandon()
        return None
    run.close()
    return run.save_as(folder / f"{name}.mp4")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(tmp_path_factory.mktemp("whole")).read_bytes()


def counted(folder, file):
    done = kills.count_operations(Path(folder))
    make(Path(folder))
    Path(file).write_text(str(len(done)))


def killed(folder, number):
    kills.count_operations(Path(folder), int(number))
    make(Path(folder))


def failed(folder, number):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    kills.count_operations(Path(folder), int(number), fail)
    with contextlib.suppress(OutputError, OSError):  # of some operations the failure does not matter
        make(Path(folder))


def test_every_file_operation_may_be_the_last(tmp_path, whole, nursery):
    (tmp_path / "counted").mkdir()
    assert nursery.run("counted", tmp_path / "counted", tmp_path / "number") == 0
    num_operations = int((tmp_path / "number").read_text())
    assert num_operations > 60
    chosen = range(1, num_operations + 1)
    if not os.environ.get("WANVIDEO_KILLS"):
        chosen = sorted(random.Random(0).sample(chosen, 30))
    for number in chosen:
        folder = tmp_path / str(number)
        folder.mkdir()
        assert nursery.run("killed", folder, number) == signal.SIGKILL, number
        output, growing = folder / "talk.mp4", folder / "talk.run" / GROWING
        assert not output.exists() or output.read_bytes() == whole
        if growing.exists() and growing.stat().st_size > 2000:
            assert kills.playable(growing) in itertools.accumulate(WINDOWS), number
        if not output.exists():
            make(folder)
        assert output.read_bytes() == whole, number
        rest = {path.name for path in (folder / "talk.run").iterdir()}
        assert rest - {".lock"} == {"drift.jsonl", "drift.png", "manifest.json", "video.mp4"}, number


@pytest.mark.parametrize("number", range(1, 60, 8))
def test_an_operation_that_fails_leaves_a_run_that_goes_on(tmp_path, whole, nursery, number):
    assert nursery.run("failed", tmp_path, number) == 0
    if not (tmp_path / "talk.mp4").exists():
        make(tmp_path)
    assert (tmp_path / "talk.mp4").read_bytes() == whole


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_a_torn_write_costs_its_window_only(tmp_path, whole, windows):
    make(tmp_path, windows=windows)
    growing = tmp_path / "talk.run" / GROWING
    size = growing.stat().st_size
    with growing.open("ab") as file:
        file.write(whole[:700])  # what was written of a window when its machine stopped
    assert kills.playable(growing) == sum(WINDOWS[:windows])
    assert make(tmp_path).read_bytes() == whole and size > 2000


def test_the_growing_file_has_its_sound_after_each_window(tmp_path):
    for windows in range(1, len(WINDOWS)):
        make(tmp_path, windows=windows)
        assert kills.playable(tmp_path / "talk.run" / GROWING) == sum(WINDOWS[:windows])


def test_two_writers_never_share_a_run(tmp_path, whole):
    run = Run(tmp_path / "talk.run", WANTED, SOUND)
    run.write(FRAMES[:13])
    run.commit(b"state 1", "speech 1", MEASURES)
    with pytest.raises(OutputError, match=f"written by process {os.getpid()}"):
        Run(tmp_path / "talk.run", WANTED, SOUND, goes_on=True)
    with pytest.raises(OutputError, match="being written by another process"):
        open_run(replace(WANTED, identity={"seed": "2"}), tmp_path / "talk.run", "auto", SOUND)
    run.abandon()
    (tmp_path / "talk.run" / ".lock").write_text("1")  # of a process that was killed, or a number used again
    assert make(tmp_path).read_bytes() == whole


def test_a_clock_that_goes_back_changes_nothing(tmp_path, whole):
    make(tmp_path, windows=2)
    for file in (tmp_path / "talk.run").iterdir():
        os.utime(file, (1, 1))
    assert make(tmp_path).read_bytes() == whole


def test_a_folder_that_was_removed_is_said(tmp_path):
    run = Run(tmp_path / "talk.run", WANTED, SOUND)
    run.write(FRAMES[:13])
    for file in (tmp_path / "talk.run").iterdir():
        file.unlink()
    (tmp_path / "talk.run").rmdir()
    with pytest.raises(OutputError, match="was removed"):
        run.write(FRAMES[13:21])
    run.abandon()


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path, monkeypatch):
    """Nor what was copied so far of the video that it was to make longer."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    short = replace(WANTED, sound={"frames": "21"}, plan=replace(PLAN, num_frames=21, num_windows=2), can_grow=True)
    run = open_run(short, tmp_path / "short.run", "auto", SOUND)
    for index in range(2):
        run.write(FRAMES[13 * index : 13 + 8 * index])
        run.commit(f"state {index + 1}".encode(), "speech", MEASURES)
    run.close()
    monkeypatch.setattr(store, "write_atomically", full)
    monkeypatch.setattr(Manifest, "write", full)
    for resume in ("auto", "never"):
        with pytest.raises(OutputError, match="The disk is full"):
            open_run(WANTED, tmp_path / "talk.run", resume, SOUND)
    assert [path.name for path in tmp_path.iterdir()] == ["short.run"]


def test_the_video_is_there_once(tmp_path):
    output = make(tmp_path)
    files = [path for path in tmp_path.rglob("*.mp4")]
    assert len(files) == 2 and len({path.stat().st_ino for path in files}) == 1 and output.stat().st_nlink == 2
