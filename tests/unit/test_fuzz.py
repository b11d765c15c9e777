"""A few thousand wrong inputs of every family: each is answered or used, within 20 s and 500 MB. And the harness."""

import pytest
from fuzz import FAMILIES, harness

SEED, CASES, SECONDS = 1, 1000, 40.0  # of each family


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_input_is_answered(family, capsys):
    tally = harness.run_family(family, SEED, CASES, SECONDS)
    with capsys.disabled():
        print("\n" + harness.table([tally]))
    assert not tally.violations, harness.table([tally])
    assert tally.answered > CASES // 100 and tally.used, "the cases are too wrong, or not wrong at all"
