"""The law of guidance against diffusers' own schedulers, driven by networks whose κ is known."""

import itertools
import math

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asddim_lib.guidance.law import (
    SOLVERS,
    capped_scale,
    growth,
    largest_scale,
    propagation,
    steps_needed,
)
from asddim_lib.schedulers import ASFlowScheduler, DPMSolverGridScheduler, UniPCGridScheduler
from tests.refusals import refuses

ratios = st.floats(0.02, 0.97)
#: Falling levels without a 0 at the end, of steps that differ in length.
SIGMAS = np.array([12.0, 7.0, 3.9, 2.4, 1.1, 0.63, 0.4, 0.18])


def euler():
    return diffusers.EulerDiscreteScheduler(timestep_spacing="trailing")


def two_m():
    return DPMSolverGridScheduler(final_sigmas_type="zero", lower_order_final=False)


def unipc():
    return UniPCGridScheduler(solver_order=2, lower_order_final=False, disable_corrector=[])


def flow():
    return ASFlowScheduler(shift=3.0)


def flow_two_m():
    return DPMSolverGridScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", lower_order_final=False
    )


VP = {"euler": euler, "dpm++": two_m, "unipc": unipc}
FLOW = {"euler": flow, "dpm++": flow_two_m}


def drawn(scheduler, kappa, flow=False):
    """A deviation y before each step, by a scheduler whose network has ε = κ y / σ."""
    sigmas = SIGMAS / (1 + SIGMAS) if flow else SIGMAS
    scheduler.set_timesteps(sigmas=np.append(sigmas, 0.0))
    begins = scheduler.sigmas[:-1].double()
    begins = begins / (1 - begins) if flow else begins
    euler = isinstance(scheduler, diffusers.EulerDiscreteScheduler)
    factor = 1 / (1 + begins) if flow else (1 + begins**2) ** (0.0 if euler else -0.5)
    sample, found = torch.ones(1, 1, 1, 1, dtype=torch.float64) * factor[0], []
    for k, t in enumerate(scheduler.timesteps):
        y = sample / factor[k]
        found.append(float(y))
        epsilon = kappa * y / begins[k]
        output = epsilon - (1 - kappa) * y if flow else epsilon
        sample = scheduler.step(output, t, sample).prev_sample
    return begins.numpy(), np.array(found)


def expected(sigmas, kappa, solver):
    """The same by the law: the first step is Euler's, and UniPC's first corrector of order 1."""
    ratio = sigmas[1:] / sigmas[:-1]
    first = propagation(ratio[0], kappa)[0, 0]
    if solver == "euler":
        return np.cumprod([1.0, *(propagation(r, kappa)[0, 0] for r in ratio)])
    state = np.array([first, 1.0])
    if solver == "unipc":
        clean = (1 - ratio[0]) * (1 - kappa)
        state = np.array([ratio[0] + clean * (1 + first) / 2, *state])
    values = [1.0, first]
    for before, now in itertools.pairwise(ratio):
        state = propagation(now, kappa, solver, before) @ state
        values.append(state[1] if solver == "unipc" else state[0])
    return np.array(values)


@pytest.mark.parametrize("solver", VP)
@pytest.mark.parametrize("kappa", [0.5, 1.0, 3.0, 7.5])
def test_a_scheduler_multiplies_a_deviation_as_the_law_says(solver, kappa):
    sigmas, found = drawn(VP[solver](), kappa)
    wanted = expected(sigmas, kappa, solver)
    assert abs(found - wanted).max() <= 1e-6 * abs(wanted).max()


@pytest.mark.parametrize("solver", FLOW)
@pytest.mark.parametrize("kappa", [1.0, 6.0])
def test_flow_matching_has_the_same_law(solver, kappa):
    sigmas, found = drawn(FLOW[solver](), kappa, flow=True)
    wanted = expected(sigmas, kappa, solver)
    assert abs(found - wanted).max() <= 1e-6 * abs(wanted).max()


@pytest.mark.parametrize("kappa", [1.0, 3.0, 7.5])
def test_heun_s_two_evaluations_are_the_law_s_step(kappa):
    scheduler = diffusers.HeunDiscreteScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(6)
    y = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    wanted, levels = 1.0, scheduler.sigmas.double()
    for k, t in enumerate(scheduler.timesteps[:-1]):
        at = levels[k]
        y = scheduler.step(kappa * y / at, t, y).prev_sample
        if k % 2:
            ratio = float(levels[k + 1] / levels[k - 1])
            wanted *= propagation(ratio, kappa, "heun")[0, 0]
            assert float(y) == pytest.approx(wanted, rel=1e-6)


@given(ratio=ratios, before=ratios, solver=st.sampled_from(SOLVERS))
def test_the_bound_is_sharp(ratio, before, solver):
    """Just below it no scale from 1 on makes a deviation grow; just above it one does."""
    before = before if solver in ("dpm++", "unipc") else None
    limit = largest_scale(ratio, solver, before)
    below = np.linspace(1, limit * (1 - 1e-6), 20)
    assert max(growth(ratio, kappa, solver, before) for kappa in below) <= 1 + 1e-9
    assert growth(ratio, limit * (1 + 1e-6), solver, before) > 1


@given(ratio=ratios, c=st.floats(0.01, 2))
def test_euler_s_cap_is_c_over_one_minus_r(ratio, c):
    assert capped_scale(ratio, c) == pytest.approx(max(1, c / (1 - ratio)))


@given(ratio=ratios, solver=st.sampled_from(SOLVERS))
def test_a_cap_of_two_is_the_limit_and_a_lower_c_bears_less(ratio, solver):
    caps = [capped_scale(ratio, c, solver) for c in (0.5, 1, 1.5, 2)]
    assert caps[-1] == pytest.approx(max(1, largest_scale(ratio, solver)))
    assert caps == sorted(caps)


def test_without_history_each_solver_bears_two_at_a_step_from_pure_noise():
    assert [largest_scale(0.0, solver) for solver in SOLVERS] == [2.0] * 5


@given(scale=st.floats(1.01, 30), low=st.floats(0.01, 0.5), high=st.floats(2, 200))
def test_the_steps_needed_are_the_least_that_bear_the_scale(scale, low, high):
    count = steps_needed(scale, high, low)
    closed = 1 if scale <= 2 else math.log(high / low) / -math.log(1 - 2 / scale)
    assert count == max(1, math.ceil(closed - 1e-9))


@pytest.mark.parametrize(
    ("wrong", "call"),
    [
        ("ratio", lambda: propagation(1.0, 3)),
        ("ratio", lambda: propagation(0.0, 3, "heun")),
        ("solver", lambda: growth(0.5, 3, "rk45")),
        ("c", lambda: capped_scale(0.5, 0.0)),
        ("c", lambda: capped_scale(0.5, 2.1)),
        ("sigma_max", lambda: steps_needed(3, 0.1, 0.2)),
    ],
)
def test_wrong_input_is_named(wrong, call):
    with refuses(wrong):
        call()
