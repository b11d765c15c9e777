"""The command on this machine: jobs of tiny models on two workers, of which one is killed, and what is said of it."""

import json
import os
import re
import signal
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support import jobs, media_files
from support.fleet_flags import SMALL, job_file, model_flags
from support.ranks import run_ranks

from wanvideo.cli import batch
from wanvideo.cli.main import run
from wanvideo.errors import InputError, OutputError
from wanvideo.fleet import local, tasks
from wanvideo.fleet.local import local_places
from wanvideo.parallel.layout import Layout, WantedRanks
from wanvideo.parallel.team import Team
from wanvideo.runs.find import Neighbors, last_writes


@pytest.fixture(scope="module", autouse=True)
def models():
    jobs.official()


def events_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_jobs_are_done_by_a_warm_worker_and_a_killed_one_resumes(tmp_path, capsys, monkeypatch):
    """The worker is killed in the third window of the first job, which another one goes on with, and then the rest."""
    killed = threading.Event()
    real = local.LocalPlace.run

    def murderous(place, work, on_step, on_line):
        def step(report):
            on_step(report)
            if work.name == "a" and report.window_index == 2 and not killed.is_set():
                killed.set()
                os.kill(place.process_ids[0], signal.SIGKILL)

        return real(place, work, step, on_line)

    monkeypatch.setattr(local.LocalPlace, "run", murderous)
    path = job_file(tmp_path, *({"name": name, "flags": {"base_seed": seed}} for seed, name in enumerate("ab")))
    arguments = [path, "--out", str(tmp_path / "out"), "--json", *model_flags(), *SMALL]
    assert run(batch.main, arguments) == 0
    events = events_of(capsys)
    assert events[-1] == {"event": "end", "done": 2, "jobs": 2}
    assert [event["job"] for event in events if event["event"] == "retried"] == ["a"]
    videos = [media_files.decoded_frames(tmp_path / "out" / f"{name}.mp4") for name in "ab"]
    assert {video.shape for video in videos} == {(25, 48, 48, 3)} and (videos[0] != videos[1]).any()
    log = (tmp_path / "out" / "logs" / "a.log").read_text()
    assert re.search("[12] of 3 windows are there", log), "the second one may have been on its way to the disk"
    assert " transformer " not in log.split("running worker 1")[-1], "it was loaded for the other job"
    assert run(batch.main, arguments) == 0, "the same batch again finds everything there"
    assert [event["event"] for event in events_of(capsys)] == ["there"] * 2 + ["end"]


def test_a_video_of_other_content_under_the_same_names_is_not_there(tmp_path, capsys):
    """The sound is replaced by another one of the same length; then back, and then the video itself is replaced."""
    arguments = [job_file(tmp_path, {"name": "a"}), "--out", str(tmp_path), *model_flags(), *SMALL]
    sound, video = tmp_path / "speech.wav", tmp_path / "a.mp4"
    before = sound.read_bytes()
    assert run(batch.main, arguments) == 0
    jobs.speech(tmp_path, 1.0, frequency=330.0)
    assert run(batch.main, arguments) == 2
    assert re.search(r"a.mp4 exists and is of another request: sound of speaker 1 was .*, is ", capsys.readouterr().err)
    sound.write_bytes(before)
    assert run(batch.main, arguments) == 0 and "[1/1] a: there" in capsys.readouterr().out
    content = video.read_bytes()
    video.unlink()
    video.write_bytes(content + b"x")
    assert run(batch.main, arguments) == 2
    assert "no run beside it made it" in capsys.readouterr().err


class Worker:
    """One that fails in the second window of its first task."""

    place = SimpleNamespace(rank=0, world=1, device=lambda device: device)
    num_failures = 0

    def step(self, report):
        if report.window_index == 1 and not self.num_failures:
            self.num_failures += 1
            raise RuntimeError("a driver fell over")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_retry_goes_on_with_what_its_own_batch_began(tmp_path, overwrite, caplog):
    """With --resume never: an unfinished run of the same request is left alone, unlike the one of the first try."""
    request = jobs.request(tmp_path, output=str(tmp_path / "a.mp4"))
    files, options, worker = jobs.official_files(), jobs.OPTIONS, Worker()
    models = tasks.TalkingVideoPipeline(files, options)
    if overwrite:
        models.generate(request)
    else:
        with pytest.raises(RuntimeError):
            models.generate(request, on_step=Worker().step)
    task = tasks.VideoTask(
        request, files, options, WantedRanks(), overwrite, "never", last_writes(tmp_path / "a.mp4", Neighbors())
    )  # fmt: skip
    with pytest.raises(RuntimeError):
        task.perform(models, worker)
    jobs.capture_log(caplog)
    assert task.perform(models, worker) == tmp_path / "a.mp4"
    own = "a.run" if overwrite else "a_2.run"
    assert re.search(rf"{own} goes on: 1 of \d windows are there", caplog.text)
    assert sorted(folder.name for folder in tmp_path.glob("*.run")) == ["a.run", own][: 2 - overwrite]


def perform_again(mesh, task):
    """What a rank makes of a task whose video is there."""
    pipeline, team = tasks.TalkingVideoPipeline(task.files, task.options), Team(mesh)
    pipeline.engine.join(team, False)
    place = SimpleNamespace(rank=mesh.rank, world=mesh.world)
    return task.perform(pipeline, SimpleNamespace(place=place, step=None))


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_worker_that_dies_behind_the_last_window_has_made_the_video(tmp_path, resume):
    """It was killed, or another rank failed, before it could say so: the next try finds it, on all ranks."""
    request = jobs.request(tmp_path, output=str(tmp_path / "a.mp4"))
    task = tasks.VideoTask(request, jobs.official_files(), jobs.OPTIONS, WantedRanks(), False, resume)
    models = tasks.TalkingVideoPipeline(task.files, task.options)
    models.generate(request)
    assert run_ranks(Layout(ulysses=2), perform_again, task) == [tmp_path / "a.mp4", None]
    with pytest.raises(OutputError, match="exists and is left as it is"):
        replace(task, before=last_writes(tmp_path / "a.mp4", Neighbors())).perform(models, Worker())


def test_two_ranks_make_a_video_together(tmp_path, capsys):
    path = job_file(tmp_path, {"name": "a"})
    arguments = [path, "--out", str(tmp_path), "--gpus_per_job", "2", *model_flags("multi"), *SMALL]
    assert run(batch.main, arguments) == 0
    out = capsys.readouterr().out
    assert "1 of 1 jobs are done" in out and "[1/1] a: done" in out
    assert "2 ranks: 2 Ulysses" in (tmp_path / "logs" / "a.log").read_text()
    assert len(media_files.decoded_frames(tmp_path / "a.mp4")) == 25


def test_all_that_is_wrong_is_said_before_anything_starts(tmp_path, capsys):
    changes = (
        {}, {"cond_audio": {"person1": "missing.wav"}}, {"promt": 1}, {"flags": {"sample_steps": 0}},
        {"flags": {"no_such_flag": 1}}, {"flags": {"help": True}}, {"flags": {"save_file": "elsewhere"}},
        {"flags": {"overwrite": True}},
    )  # fmt: skip
    path = job_file(tmp_path, *changes)
    assert run(batch.main, [path, "--out", str(tmp_path / "out"), *model_flags(), *SMALL]) == 2
    said = capsys.readouterr().err
    for number in range(2, 9):
        assert f"jobs.jsonl, line {number}: " in said
    assert "7 things are wrong" in said and "line 1:" not in said and not (tmp_path / "out" / "logs").exists()


def test_gpus_are_dealt_out_in_groups():
    assert [place.name for place in local_places(None, 2, None, 5)] == ["GPUs 0, 1", "GPUs 2, 3"]
    assert [place.name for place in local_places(["3", "1"], 1, 1, 4)] == ["GPU 3"]
    assert [place.name for place in local_places(None, 1, 2, 0)] == ["worker 1", "worker 2"]
    for wrong in ((["4"], 1, None, 4), (["0", "0"], 1, None, 4), (None, 3, None, 2), (None, 1, 3, 2)):
        with pytest.raises(InputError):
            local_places(*wrong)


@pytest.mark.parametrize(
    "flags",
    [
        ["--engine", "comfy"],
        ["--server", "http://a"],
        ["--retries", "-1"],
        ["--engine", "comfy", "--server", "x"],
        ["--save_file", "talk"],
        ["--input_json=other.json"],
    ],
)
def test_flags_that_do_not_go_together(tmp_path, flags):
    with pytest.raises(InputError):
        batch.main([job_file(tmp_path, {}), *flags])
