"""Names, ranges and refusals of the noise schedules."""

import logging
import math

import pytest

from wanvideo.errors import InputError, UnsupportedError
from wanvideo.sampling.schedulers import KNOWN_SCHEDULERS, SCHEDULERS, make_scheduler
from wanvideo.sampling.sigmas import MAX_STEPS

BASES = {"multitalk", "euler", "unipc", "dpm++", "dpm++_sde", "lcm", "res_multistep"}
SINGLE = {"flowmatch_distill", "flowmatch_pusa", "flowmatch_causvid", "wan_unipc", "wan_dpm++"}


def test_names():
    assert set(SCHEDULERS) == BASES | {f"{name}/beta" for name in BASES} | SINGLE
    assert len(set(KNOWN_SCHEDULERS)) == len(KNOWN_SCHEDULERS) == 21 + 4
    assert KNOWN_SCHEDULERS[:4] == ("unipc", "unipc/beta", "dpm++", "dpm++/beta")
    assert KNOWN_SCHEDULERS[20] == "vibt_unipc"
    assert set(SCHEDULERS) < set(KNOWN_SCHEDULERS)


@pytest.mark.parametrize("name", sorted(set(KNOWN_SCHEDULERS) - set(SCHEDULERS)))
def test_names_from_other_graphs_are_answered_with_the_nearest_one(name):
    with pytest.raises(UnsupportedError) as caught:
        make_scheduler(name, 4, 5)
    nearest = str(caught.value).split("nearest one is ")[1].removesuffix(": use that.").split(" or ")
    assert name in str(caught.value) and set(nearest) <= set(SCHEDULERS)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("unipcc", "'unipc'"), ("dpm++sde", "'dpm++_sde'"), ("Euler", "'euler'"), ("flowmatch_distil", "distill'"),
     ("flowmatch_pusa/beta", "'flowmatch_pusa'"), ("", "Use one of multitalk"), (None, "Use one of")],
)  # fmt: skip
def test_typing_errors_are_answered_with_a_suggestion(name, hint):
    with pytest.raises(InputError) as caught:
        make_scheduler(name, 4, 5)
    assert hint in str(caught.value) and str(caught.value).count("\n") < 3


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("shift", [0.01, 1, 7.0, 1000])
def test_levels_fall_strictly_from_at_most_one_to_zero(name, shift):
    most = {"flowmatch_causvid": 9, "flowmatch_distill": MAX_STEPS - 1}.get(name, MAX_STEPS)
    for steps in sorted({min(count, most) for count in (1, 2, 3, 4, 5, 17, 50, 500, MAX_STEPS)}):
        scheduler = make_scheduler(name, steps, shift)
        sigmas, timesteps = scheduler.sigmas, scheduler.timesteps
        assert scheduler.num_steps == steps == len(timesteps) == len(sigmas) - 1
        assert sigmas[0] <= 1 and sigmas[-1] == 0
        assert all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))
        assert all(type(value) is float for value in sigmas + timesteps)
        exact = [1000 * sigma for sigma in sigmas[:-1]]
        assert list(timesteps) in (exact, [int(timestep) for timestep in exact])


def test_distilled_levels_at_any_number_of_steps():
    four = make_scheduler("flowmatch_distill", 4, 11).sigmas
    assert four == pytest.approx((0.9999090, 0.9705882, 0.9166667, 0.7857143, 0), abs=1e-6)
    eight, two = (make_scheduler("flowmatch_distill", steps, 11).sigmas for steps in (8, 2))
    assert eight[::2] == pytest.approx(four) and two == pytest.approx(four[::2])
    assert make_scheduler("flowmatch_distill", 6, 11).sigmas[1:] == make_scheduler("flowmatch_pusa", 6, 11).sigmas[1:]


def test_a_part_of_the_schedule():
    whole = make_scheduler("euler", 8, 5)
    for start, end, first, stop in ((0, -1, 0, 8), (2, -1, 2, 8), (0, 5, 0, 5), (2, 5, 2, 5), (7, 8, 7, 8)):
        part = make_scheduler("euler", 8, 5, start_step=start, end_step=end)
        assert part.sigmas == whole.sigmas[first : stop + 1] and part.timesteps == whole.timesteps[first:stop]


@pytest.mark.parametrize(
    ("start", "end", "first", "stop"),
    [(1.0, -1, 0, 8), (0.9375, -1, 2, 8), (0.9, 0.6, 3, 7), (0, 0.0, 0, 8), (0.42, 4e-9, 7, 8)],
)
def test_noise_levels_as_ends(start, end, first, stop):
    whole = make_scheduler("flowmatch_pusa", 8, 5)  # 1, 0.972, 0.9375, 0.893, 0.833, 0.75, 0.625, 0.417
    part = make_scheduler("flowmatch_pusa", 8, 5, start_step=start, end_step=end)
    assert part.sigmas == whole.sigmas[first : stop + 1]


@pytest.mark.parametrize(("strength", "steps"), [(1.0, 8), (0.99, 8), (0.5, 5), (0.1, 1), (0.0, 1)])
def test_denoise_strength_keeps_the_last_steps(strength, steps):
    part = make_scheduler("euler", 8, 5, denoise_strength=strength)
    assert part.num_steps == steps and part.sigmas == make_scheduler("euler", 8, 5).sigmas[-steps - 1 :]


def test_denoise_strength_wins_over_start_step_and_says_so_once(caplog):
    caplog.set_level(logging.INFO, "wanvideo")
    for _ in range(3):
        part = make_scheduler("euler", 8, 5, start_step=3, denoise_strength=0.73)
    assert part.num_steps == 6
    assert [record.message for record in caplog.records] == [
        "denoise_strength 0.73 decides the first step: start_step 3 is unused."
    ]


def test_causvid_says_once_that_it_has_no_shift(caplog):
    caplog.set_level(logging.INFO, "wanvideo")
    for _ in range(3):
        scheduler = make_scheduler("flowmatch_causvid", 4, 6.125)
    assert scheduler.timesteps == (999, 934, 862, 756)
    assert len(caplog.records) == 1 and "shift 6.125" in caplog.text


@pytest.mark.parametrize("sigmas", [(1, 0.75, 0.5, 0.25), (1.0, 0.75, 0.5, 0.25, 0.0)])
def test_own_levels(sigmas):
    scheduler = make_scheduler("euler", 4, 5, sigmas=sigmas)
    assert scheduler.sigmas == (1.0, 0.75, 0.5, 0.25, 0.0) and scheduler.timesteps == (1000, 750, 500, 250)
    assert make_scheduler("euler/beta", 4, 5, sigmas=sigmas, start_step=1, end_step=3).sigmas == (0.75, 0.5, 0.25)
    assert make_scheduler("euler", 3, 5, sigmas=[1, 0.9, 0.8, 0.7]).sigmas[-1] == 0.7


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"steps": 0}, "steps 0 .* whole number from 1 to 1000"),
        ({"steps": -3}, "steps -3"),
        ({"steps": 4.0}, "steps 4.0"),
        ({"steps": True}, "steps True"),
        ({"steps": 1001}, "steps 1001"),
        ({"shift": 0}, "shift 0 .* from 0.01 to 1000"),
        ({"shift": math.nan}, "shift nan"),
        ({"shift": math.inf}, "shift inf"),
        ({"shift": "5"}, "shift '5'"),
        ({"denoise_strength": 1.5}, "denoise_strength 1.5 .* from 0 to 1"),
        ({"denoise_strength": math.nan}, "denoise_strength nan"),
        ({"start_step": 8}, "start_step 8 .* from 0 to 7"),
        ({"start_step": -1}, "start_step -1"),
        ({"start_step": 1.5}, "start_step as a noise level 1.5 .* from 0 to 1"),
        ({"start_step": True}, "start_step True"),
        ({"end_step": 0}, "end_step 0 .* from 1 to 8"),
        ({"end_step": 9}, "end_step 9"),
        ({"end_step": -2}, "end_step -2"),
        ({"end_step": 3.0}, "end_step as a noise level 3.0"),
        ({"start_step": 3, "end_step": 3}, "start_step 3 and end_step 3 leave no step"),
        ({"start_step": 5, "end_step": 2}, "leave no step"),
        ({"start_step": 0.001}, "leave no step .* from noise level 1 to 0.02"),
        ({"start_step": 0.5, "end_step": 0.9}, "leave no step"),
        ({"denoise_strength": 0.5, "end_step": 2}, "leave no step"),
        ({"sigmas": []}, "holds 0 noise levels, which does not fit 8 steps"),
        ({"sigmas": [1, 0.5, 0]}, "holds 3 .*\nGive 9|Give 9, or 8"),
        ({"sigmas": [1, 0.9, 0.8, 0.7, 0.7, 0.5, 0.4, 0.3]}, r"sigmas\[3\] = 0.7 is followed by 0.7"),
        ({"sigmas": [1.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]}, r"sigmas\[0\] 1.5"),
        ({"sigmas": [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.0]}, r"sigmas\[7\] = 0 is followed by 0"),
        ({"sigmas": [1, 0.9, 0.8, math.nan, 0.6, 0.5, 0.4, 0.3]}, r"sigmas\[3\] nan"),
    ],
)
def test_impossible_numbers_are_refused(options, hint):
    settings = {"steps": 8, "shift": 5} | options
    with pytest.raises(InputError, match=hint):
        make_scheduler("euler", **settings)


def test_causvid_has_nine_levels():
    assert make_scheduler("flowmatch_causvid", 9, 5).timesteps[-1] == 74
    with pytest.raises(InputError, match="steps 10 is too many: this schedule has 9 "):
        make_scheduler("flowmatch_causvid", 10, 5)
