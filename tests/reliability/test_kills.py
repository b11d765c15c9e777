"""Whole videos of tiny models, killed at each stage and at random moments: the rest comes out the same to the bit."""

import functools
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support import jobs, kills

from wanvideo import TalkingVideoPipeline
from wanvideo.cli import main as cli
from wanvideo.cli.runs import main as runs
from wanvideo.engine import recorded
from wanvideo.errors import OutputError
from wanvideo.runs import measured, store
from wanvideo.runs.manifest import Manifest
from wanvideo.runs.store import GROWING, Run
from wanvideo.sampling.codec import VideoCodec
from wanvideo.video.part import VideoPart

NUM_KILLS = int(os.environ.get("WANVIDEO_KILLS", "2"))
NUM_FRAMES = (13, 21, 29, 37, 40)  # with each window
PATIENCE_S = 300.0  # with a process that starts on a machine that does much else
# Where a kill strikes, and the how manieth time of that.
STAGES = {
    "step": (None, 5),
    "decode": ((VideoCodec, "decode"), 3),
    "encode": ((VideoPart, "_encode"), 3),
    "state": ((store, "write_atomically"), 3),
    "manifest": ((Manifest, "write"), 3),
    "between windows": ((recorded, "speech_digest"), 3),
    "last window": ((Run, "commit"), 5),
    "mux": ((store, "with_sound"), 1),
    "name": ((Run, "save_as"), 1),
}


def video(folder, on_step=None):
    folder = Path(folder)
    request = jobs.request(folder, [jobs.speech(folder, 1.6)])
    return pipeline().generate(request, folder / "talk.mp4", on_step=on_step)


@functools.cache
def pipeline():
    return TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)


def killed(folder, models, stage):
    """`video`, killed at a stage. models: the folder of the tests' own models."""
    place, number = STAGES[stage]
    seen = 0

    def strike(*args, **kwargs):
        nonlocal seen
        seen += 1
        return kills.die() if seen == number else real and real(*args, **kwargs)

    real = place and getattr(*place)
    if place:
        setattr(*place, strike)
    jobs.official = lambda: Path(models)
    video(folder, None if place else strike)


def killed_after(folder, models, cpu_s):
    """On the clock of its own work, which other processes make neither faster nor slower."""
    signal.setitimer(signal.ITIMER_PROF, float(cpu_s))  # its signal ends a process that does not ask for it
    jobs.official = lambda: Path(models)
    video(folder)
    (Path(folder) / "cpu_s").write_text(str(time.process_time()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return video(tmp_path_factory.mktemp("whole")).read_bytes()


def check_rest(folder, whole):
    """After a kill the file plays with its sound and holds whole windows; the same request makes the same video."""
    growing, output = folder / "talk.run" / GROWING, folder / "talk.mp4"
    assert not output.exists()
    if growing.exists() and growing.stat().st_size > 2000:
        assert kills.playable(growing) in NUM_FRAMES
    assert video(folder).read_bytes() == whole
    left = sorted(path.name for path in (folder / "talk.run").iterdir())
    assert left == ["drift.jsonl", "drift.png", "manifest.json", "video.mp4"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_at_each_stage(tmp_path, nursery, whole, stage):
    assert nursery.run("killed", tmp_path, jobs.official(), stage) == signal.SIGKILL
    check_rest(tmp_path, whole)


def test_kills_at_random_moments(tmp_path, nursery, whole):
    (tmp_path / "timed").mkdir()
    assert nursery.run("killed_after", tmp_path / "timed", jobs.official(), 600) == 0
    lasts_s = float((tmp_path / "timed" / "cpu_s").read_text())
    chance, resumed = random.Random(1), 0
    for number in range(NUM_KILLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        status = nursery.run("killed_after", folder, jobs.official(), chance.uniform(0.3, 1.0) * lasts_s)
        assert status in (0, signal.SIGPROF)
        if not (folder / "talk.mp4").exists():
            resumed += 1
            check_rest(folder, whole)
        assert (folder / "talk.mp4").read_bytes() == whole
    assert resumed, "every kill came too late"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_a_request_to_end_is_an_interruption(number, capsys):
    def command(arguments):
        os.kill(os.getpid(), number)
        time.sleep(10)

    # A shell has commands in the background ignore SIGINT; here it is what it is in front.
    outside = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        before = signal.getsignal(number)
        assert cli.run(command, []) == 130 and "goes on from there" in capsys.readouterr().err
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, outside)


class Stop(Exception):
    pass


def stop_in(window):
    def stop(report):
        if report.window_index == window:
            raise Stop

    return stop


def test_a_changed_request_says_what_differs_and_begins_anew(tmp_path, whole, caplog):
    with pytest.raises(Stop):
        video(tmp_path, stop_in(2))
    changed = jobs.request(tmp_path, [jobs.speech(tmp_path, 1.6)], seed=43)
    with pytest.raises(OutputError, match=r"another request: seed was 42, is 43"):
        pipeline().generate(changed, tmp_path / "other.mp4", resume=str(tmp_path / "talk.run"))
    assert pipeline().generate(changed, tmp_path / "talk.mp4").read_bytes() != whole
    assert "seed was 42, is 43" in caplog.text and (tmp_path / "talk_2.run" / "video.mp4").exists()
    assert kills.playable(tmp_path / "talk.run" / GROWING) == 21
    done = pipeline().generate(jobs.request(tmp_path, [str(tmp_path / "speech.wav")]), tmp_path / "first.mp4")
    assert done.read_bytes() == whole


def test_a_longer_video_of_the_same_speech_goes_on(tmp_path, whole):
    """Frames of windows that are there cannot differ: the speech was encoded as a whole."""
    sound = [jobs.speech(tmp_path, 1.6)]
    with pytest.raises(Stop):
        pipeline().generate(jobs.request(tmp_path, sound, max_frames=32), tmp_path / "talk.mp4", on_step=stop_in(2))
    seen = []
    longer = jobs.request(tmp_path, sound)
    path = pipeline().generate(longer, tmp_path / "talk.mp4", on_step=lambda report: seen.append(report.window_index))
    assert set(seen) == {2, 3, 4} and path.read_bytes() == whole


def test_a_finished_video_of_the_same_speech_is_made_longer(tmp_path, whole, caplog):
    """From where its last window began, which its end cut; by way of a kill, and of a second length."""
    jobs.capture_log(caplog)
    sound, seen = [jobs.speech(tmp_path, 1.6)], []
    pipeline().generate(jobs.request(tmp_path, sound, max_frames=24), tmp_path / "a.mp4")
    short = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(Stop):
        pipeline().generate(jobs.request(tmp_path, sound, max_frames=33), tmp_path / "b.mp4", on_step=stop_in(2))
    assert not (tmp_path / "b.run").exists(), "what was only copied is not kept"
    longer = jobs.request(tmp_path, sound, max_frames=33)
    with pytest.raises(Stop):
        pipeline().generate(longer, tmp_path / "b.mp4", on_step=stop_in(3))
    assert kills.playable(tmp_path / "b.run" / GROWING) == 29
    pipeline().generate(longer, tmp_path / "b.mp4")
    request = jobs.request(tmp_path, sound)
    path = pipeline().generate(request, tmp_path / "talk.mp4", on_step=lambda report: seen.append(report.window_index))
    assert set(seen) == {3, 4} and path.read_bytes() == whole and (tmp_path / "a.mp4").read_bytes() == short
    manifest = Manifest.read(tmp_path / "talk.run")
    assert [measures.index for measures in measured.read(tmp_path / "talk.run", 9)] == [0, 1, 2, 3, 4]
    assert manifest.tail is None
    assert sorted(path.name for path in (tmp_path / "talk.run").iterdir()) == [
        "drift.jsonl",
        "drift.png",
        "manifest.json",
        "video.mp4",
    ]
    assert sorted(path.name for path in (tmp_path / "a.run").iterdir())[3] == "state_000002.safetensors"
    pipeline().generate(jobs.request(tmp_path, [jobs.speech(tmp_path, 2.4)]), tmp_path / "later.mp4")
    assert "cannot be made longer" in caplog.text and "do not fit the beginning of this sound" in caplog.text


def test_speech_whose_features_differ_begins_anew(tmp_path, caplog):
    with pytest.raises(Stop):
        video(tmp_path, stop_in(2))
    longer = jobs.request(tmp_path, [jobs.speech(tmp_path, 2.4)])
    with pytest.raises(OutputError, match="take in what comes later"):
        pipeline().generate(longer, tmp_path / "talk.mp4", resume=str(tmp_path / "talk.run"))
    path = pipeline().generate(longer, tmp_path / "talk.mp4")
    fresh = pipeline().generate(longer, tmp_path / "fresh.mp4", resume="never")
    assert path.read_bytes() == fresh.read_bytes() and "Make the video anew" in caplog.text


def test_windows_of_a_run_folder_are_yielded_once(tmp_path):
    request = replace(jobs.request(tmp_path, [jobs.speech(tmp_path, 1.6)]), output=None)
    windows = pipeline().run(request, folder=tmp_path / "talk.run")
    assert [next(windows).index, next(windows).index] == [0, 1]
    windows.close()
    assert [window.index for window in pipeline().run(request, folder=tmp_path / "talk.run")] == [2, 3, 4]
    assert (tmp_path / "talk.run" / "video.mp4").exists()


def test_the_command_lists_shows_resumes_and_removes(tmp_path, whole, capsys):
    with pytest.raises(Stop):
        video(tmp_path, stop_in(3))
    (tmp_path / ".old.partial-12ab34.mp4").touch()
    assert cli.run(runs, ["list", str(tmp_path)]) == 0
    listed = capsys.readouterr().out
    assert "talk.run" in listed and "stopped" in listed and "3/5" in listed and ".old.partial-12ab34.mp4" in listed
    assert cli.run(runs, ["show", str(tmp_path / "talk.run")]) == 0
    assert "settings.steps" in capsys.readouterr().out
    assert cli.run(runs, ["resume", str(tmp_path / "talk.run")]) == 0
    assert (tmp_path / "talk.mp4").read_bytes() == whole
    assert cli.run(runs, ["remove", str(tmp_path / "talk.run")]) == 0
    assert (tmp_path / "talk.mp4").read_bytes() == whole and not (tmp_path / "talk.run").exists()
    assert cli.run(runs, ["show", str(tmp_path)]) == 2 and "manifest" in capsys.readouterr().err


def test_the_real_command_is_killed_and_goes_on(tmp_path, whole):
    """A process of its own, by its command line; SIGKILL as soon as two windows are there."""
    with pytest.raises(Stop):
        video(tmp_path, stop_in(1))
    command = [sys.executable, "-m", "wanvideo", "runs", "resume", str(tmp_path / "talk.run")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE_S
    try:
        while process.poll() is None and Manifest.read(tmp_path / "talk.run").progress.num_windows < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    if not (tmp_path / "talk.mp4").exists():
        check_rest(tmp_path, whole)
