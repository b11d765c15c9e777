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


def test_a_stop_that_comes_early_ends_the_task_that_begins(group):
    group.stop()
    with pytest.raises(TaskFailed) as failed:
        list(group.run(Toy("wait")))
    assert failed.value.was_stopped and group.is_warm
    assert done(group, Toy("work"))[1] == 2, "one stop ends one task"


def test_a_worker_that_breaks_while_it_should_stop_is_not_kept(group):
    messages = group.run(Toy("break when stopped"))
    next(messages)
    group.stop()
    with pytest.raises(TaskFailed, match="It broke") as failed:
        list(messages)
    assert not failed.value.was_stopped and not group.is_warm


def test_a_worker_whose_question_cannot_be_answered_stops_and_stays_warm(group):
    with pytest.raises(ZeroDivisionError):
        done(group, Toy("ask"), answers=lambda question: 1 / 0)
    assert group.is_warm and done(group, Toy("work"))[1] == 2


def test_a_group_that_is_closed_while_it_works_says_so_at_once(group):
    messages = group.run(Toy("hang"))
    next(messages)
    group.close(0.0)
    with pytest.raises(WorkerDied, match="Worker 0 of 1 ended with status -9"):
        list(messages)
    assert not group.is_warm


class Fakes:
    """A group of two ranks of which each says one thing, in this order. Args: said: (rank, message)."""

    def __init__(self, monkeypatch, *said):
        self.group = Group(2)
        process = SimpleNamespace(wait=lambda timeout: 0, returncode=-9, kill=lambda: None)
        channel = SimpleNamespace(send=lambda message: None, close=lambda: None)
        ranks = [_Process(index, process, channel, deque([f"the log of {index}"])) for index in range(2)]

        def start(key):
            self.group._ranks, self.group._inbox = list(ranks), queue.Queue()
            for rank, message in said:
                self.group._inbox.put((ranks[rank], message))

        monkeypatch.setattr(self.group, "_start", start)

    def run(self):
        try:
            list(self.group.run(SimpleNamespace(key="key", for_rank=lambda rank: None)))
        finally:
            assert not self.group.is_warm


LOST = Failed("UnsupportedError", "Rank 0 lost another rank. Start again.")


def test_a_rank_that_is_lost_is_a_death_also_where_another_one_says_so_first(monkeypatch):
    with pytest.raises(WorkerDied, match="Worker 1 of 2"):
        Fakes(monkeypatch, (0, LOST), (1, EOFError())).run()
    with pytest.raises(TaskFailed, match="Rank 0 lost"):
        Fakes(monkeypatch, (0, LOST), (1, Failed("OutputError", "The disk is full. Make room."))).run()


def test_the_failure_of_a_rank_is_told_also_where_another_one_repeats_it_first(monkeypatch):
    echo = Failed("PeerStopped", "Rank 0 ended the job: InputError: It is wrong. Mend it.")
    with pytest.raises(TaskFailed, match=r"^It is wrong. Mend it.$") as failed:
        Fakes(monkeypatch, (1, echo), (0, Failed("InputError", "It is wrong. Mend it.", is_final=True))).run()
    assert failed.value.is_final, "it is not tried again"
    with pytest.raises(TaskFailed, match="Rank 0 ended the job"):
        Fakes(monkeypatch, (1, echo)).run()
