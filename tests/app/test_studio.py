"""The queue and the runs of the app: the same frames as `generate`, progress, cancelling, going on, and its address."""

import importlib.util
import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support import jobs
from support.studio import base, free_port

from wanvideo.app import server
from wanvideo.app.form import Form, Knobs
from wanvideo.app.queue import CANCELLED, ENDED, FAILED, FINISHED, MOST_WAITING, WAITING, TaskQueue
from wanvideo.app.studio import Studio
from wanvideo.app.texts import CHINESE, ENGLISH
from wanvideo.app.uploads import Uploads
from wanvideo.cli.main import main
from wanvideo.errors import InputError, UnsupportedError
from wanvideo.pipeline import TalkingVideoPipeline
from wanvideo.video.reader import open_frames


@pytest.fixture
def studio(tmp_path):
    arriving = tmp_path / ".arriving"
    arriving.mkdir()
    studio = Studio(base(), tmp_path, Uploads(tmp_path / "uploads", arriving, 10**8))
    yield studio
    studio.close()


@pytest.fixture
def form(studio):
    arriving = studio.uploads.arriving
    return Form(jobs.picture(arriving), "She talks.", (jobs.speech(arriving, 0.9),))


PATIENCE_S = 300.0  # with a machine that runs other tests too


def wait(task):
    end = time.monotonic() + PATIENCE_S
    while task.state not in ENDED:
        assert time.monotonic() < end, f"still {task.state}"
        time.sleep(0.02)
    return task


def frames_of(path):
    frames = open_frames(path)
    return [frames.frame_at(index / 25).tobytes() for index in range(frames.num_frames)]


def cancel_in_the_second_window(task):
    step = task.report

    def report(reported):
        if reported.window_index == 1:
            task.cancel()
        step(reported)

    task.report = report


def test_a_form_makes_the_frames_of_generate_and_a_cancelled_one_goes_on_to_the_bit(studio, form, tmp_path):
    job = studio.read(form)
    expected = TalkingVideoPipeline(job.files, job.options).generate(job.request, tmp_path / "other" / "by_flags.mp4")
    assert "3 windows of 2 steps" in studio.plan(form)
    task = studio.submit(form)
    cancel_in_the_second_window(task)
    assert wait(task).state == CANCELLED and task.num_windows == 3 and task.num_steps == 6
    (line,) = studio.runs()
    assert (line.state, line.num_windows, line.of_windows, line.prompt) == ("stopped", 1, 3, "She talks.")
    assert studio.video_of(line.name).stat().st_size > 1000, "it can be played"
    again = wait(studio.resume(line.name))
    assert again.state == FINISHED and studio.run_of(again) == line.name
    assert frames_of(again.output) == frames_of(expected) and studio.runs()[0].state == "finished"


def test_models_stay_for_the_next_video_and_leave_for_other_options(studio, form):
    one = replace(form, knobs=Knobs(seconds=0.5))
    assert wait(studio.submit(one)).state == FINISHED
    first = studio._pipeline
    assert wait(studio.submit(replace(one, knobs=Knobs(seconds=0.5, base_seed=3)))).state == FINISHED
    assert studio._pipeline is first and len(studio.runs()) == 2
    wrong = replace(form, sounds=(jobs.speech(studio.uploads.arriving, 1.0, level=0.0, name="quiet.wav"),))
    with pytest.raises(InputError, match="is silent"):
        studio.submit(wrong)
    assert len(studio.runs()) == 2


@pytest.mark.parametrize("name", ["", "..", "../other.run", "/etc", "uploads", "none.run"])
def test_only_runs_of_the_list_are_played_or_resumed(studio, name):
    for ask in (studio.video_of, studio.resume):
        with pytest.raises(InputError, match="no run"):
            ask(name)


def test_a_run_that_names_other_files_is_not_resumed(studio, form, tmp_path):
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    job = studio.read(replace(form, knobs=Knobs(seconds=0.4)))
    request = replace(job.request, reference=jobs.picture(elsewhere))
    TalkingVideoPipeline(job.files, job.options).generate(request, tmp_path / "foreign.mp4")
    with pytest.raises(InputError, match="'face.png', which is not in the app's folder"):
        studio.resume("foreign.run")


def test_videos_wait_their_turn_and_go_when_they_are_cancelled():
    queue, gate, made = TaskQueue(), threading.Event(), []

    def work(task):
        assert gate.wait(PATIENCE_S)
        made.append(task.id)
        return task.id

    tasks = [queue.submit(work) for _ in range(3)]
    while tasks[0].state == WAITING:
        gate.wait(0.01)
    assert [queue.num_before(task) for task in tasks] == [0, 1, 2]
    queue.cancel(tasks[1].id)
    queue.cancel("not a task")
    assert tasks[1].state == CANCELLED and queue.num_before(tasks[2]) == 1
    for _ in range(MOST_WAITING - 1):
        queue.submit(work)
    with pytest.raises(InputError, match=f"{MOST_WAITING} videos wait already"):
        queue.submit(work)
    gate.set()
    assert wait(tasks[2]).state == FINISHED and tasks[1].id not in made and queue.find(tasks[2].id) is tasks[2]
    queue.stop()


def test_a_failed_video_does_not_end_the_queue():
    queue = TaskQueue()

    def fail(task):
        raise [InputError("The sound is gone. Upload it again."), RuntimeError("out of luck")][len(failed)]

    failed = []
    for message in ("The sound is gone. Upload it again.", "RuntimeError: out of luck"):
        failed.append(wait(queue.submit(fail)))
        assert failed[-1].state == FAILED and failed[-1].message == message
    step = SimpleNamespace(window_index=1, num_windows=3, step_index=0, num_steps=4)
    task = wait(queue.submit(lambda task: task.report(step)))
    assert (task.step, task.num_steps, task.state) == (5, 12, FINISHED)
    queue.stop()


def test_a_port_that_is_taken_is_one_answer():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port} cannot be used on 127.0.0.1 .*Choose another"):
            server.check_address("127.0.0.1", port)
    server.check_address("127.0.0.1", port)
    with pytest.raises(InputError, match="--host 'no such host' is no address"):
        server.check_address("no such host", port)
    with pytest.raises(InputError, match="--port 99999 is not usable"):
        server.main(["--port", "99999"])


def test_without_gradio_one_sentence_says_so(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *at: None if name == "gradio" else find(name, *at))
    with pytest.raises(UnsupportedError, match="gradio, which is not installed. Run pip install .gradio>=6,<7.[.]$"):
        server.check_installed()
    assert main(["app"]) == 2 and "gradio>=6,<7" in capsys.readouterr().err


def test_it_starts_with_the_reference_s_models_if_none_are_named(monkeypatch):
    assert "--ckpt_dir=./weights/Wan2.1-I2V-14B-480P" in server.with_models([])
    assert server.with_models(["--dit_path=a.safetensors"]) == ["--mode=streaming", "--dit_path=a.safetensors"]
    monkeypatch.setattr(server, "check_installed", lambda: None)
    with pytest.raises(InputError, match="'--sample_step' is no flag"):
        server.main(["--port", str(free_port()), "--sample_step", "8"])
    assert server.PORT == 8418 and server.HOST == "127.0.0.1"


def test_both_languages_say_everything():
    for name, english in vars(ENGLISH).items():
        chinese = getattr(CHINESE, name)
        assert type(chinese) is type(english) and (chinese or name == "path")
        if isinstance(english, str):
            assert chinese.count("{}") == english.count("{}"), name
    assert [key for key, _ in ENGLISH.states] == [key for key, _ in CHINESE.states]
    assert all(ENGLISH.state(name) for name in (WAITING, *ENDED, "running", "stopped"))


def test_a_video_is_never_taken_for_the_one_that_was_cancelled_before_it(studio, form):
    task = studio.submit(form)
    cancel_in_the_second_window(task)
    assert wait(task).state == CANCELLED
    other = wait(studio.submit(replace(form, knobs=Knobs(seconds=0.4, base_seed=5))))
    assert studio.run_of(other) != studio.run_of(task) and len(frames_of(studio.video_of(studio.run_of(other)))) == 10
