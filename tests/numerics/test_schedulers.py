"""Noise schedules against reference vectors, against diffusers' solvers, and against what a solver must always do."""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)
from safetensors.torch import load_file
from support import recipes

from wanvideo.sampling.schedulers import SCHEDULERS, make_scheduler

DATA = Path(__file__).parent / "data"
SPEC = json.loads((DATA / "schedulers.json").read_text())
SHAPE, SEED = SPEC["shape"], SPEC["seed"]
CASES = [case for case in SPEC["cases"] if case["scheduler"] in SCHEDULERS]
OPTIONS = ("start_step", "end_step", "denoise_strength")


@pytest.fixture(scope="module")
def vectors():
    return load_file(DATA / "schedulers.safetensors")


def scheduler_of(case):
    # The reference runs 9 steps of flowmatch_causvid when more are asked for; here that is an error.
    steps = min(case["steps"], 9) if case["scheduler"] == "flowmatch_causvid" else case["steps"]
    options = {key: case[key] for key in OPTIONS if key in case}
    return make_scheduler(case["scheduler"], steps, case["shift"], **options)


def model(x, timestep):
    return 0.8 * x * math.sin(timestep / 300) + 0.1 * recipes.tensor("v", SHAPE, SEED)


def states_of(scheduler, timesteps, velocity=model):
    x, states = recipes.tensor("x", SHAPE, SEED), []
    for i, timestep in enumerate(timesteps):
        noise = recipes.tensor(f"noise.{i}", SHAPE, SEED) if scheduler.is_stochastic else None
        x = scheduler.step(velocity(x, timestep), i, x, noise)
        states.append(x)
    return torch.stack(states)


def test_every_offered_name_that_the_reference_has_is_covered():
    assert {case["scheduler"] for case in CASES} == set(SCHEDULERS) - {"multitalk/beta", "res_multistep/beta"}
    assert len(CASES) > 150


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_reference_vectors(case, vectors):
    scheduler, key = scheduler_of(case), case["key"]
    assert scheduler.is_stochastic == case["stochastic"]
    assert scheduler.num_steps == len(scheduler.timesteps) == len(case["timesteps"])
    assert scheduler.sigmas == pytest.approx(case["sigmas"], abs=1e-6)
    assert scheduler.timesteps == pytest.approx(case["timesteps"], abs=2e-4)
    states = states_of(scheduler, scheduler.timesteps)
    if f"{key}/states" in vectors:
        assert (states - vectors[f"{key}/states"]).abs().max() <= 2e-5
    else:
        assert (states[-1] - vectors[f"{key}/final"]).abs().max() <= 2e-5
    exact = states_of(scheduler_of(case), [1000 * sigma for sigma in scheduler.sigmas[:-1]])[-1]
    expected = vectors.get(f"{key}/final_exact_t", states[-1])
    assert (exact - expected).abs().max() <= 2e-5


def diffusers_scheduler(name):
    if name.endswith("unipc"):
        return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2)
    kind = "sde-dpmsolver++" if "sde" in name else "dpmsolver++"
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2, algorithm_type=kind,
        solver_type="midpoint", lower_order_final=True,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 12, 25])
@pytest.mark.parametrize("name", ["unipc", "unipc/beta", "dpm++", "dpm++/beta", "dpm++_sde", "wan_unipc"])
def test_diffusers_agrees_on_the_same_levels(name, steps):
    ours, theirs = make_scheduler(name, steps, 5), diffusers_scheduler(name.removesuffix("/beta"))
    theirs.set_timesteps(steps)
    theirs.sigmas = torch.tensor(ours.sigmas, dtype=torch.float64)
    timesteps = [1000 * sigma for sigma in ours.sigmas[:-1]]
    theirs.timesteps = torch.tensor(timesteps, dtype=torch.float64)
    theirs.set_begin_index(0)
    x = recipes.tensor("x", SHAPE, SEED).double()
    for i, (timestep, state) in enumerate(zip(theirs.timesteps, states_of(ours, timesteps), strict=True)):
        extra = {"variance_noise": recipes.tensor(f"noise.{i}", SHAPE, SEED)} if ours.is_stochastic else {}
        x = theirs.step(model(x, timesteps[i]), timestep, x, **extra).prev_sample.double()
        assert (state - x).abs().max() <= 2e-5


@pytest.mark.parametrize(
    ("name", "theirs"), [("euler", FlowMatchEulerDiscreteScheduler), ("lcm", FlowMatchLCMScheduler)]
)
def test_diffusers_has_the_same_euler_levels(name, theirs):
    for steps, shift in ((2, 3.0), (4, 11.0), (17, 7.0)):
        scheduler = theirs(shift=shift)
        scheduler.set_timesteps(steps)
        assert make_scheduler(name, steps, shift).sigmas == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_model_that_knows_the_answer_is_followed_to_it(name):
    """Every solver, at every number of steps, lands on x0 when each prediction points at it; nothing overflows."""
    x0 = recipes.tensor("answer", SHAPE, SEED)
    for steps in range(1, 10 if name == "flowmatch_causvid" else 51):
        for shift in (0.01, 1.0, 8.0, 1000.0):
            scheduler, draws = make_scheduler(name, steps, shift), 0
            noise = recipes.tensor("start", SHAPE, SEED)
            x = (1 - scheduler.sigmas[0]) * x0 + scheduler.sigmas[0] * noise
            for i in range(scheduler.num_steps):
                if scheduler.is_stochastic:
                    noise, draws = recipes.tensor(f"noise.{i % 4}", SHAPE, SEED), draws + 1
                    x = scheduler.step((x - x0) / scheduler.sigmas[i], i, x, noise)
                else:
                    x = scheduler.step(noise - x0, i, x)
            assert (x - x0).abs().max() <= 1e-4, (steps, shift)
            assert draws == (steps if scheduler.is_stochastic else 0)


@pytest.mark.parametrize("name", ["unipc", "dpm++", "res_multistep", "wan_unipc", "wan_dpm++"])
def test_second_order_solvers_are_of_second_order(name):
    """dx/ds = 0.6 x - 0.3 has a closed solution; twice the steps leave half of Euler's error, a quarter of theirs."""

    def error(solver, steps):
        scheduler = make_scheduler(solver, steps, 5, sigmas=[0.95 - 0.65 * i / steps for i in range(steps + 1)])
        x = torch.tensor([1.0], dtype=torch.float64)
        for i in range(steps):
            x = scheduler.step(0.6 * x - 0.3, i, x)
        return abs(x.item() - (0.5 + 0.5 * math.exp(0.6 * -0.65)))

    assert error("euler", 256) / error("euler", 512) == pytest.approx(2, abs=0.1)
    assert error(name, 256) / error(name, 512) == pytest.approx(4, abs=0.2)
    assert error(name, 512) < error("euler", 512) / 100


@pytest.mark.parametrize("name", ["unipc", "dpm++", "dpm++_sde", "res_multistep"])
def test_levels_of_pure_noise_are_exact_everywhere(name):
    """At level 1 the log SNR is infinite; the limit of a level just below it is what must come out."""
    results = []
    for first in (1.0, 1 - 1e-12):
        scheduler = make_scheduler(name, 6, 5, sigmas=[first, 0.9, 0.7, 0.5, 0.3, 0.1])
        results.append(states_of(scheduler, [1000 * sigma for sigma in scheduler.sigmas[:-1]]))
    assert results[0].isfinite().all()
    assert (results[0][0] - results[1][0]).abs().max() <= 1e-5
