"""Which ranks do what: the documents' layouts, the automatic one and its reason, and what is no layout."""

import pytest

from wanvideo.errors import InputError
from wanvideo.parallel.launch import Place
from wanvideo.parallel.layout import Layout, WantedRanks, check_layout, choose_layout, plan_layout, ulysses_degrees


@pytest.mark.parametrize(
    ("ulysses", "ring", "world"), [(8, 1, 8), (4, 2, 8), (2, 4, 8), (1, 8, 8), (8, 2, 16), (2, 1, 2), (4, 1, 4)]
)
def test_the_layouts_of_the_documents(ulysses, ring, world):
    plan = choose_layout(WantedRanks(ulysses, ring), world, 40, 1)
    assert plan.layout == Layout(1, ulysses, ring) and plan.layout.world == world


def test_ranks_beyond_the_sequence_run_other_passes():
    assert choose_layout(WantedRanks(4, 1), 8, 40, 2).layout == Layout(2, 4, 1)
    assert choose_layout(WantedRanks(2, 1), 6, 40, 3).layout == Layout(3, 2, 1)


def test_legal_degrees_are_named():
    assert ulysses_degrees(40) == (1, 2, 4, 5, 8, 10) and ulysses_degrees(12) == (1, 2, 3, 4, 6, 12)
    with pytest.raises(InputError, match="ulysses_size 3 .* 40 heads .* 1, 2, 4, 5, 8, 10"):
        check_layout(Layout(ulysses=3), 3, 40, 1)


@pytest.mark.parametrize(
    ("wanted", "world", "message"),
    [(WantedRanks(4, 1), 6, "4 ranks, and 6 were started"), (WantedRanks(1, 1), 4, "1 x 4 or 2 x 2 or 4 x 1"),
     (WantedRanks(2, 0), 2, "ring_size 0")],
)  # fmt: skip
def test_what_does_not_fit_the_ranks_is_refused(wanted, world, message):
    with pytest.raises(InputError, match=message):
        choose_layout(wanted, world, 40, 1)


@pytest.mark.parametrize(
    ("world", "passes", "jobs", "layout", "reason"),
    [
        (4, 1, 1, Layout(1, 4, 1), "Ulysses"), (4, 2, 1, Layout(2, 2, 1), "2 passes"), (3, 3, 1, Layout(3, 1, 1), "3"),
        (2, 3, 1, Layout(1, 2, 1), "Ulysses"), (16, 1, 1, Layout(1, 8, 2), "ring"), (4, 2, 6, Layout(), "one video"),
        (3, 1, 1, Layout(1, 1, 3), "ring"), (1, 3, 1, Layout(), "one GPU"),
    ],
)  # fmt: skip
def test_auto_prefers_jobs_then_passes_then_heads_then_keys(world, passes, jobs, layout, reason):
    plan = plan_layout(world, 40, passes, jobs)
    assert plan.layout == layout and reason in plan.reason


def test_the_device_of_a_rank(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert Place(3, 4, 1).device(None) == Place(3, 4, 1).device("cuda") == "cuda:1"
    assert Place(1, 2, 1).device("cpu") == "cpu"
    with pytest.raises(InputError, match="nproc_per_node=2"):
        Place(2, 3, 2).device(None)
    with pytest.raises(InputError, match="Leave the number out"):
        Place(1, 2, 1).device("cuda:0")


def test_a_launcher_that_says_nonsense(monkeypatch):
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(InputError, match="torchrun"):
        Place.of_environment()
