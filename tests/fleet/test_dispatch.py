"""The queue: retries elsewhere, lost places, warm models first, an orderly end."""

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from wanvideo.errors import OutputError
from wanvideo.fleet import dispatch
from wanvideo.fleet.dispatch import Dispatcher, JobFailed, PlaceLost, Stopped
from wanvideo.fleet.messages import Step
from wanvideo.fleet.report import Report, Stage


@dataclass
class Toy:
    name: str
    key: object = None
    output: Path = Path("x.mp4")


@dataclass
class ToyPlace:
    """Does what `plan` says for a job's name: an error that is raised, or nothing."""

    name: str
    plan: dict = field(default_factory=dict)
    comes_back: bool = False
    key: object = None
    done: list = field(default_factory=list)
    stops: threading.Event = field(default_factory=threading.Event)
    is_closed: bool = False

    def run(self, work, on_step, on_line):
        on_line(f"a line of {work.name}")
        on_step(Step(0, 2, 0, 4))
        error = self.plan.get(work.name)
        if error == "waits":
            assert self.stops.wait(10)
            raise Stopped("Start it again.")
        if error is not None:
            raise error
        time.sleep(0.02)
        self.key = work.key
        self.done.append(work.name)
        return work.output

    def is_there(self):
        return self.comes_back

    def stop(self):
        self.stops.set()

    def close(self):
        self.is_closed = True


def run(tmp_path, works, places, retries=2, as_json=False):
    said = []
    report = Report([work.name for work in works], tmp_path, said.append, as_json)
    Dispatcher(places, retries, report).run(works)
    assert all(place.is_closed for place in places)
    return report, said


def test_a_job_that_fails_is_tried_elsewhere(tmp_path):
    bad, good = ToyPlace("bad", {"b": JobFailed("It broke. Start it again.")}), ToyPlace("good")
    report, said = run(tmp_path, [Toy(name) for name in "abc"], [bad, good])
    assert report.end() == 0 and "b" in good.done and sorted(bad.done + good.done) == list("abc")
    assert report.rows["b"].stage is Stage.DONE
    assert "a line of b" in (tmp_path / "b.log").read_text()


def test_retries_end_and_what_is_final_is_not_tried_again(tmp_path):
    errors = {"a": JobFailed("No. Start it again."), "b": JobFailed("Never. Mend it.", is_final=True)}
    report, said = run(tmp_path, [Toy("a"), Toy("b"), Toy("c")], [ToyPlace("one", errors)], retries=1)
    assert report.end() == 1
    assert [(row.stage, row.tries) for row in report.rows.values()] == [
        (Stage.FAILED, 2), (Stage.FAILED, 1), (Stage.DONE, 1),
    ]  # fmt: skip
    assert said[-1].startswith("1 of 3 jobs are done") and any(line.startswith("b ") for line in said[-5:])


def test_what_a_lost_place_had_is_done_elsewhere(tmp_path):
    lost = PlaceLost("Gone. Start it.")
    dead, alive = ToyPlace("dead", dict.fromkeys("abcd", lost)), ToyPlace("alive")
    report, _ = run(tmp_path, [Toy(name) for name in "abcd"], [dead, alive])
    assert report.end() == 0 and sorted(alive.done) == list("abcd")
    report, _ = run(tmp_path, [Toy(name) for name in "ab"], [ToyPlace("dead", dict.fromkeys("ab", lost))])
    assert report.end() == 1 and report.rows["b"].note == dispatch.NOWHERE


def test_jobs_go_where_their_models_are_loaded(tmp_path):
    place = ToyPlace("one")
    run(tmp_path, [Toy(f"{key}{n}", key) for n in range(3) for key in "xy"], [place])
    assert place.done == ["x0", "x1", "x2", "y0", "y1", "y2"]


def test_an_interrupt_ends_what_runs_and_begins_nothing_more(tmp_path, monkeypatch):
    place = ToyPlace("one", {"a": "waits"})

    def interrupted(seconds):
        raise KeyboardInterrupt

    report = Report(["a", "b"], tmp_path, lambda line: None)
    dispatcher = Dispatcher([place], 2, report)
    monkeypatch.setattr(dispatch.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dispatcher.run([Toy("a"), Toy("b")])
    assert [row.stage for row in report.rows.values()] == [Stage.STOPPED, Stage.STOPPED] and report.end() == 1


def test_lines_for_machines_are_json(tmp_path):
    report, said = run(tmp_path, [Toy("a")], [ToyPlace("one")], as_json=True)
    report.end()
    events = [json.loads(line) for line in said]
    assert [event["event"] for event in events] == ["running", "step", "done", "end"]
    assert events[1] == {"event": "step", "job": "a", "window": 1, "windows": 2, "step": 1, "steps": 4}
    assert events[-1] == {"event": "end", "done": 1, "jobs": 1}


def test_jobs_are_done_where_no_line_of_them_can_be_written(tmp_path):
    """A log that cannot be opened, as on a full disk, and a report that nobody reads any more."""

    def closed(line):
        raise BrokenPipeError("nobody reads")

    (tmp_path / "a.log").mkdir()
    place = ToyPlace("one", {"b": JobFailed("It broke. Start it again.")})
    report = Report(["a", "b", "c"], tmp_path, closed)
    Dispatcher([place], 1, report).run([Toy(name) for name in "abc"])
    assert place.done == ["a", "c"] and report.end() == 1
    assert report.rows["a"].stage is Stage.DONE and report.rows["b"].tries == 2
    with pytest.raises(OutputError, match=r"cannot be written"):
        Report(["a"], tmp_path / "c.log" / "logs", closed)


class Heavy(Toy):
    """A job that counts how often its key is asked for."""

    num_keys = 0

    def __getattribute__(self, name):
        Heavy.num_keys += name == "key"
        return super().__getattribute__(name)


def test_what_a_job_loads_is_asked_once_of_each_that_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(ToyPlace, "run", lambda place, work, on_step, on_line: work.output)
    works = [Heavy(str(number), "ab"[number % 2]) for number in range(300)]
    report, _ = run(tmp_path, works, [ToyPlace("one"), ToyPlace("two")])
    assert report.end() == 0 and Heavy.num_keys == len(works)
