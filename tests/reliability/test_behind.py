"""Windows that are written behind the sampling: one at a time, in order, with their errors, and none lost."""

import threading
from pathlib import Path

import pytest
import torch

from wanvideo.errors import OutputError
from wanvideo.quality.drift import WindowMeasures
from wanvideo.runs.behind import WrittenBehind
from wanvideo.runs.manifest import Manifest, Plan, Progress

MEASURES = WindowMeasures(0, 0, (50.0, 1.0, 2.0), (20.0, 3.0, 4.0), 300.0, 0.0, 1.0)


class SlowRun:
    """A run whose windows take as long as the test wants. fails_at: number of the window that cannot be written."""

    def __init__(self, fails_at=None):
        self.manifest, self.fails_at = Manifest({}, {}, Plan(16, 16, 25.0, 40, 5)), fails_at
        self.may_write, self.done, self.ends = threading.Semaphore(0), [], []

    def write(self, frames):
        self.may_write.acquire()
        if int(frames[0, 0, 0, 0]) == self.fails_at:
            raise OutputError("The disk is full. Make room.")
        self.done.append(("write", int(frames[0, 0, 0, 0])))

    def commit(self, state, speech, measures):
        self.done.append(("commit", state))
        self.manifest = self.manifest.at(Progress(self.manifest.progress.num_windows + 1, speech=speech))

    def close(self):
        self.ends.append("closed")
        return Path("video.mp4")

    def abandon(self):
        self.ends.append("abandoned")


def sample(behind, index):
    behind.write(torch.full((2, 16, 16, 3), index, dtype=torch.uint8))
    behind.commit(b"%d" % index, "speech", MEASURES)


def test_the_next_window_is_sampled_while_one_is_written_and_no_more_than_one():
    run, committed = SlowRun(), []
    behind = WrittenBehind(run, committed.append)
    sample(behind, 0)
    assert run.done == [], "it is not waited for"
    late = threading.Thread(target=sample, args=(behind, 1))
    late.start()
    late.join(0.2)
    assert late.is_alive(), "a second one is"
    run.may_write.release(2)
    late.join(60)
    assert behind.close() == Path("video.mp4") and run.ends == ["closed"] and committed == [1, 2]
    assert run.done == [("write", 0), ("commit", b"0"), ("write", 1), ("commit", b"1")]


def test_an_error_is_raised_in_the_loop_and_nothing_is_written_after_it():
    run = SlowRun(fails_at=1)
    run.may_write.release(3)
    behind = WrittenBehind(run)
    sample(behind, 0)
    sample(behind, 1)
    with pytest.raises(OutputError, match="disk is full"):
        sample(behind, 2)
    behind.abandon()
    assert run.done == [("write", 0), ("commit", b"0")] and run.ends == ["abandoned"]


def test_an_error_of_the_last_window_ends_the_run_unfinished(caplog):
    run = SlowRun(fails_at=0)
    run.may_write.release()
    behind = WrittenBehind(run)
    sample(behind, 0)
    with pytest.raises(OutputError, match="disk is full"):
        behind.close()
    assert run.ends == ["abandoned"] and not caplog.records


def test_a_run_that_is_abandoned_keeps_what_was_sampled(caplog):
    run = SlowRun()
    behind = WrittenBehind(run)
    sample(behind, 0)
    run.may_write.release()
    behind.abandon()
    assert run.done == [("write", 0), ("commit", b"0")] and run.ends == ["abandoned"]
    run = SlowRun(fails_at=0)
    run.may_write.release()
    behind = WrittenBehind(run)
    sample(behind, 0)
    behind.abandon()
    assert run.ends == ["abandoned"] and "disk is full" in caplog.text
