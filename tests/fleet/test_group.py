"""Worker processes: warm between tasks, stopped after a step, started anew after a failure or a crash."""

import io
import os
import queue
from collections import deque
from contextlib import closing
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.fleet_tasks import Toy
from support.pack import load_pack

from wanvideo.fleet.group import Group, TaskFailed, WorkerDied, _Process
from wanvideo.fleet.messages import Done, Failed, Made, Step


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


@pytest.mark.parametrize("dies", [True, False])
def test_a_rank_that_is_lost_is_a_death_also_where_another_one_says_so_first(dies, monkeypatch):
    group, lost = Group(2), Failed("PeerStopped", "Rank 0 lost another rank. Start again.")
    process = SimpleNamespace(wait=lambda timeout: 0, returncode=-9, kill=lambda: None)
    channel = SimpleNamespace(send=lambda message: None, close=lambda: None)
    ranks = [_Process(process, channel, deque([f"the log of {index}"])) for index in range(2)]

    def start(key):
        group._ranks, group._inbox = list(ranks), queue.Queue()
        group._inbox.put((ranks[0], lost))
        group._inbox.put((ranks[1], EOFError() if dies else Failed("OutputError", "The disk is full. Make room.")))

    monkeypatch.setattr(group, "_start", start)
    task = SimpleNamespace(key="key", for_rank=lambda rank: None)
    with pytest.raises(WorkerDied if dies else TaskFailed, match="Worker 1 of 2" if dies else "Rank 0 lost"):
        list(group.run(task))
    assert not group.is_warm
