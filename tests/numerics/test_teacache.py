"""TeaCache's decisions against reference vectors: every step of every case, exactly."""

import json
from pathlib import Path

import pytest
from support import recipes

from wanvideo.request import StepCache
from wanvideo.sampling.step_cache import TEACACHE_POLYNOMIALS, TeaCacheRule, open_cache

SPEC = json.loads((Path(__file__).parent / "data" / "guidance.json").read_text())
CASES = SPEC["teacache"]


def modulations(case):
    """The time modulation of every step: it keeps its values and moves by a swinging amount."""
    import math

    current = recipes.tensor("mod.0", (1, 6, 64), SPEC["seed"])
    yield current
    for step in range(1, case["steps"]):
        swing = case["change"] * (1 + 0.75 * math.sin(case["jump"] * step))
        current = current + swing * recipes.tensor(f"mod.{step}", (1, 6, 64), SPEC["seed"])
        yield current


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['size']}-{c['use_ret_steps']}-{c['steps']}-{c['threshold']}")
def test_decisions(case):
    rule = TeaCacheRule(case["threshold"], case["coefficients"], case["always_first"], case["always_from"])
    computed, sums = [], []
    for step, modulation in enumerate(modulations(case)):
        computed.append(int(rule.computes(step, modulation)))
        sums.append(rule.sum)
    assert computed == case["compute"]
    assert computed.count(0) == case["skipped"]
    assert sums == pytest.approx(case["accumulated_after"], abs=1e-4)


def test_tables_are_those_of_the_vectors():
    for case in CASES:
        if case["use_ret_steps"]:
            assert TEACACHE_POLYNOMIALS[case["size"][-3:]] == tuple(case["coefficients"])


def test_the_picture_chooses_the_table():
    for pixels, table in ((832 * 480, "480"), (1280 * 720, "720"), (960 * 960, "720")):
        assert open_cache(StepCache(), 40, pixels).rule.polynomial == TEACACHE_POLYNOMIALS[table]
    assert open_cache(StepCache(coefficients="480"), 40, 1280 * 720).rule.polynomial == TEACACHE_POLYNOMIALS["480"]
