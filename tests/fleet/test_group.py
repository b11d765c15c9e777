"""Worker processes: warm between tasks, stopped after a step, started anew after a failure or a crash."""

import io
import os
from contextlib import closing
from importlib import import_module
from pathlib import Path

import pytest
from support.fleet_tasks import Toy
from support.pack import load_pack

from wanvideo.fleet.group import Group, TaskFailed, WorkerDied
from wanvideo.fleet.messages import Done, Made, Step


@pytest.fixture
def group(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    lines = []
    group = Group(1, lines.append)
    group.lines = lines
    yield group
    group.close()


def done(group, task, **options):
    return list(group.run(task, **options))[-1].value


def test_a_worker_stays_warm_stops_and_starts_anew(group):
    process, count = done(group, Toy("work"))
    assert count == 1 and process == group.process_ids[0] != os.getpid()
    assert list(group.run(Toy("work"))) == [Made(0), Done((process, 2))]
    assert done(group, Toy("ask"), answers=lambda question: question.at[0] * 2) == 42
    with closing(group.run(Toy("wait"))) as messages:
        assert isinstance(next(messages), Step)
    assert done(group, Toy("work")) == (process, 5), "it stopped and stayed"
    with pytest.raises(TaskFailed, match="This task is wrong") as failed:
        done(group, Toy("fail"))
    assert failed.value.is_final and not group.is_warm
    with pytest.raises(WorkerDied, match="last words"):
        done(group, Toy("die"))
    assert "last words" in group.lines
    other, count = done(group, Toy("work"))
    assert count == 1 and other != process


def test_other_models_get_other_processes_and_stop_comes_from_any_thread(group):
    process, _ = done(group, Toy("work", "a"))
    other, count = done(group, Toy("work", "b"))
    assert other != process and count == 1
    messages = group.run(Toy("wait", "b"))
    next(messages)
    group.stop()
    with pytest.raises(TaskFailed) as failed:
        list(messages)
    assert failed.value.was_stopped and done(group, Toy("work", "b"))[0] == other


def test_classes_are_found_under_the_name_that_the_package_has_here():
    load_pack()
    for package, other in (("wanvideo", "/some/place/pack.wanvideo"), ("pack_under_test.wanvideo", "wanvideo")):
        channel, messages = (import_module(f"{package}.fleet.{name}") for name in ("channel", "messages"))
        data = f"c{other}.fleet.messages\nDone\n)R.".encode()
        received = channel.Channel(io.BytesIO(channel.LENGTH.pack(len(data)) + data), io.BytesIO()).receive()
        assert type(received) is messages.Done


def test_a_worker_that_does_not_stop_is_ended(group, monkeypatch):
    monkeypatch.setattr("wanvideo.fleet.group.STOP_S", 0.3)
    with closing(group.run(Toy("hang"))) as messages:
        assert isinstance(next(messages), Step)
    assert not group.is_warm
