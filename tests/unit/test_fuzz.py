"""A few thousand wrong inputs of every family: each is answered or used in 20 s of work and 500 MB. And the harness."""

import random

import pytest
from fuzz import FAMILIES, harness, requests

SEED, CASES = 1, 1000  # of each family


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_input_is_answered(family, capsys):
    tally = harness.run_family(family, SEED, CASES)
    with capsys.disabled():
        print("\n" + harness.table([tally]))
    assert not tally.violations and tally.cases == CASES, harness.table([tally])
    assert tally.answered > CASES // 100 and tally.used, "the cases are too wrong, or not wrong at all"


def test_every_violation_is_found_and_the_cases_behind_it_still_run():
    tally = harness.run_family("faulty", SEED, 8, most_s=0.5)
    assert (tally.cases, tally.used, tally.answered) == (8, 3, 1)
    assert [(name, index) for name, index, _ in tally.violations] == [
        ("raises", 2), ("memory", 3), ("time", 4), ("exit", 5)
    ]  # fmt: skip
    why = [text for _, _, text in tally.violations]
    assert why[0].startswith("KeyError: 'no such key' (") and "MB" in why[1] and "2 s" in why[2] and "with 3" in why[3]
    shown = harness.table([tally])
    assert "python tests/fuzz --family faulty --seed 1 --start 4 --cases 1" in shown


def test_a_case_can_be_run_again_by_itself():
    assert harness.run_family("faulty", SEED, 1, start=2).violations[0][:2] == ("raises", 2)


def test_the_same_seed_makes_the_same_cases(tmp_path):
    names = []
    for seed in (3, 3, 4):
        made = requests.cases(random.Random(seed), tmp_path)
        names.append([next(made)[0] for _ in range(100)])
    assert names[0] == names[1] != names[2]
