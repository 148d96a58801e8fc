"""Rival grids against diffusers' own and against closed forms."""

import itertools

import numpy as np
import pytest
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers import AysSchedules
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from asddim_lib import sigmas, timesteps
from asddim_lib.grids.rules import arctan, exponential, karras
from asddim_lib.grids.table import METHODS
from asddim_lib.levels import Levels
from experiments.dmn import bound_of
from experiments.rivals import beta_sigmas
from tests.refusals import refuses

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
FREE = [n for n, m in METHODS.items() if m.needs == "nothing" and n not in ("uniform", "dmn")]


@pytest.mark.parametrize(
    ("curve", "flag"),
    [(karras, "karras"), (exponential, "exponential"), (beta_sigmas, "beta")],
)
@pytest.mark.parametrize("steps", [2, 10, 37])
def test_levels_equal_diffusers(curve, flag, steps):
    theirs = EulerDiscreteScheduler(
        **SD, timestep_spacing="trailing", **{f"use_{flag}_sigmas": True}
    )
    theirs.set_timesteps(steps)
    # diffusers takes its ends from the K uniform timesteps; from the same ends, the levels are the
    # same.
    high, low = float(theirs.sigmas[0]), float(theirs.sigmas[-2])
    np.testing.assert_allclose(curve(high, low, steps), theirs.sigmas[:-1].numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", ["karras", "exponential", "beta-sigmas"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_on_a_flow_model_they_are_laid_in_s_as_diffusers_lays_them(name, shift):
    flag = f"use_{name.removesuffix('-sigmas')}_sigmas"
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift, **{flag: True})
    theirs.set_timesteps(sigmas=np.linspace(1, 0.001, 8).tolist())
    found = sigmas(FlowMatchEulerDiscreteScheduler(shift=shift), 8, allocation=name, shifted=True)
    assert found[0] == 1.0
    # Ours are the model's own levels, which at shift 3 lie up to 0.003 apart.
    np.testing.assert_allclose(found, theirs.sigmas.numpy(), atol=0.0016)


def test_align_your_steps_at_its_own_length():
    for name, key in (("ays-sd15", "StableDiffusion"), ("ays-sdxl", "StableDiffusionXL")):
        found = timesteps(SD, 10, allocation=name)
        assert (
            np.abs(np.array(found) - AysSchedules[f"{key}Timesteps"]).max() <= 2
        )  # its lists of levels and of timesteps are rounded apart


def test_beta_cuts_its_distribution_evenly():
    found = np.array(timesteps(SD, 10, allocation="beta"))
    shares = [quad(lambda u: (u * (1 - u)) ** -0.4, 0, (t + 1) / 1000)[0] for t in found]
    np.testing.assert_allclose(np.array(shares) / shares[0], 1 - np.arange(10) / 10, atol=0.003)


def test_arctan_is_even_in_its_angle():
    angles = np.arctan(arctan(80.0, 0.01, 12, std=0.5) / 0.5)
    np.testing.assert_allclose(np.diff(angles), np.diff(angles)[0])


@settings(max_examples=60)
@given(
    name=st.sampled_from(FREE),
    steps=st.integers(1, 1000),
    schedule=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    zero=st.booleans(),
)
def test_every_rival_is_strict_and_within_range(name, steps, schedule, zero):
    config = {**SD, "beta_schedule": schedule, "rescale_betas_zero_snr": zero}
    grid = timesteps(config, steps, allocation=name, other_model=True)
    assert len(grid) == steps
    assert all(a > b for a, b in itertools.pairwise(grid))
    assert 0 <= grid[-1] <= grid[0] < len(Levels.from_diffusers(config))


def dmn_bound_by_integration(nodes):
    """DMN's bound from its definition: SciPy integrates e^λ times each Lagrange polynomial."""
    steps = len(nodes) - 1
    error = [
        1 / (np.exp(v) * np.sqrt(1 + np.exp(2 * v))) for v in nodes
    ]  # σ² / α at half-log-SNR v
    total, summed = 0.0, np.zeros(steps)
    for s in range(steps):
        first = s + 1 - min(s + 1, 3, steps - s)
        terms = {}
        for j in range(first, s + 1):
            others = [m for m in range(first, s + 1) if m != j]

            def basis(v, j=j, others=others):
                return np.exp(v) * np.prod([(v - nodes[m]) / (nodes[j] - nodes[m]) for m in others])

            terms[j] = quad(basis, nodes[s], nodes[s + 1])[0] * error[j]
        if s < 3:
            total += np.hypot.reduce(list(terms.values()))
        else:
            for j, term in terms.items():
                summed[j] += term
    return total + np.abs(summed).sum()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
def test_dmn_makes_its_bound_least(steps):
    schedule = Levels.from_diffusers(SD)
    levels = -np.log(schedule.sigmas)

    def bound(grid):
        return dmn_bound_by_integration(np.array([*levels[grid], levels[0]]))

    found = timesteps(SD, steps, allocation="dmn")
    assert found[0] == 999
    assert bound_of(np.array([*levels[found], levels[0]])) == pytest.approx(bound(found), rel=1e-9)
    assert bound(found) <= bound(timesteps(SD, steps, allocation="trailing")) * (1 + 1e-9)
    if steps <= 4:  # more have ties, where a rounded step away may be as good
        for k in range(1, steps):
            for step in (-20, 20):
                moved = [*found[:k], found[k] + step, *found[k + 1 :]]
                assert bound(moved) > bound(found)


def test_dmn_refuses_more_steps_than_it_can_search():
    with refuses("num_inference_steps"):
        timesteps(SD, 65, allocation="dmn")


def test_spacings_by_name_are_diffusers_own():
    for spacing in ("leading", "trailing", "linspace"):
        theirs = DDIMScheduler(**SD, timestep_spacing=spacing, steps_offset=1)
        for steps in (1, 7, 20, 500):
            theirs.set_timesteps(steps)
            assert (
                timesteps({**SD, "steps_offset": 1}, steps, allocation=spacing)
                == theirs.timesteps.tolist()
            )


def test_a_leading_grid_beyond_the_schedule_is_refused():
    with refuses("steps_offset"):
        timesteps({**SD, "steps_offset": 1}, 1000, allocation="leading")


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("allocation", ["noise", "arctan"])
def test_flow_matching_lands_on_the_grid(shift, allocation):
    solver = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = Levels.from_diffusers(solver)
    every = solver.sigmas.numpy()[::-1].astype(float)  # diffusers' own shares of noise, least first
    np.testing.assert_allclose(
        schedule.variance, every**2 / (every**2 + (1 - every) ** 2), rtol=1e-4
    )
    solver.set_timesteps(sigmas=sigmas(solver, 8, allocation=allocation))
    assert len(solver.timesteps) == 8
    assert solver.sigmas[-1] == 0
    landed = [int(np.abs(every - s).argmin()) for s in solver.sigmas[:-1].tolist()]
    np.testing.assert_allclose(every[landed], solver.sigmas[:-1], rtol=1e-5)
    assert landed == timesteps({"trained_betas": list(schedule.betas)}, 8, allocation=allocation)


def test_flow_matching_refuses_what_it_cannot_know():
    with refuses("scheduler"):
        timesteps(FlowMatchEulerDiscreteScheduler(), 8)
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with refuses("mu"):
        sigmas(dynamic, 8)
    fixed = FlowMatchEulerDiscreteScheduler(shift=float(np.exp(0.7)))
    how = {"allocation": "noise"}
    np.testing.assert_allclose(sigmas(dynamic, 8, mu=0.7, **how), sigmas(fixed, 8, **how))
