"""Ranks that make one video: its passes, step caches, OOM fallbacks, errors and cancels are those of all of them."""

import functools
from dataclasses import replace

import pytest
import torch
from support.ranks import run_ranks
from support.sampling import SETTINGS, conditioning
from support.tiny import tiny_transformer, tiny_vae

from wanvideo import run_windows
from wanvideo.engine.shared import SharedAudio
from wanvideo.errors import InputError, UnsupportedError
from wanvideo.parallel.layout import Layout
from wanvideo.parallel.team import PeerStopped, Team
from wanvideo.parallel.transform import split_rows, split_tokens
from wanvideo.request import StepCache
from wanvideo.sampling import step_cache

GUIDED = replace(SETTINGS, guidance_scale=3.0, audio_guidance_scale=2.0)  # 3 passes


@functools.cache
def models():
    return tiny_transformer(), tiny_vae()


def video(mesh, settings, speakers, prepare=None, **arguments):
    transformer, vae = models()
    team = None
    if mesh is not None:
        team = Team(mesh)
        split_tokens(transformer, mesh, "sdpa")
        split_rows(vae, mesh)
    if prepare is not None:
        arguments |= prepare(mesh)
    windows = run_windows(transformer, vae, conditioning(speakers=speakers), settings, 3, ranks=team, **arguments)
    return torch.cat([window.pixels for window in windows])


@pytest.mark.parametrize(
    ("layout", "settings", "speakers"),
    [
        (Layout(cfg=2), replace(SETTINGS, guidance_scale=3.0), 1), (Layout(cfg=3), GUIDED, 1),
        (Layout(cfg=2), GUIDED, 2), (Layout(cfg=2, ulysses=2), GUIDED, 2), (Layout(ulysses=2, ring=2), SETTINGS, 2),
        (Layout(cfg=2, ulysses=2, ring=2), replace(SETTINGS, audio_guidance_scale=2.0), 1),
        (Layout(cfg=2), replace(SETTINGS, guidance_scale=(3.0, 1.0)), 1),  # the last step has one pass
    ],
)  # fmt: skip
def test_videos_are_those_of_one_rank(layout, settings, speakers):
    expected = video(None, settings, speakers)
    for pixels in run_ranks(layout, video, settings, speakers):
        assert (pixels - expected).abs().max() <= 1e-3


@pytest.mark.parametrize("kind", ["teacache", "magcache", "easycache"])
def test_step_caches_decide_alike(kind, monkeypatch):
    monkeypatch.setitem(step_cache.TEACACHE_POLYNOMIALS, "480", (1.0, 0.0))  # random weights move by more than theirs
    cache = StepCache(kind, 3.0, start_step=1, max_skips=100)
    settings = replace(GUIDED, steps=6, step_cache=cache)
    expected = video(None, settings, 1)
    uncached = video(None, replace(settings, step_cache=None), 1)
    assert (expected - uncached).abs().max() > 1e-4
    for pixels in run_ranks(Layout(cfg=2, ring=2), video, settings, 1):
        assert (pixels - expected).abs().max() <= 1e-3


def run_out_once(mesh):
    """The last rank alone runs out of memory, in its first step."""
    asked = []

    def on_step(report):
        if mesh is not None and mesh.rank == mesh.world - 1 and not asked:
            asked.append("failed")
            raise torch.cuda.OutOfMemoryError("planted")

    def free_memory():
        asked.append("freed")
        return True

    return {"on_step": on_step, "free_memory": free_memory}


def test_all_ranks_fall_back_when_one_runs_out_of_memory():
    expected = video(None, SETTINGS, 1)
    for pixels in run_ranks(Layout(ulysses=2), video, SETTINGS, 1, run_out_once):
        assert (pixels - expected).abs().max() <= 1e-3


def stopped(mesh):
    """What each rank says where the first one is cancelled after a step of its second window."""
    team, said = Team(mesh), None
    transformer, vae = models()
    split_tokens(transformer, mesh, "sdpa")

    def on_step(report):
        if mesh.rank == 0 and report.window_index == 1:
            raise KeyboardInterrupt

    steps = 0
    try:
        for _ in run_windows(transformer, vae, conditioning(), SETTINGS, 3, on_step, ranks=team):
            steps += 1
    except (KeyboardInterrupt, PeerStopped) as error:
        team.report(error)
        said = f"{type(error).__name__} {error}"
    return said, steps


def test_a_cancel_reaches_everybody_within_a_step():
    first, *others = run_ranks(Layout(ulysses=2, ring=2), stopped)
    assert first == ("KeyboardInterrupt ", 1)
    assert all(said == "PeerStopped Rank 0 ended the job: KeyboardInterrupt" and n == 1 for said, n in others)


def out_of_step(mesh):
    team = Team(mesh)
    mesh.counter.count = mesh.rank  # one of them is in an exchange that the other has not come to
    try:
        if mesh.rank:
            team.report(torch.cuda.OutOfMemoryError("planted"))
        team.check()
    except UnsupportedError as error:
        return str(error)


def test_memory_that_runs_out_in_an_exchange_ends_the_job_and_names_the_rank():
    for said in run_ranks(Layout(ring=2), out_of_step):
        assert "Rank 1 ran out of device memory" in said and "--dit_fsdp" in said


def cancelled_beside(mesh):
    team = Team(mesh)
    try:
        team.report(torch.cuda.OutOfMemoryError("planted") if mesh.rank else KeyboardInterrupt())
    except PeerStopped as error:
        return str(error)


def test_nobody_begins_anew_alone_where_another_one_is_cancelled_meanwhile():
    assert run_ranks(Layout(ring=2), cancelled_beside) == [None, "Rank 0 ended the job: KeyboardInterrupt"]


def shared(mesh):
    team = Team(mesh)
    value = {"a": torch.arange(3), "b": None} if mesh.rank == 0 else None
    return team.share(value), team.agree(mesh.rank == 0)


def test_what_the_first_rank_has_goes_to_all():
    for value, decision in run_ranks(Layout(ring=3), shared):
        assert value["a"].tolist() == [0, 1, 2] and decision is True


class _BrokenSound:
    """Speech whose file cannot be read from the second request on."""

    num_speakers, num_frames, silence = 1, 100, torch.zeros(1, 2, 16)

    def __init__(self):
        self.requests = 0

    def features(self, start, stop):
        self.requests += 1
        if self.requests > 1:
            raise InputError("The sound is gone. Put it back.")
        return torch.full((1, stop - start, 2, 16), float(start))


def read_twice(mesh):
    team = Team(mesh)
    sound = SharedAudio(team, _BrokenSound() if team.index == 0 else None)
    first = sound.features(3, 5)
    try:
        sound.features(5, 7)
    except (InputError, PeerStopped) as error:
        team.report(error)  # as `render` does, on every rank
        return first, type(error), str(error)


def test_a_source_that_fails_on_the_first_rank_ends_the_others():
    (first, *own), (second, *other) = run_ranks(Layout(ulysses=2), read_twice)
    assert torch.equal(first, second) and first.shape == (1, 2, 2, 16) and first.min() == 3
    assert own == [InputError, "The sound is gone. Put it back."]
    assert other == [PeerStopped, "Rank 0 ended the job: InputError: The sound is gone. Put it back."]
