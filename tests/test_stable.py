"""The grid on which guided steps are as stable as their number allows."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from asddim_lib import ASDDIMScheduler, ASFlowScheduler, timesteps
from asddim_lib.grids.stable import stable
from asddim_lib.levels import Levels, fingerprint
from tests.refusals import refuses
from tests.test_kappa import with_kappa
from tests.test_profile import PROFILE
from tests.tiny import SD

SIGMAS = np.geomspace(15, 0.03, 40)
#: κ that rises and falls again, as on the bundled models.
KAPPAS = 1 + 5 * np.exp(-((np.log(SIGMAS) - 1.2) ** 2) / 3)


def bounds(grid, sigmas=SIGMAS, kappas=KAPPAS):
    """κ (1 − σ'/σ) of each step, with the largest κ within it."""
    found = []
    for before, after in itertools.pairwise(grid):
        within = np.geomspace(before, after, 300)
        largest = np.interp(np.log(within), np.log(sigmas[::-1]), kappas[::-1]).max()
        found.append(largest * (1 - after / before))
    return np.array(found)


@given(
    kappa=st.floats(1, 15),
    steps=st.integers(1, 30),
    high=st.floats(2, 100),
    low=st.floats(0.01, 1),
)
def test_for_a_constant_kappa_its_steps_are_equal_in_log_sigma(kappa, steps, high, low):
    grid = stable(high, low, steps, [high, low], [kappa, kappa])
    assert grid == pytest.approx(np.geomspace(high, low, steps), rel=1e-4)


@pytest.mark.parametrize("steps", [3, 5, 8, 20, 50])
def test_all_steps_have_the_same_bound(steps):
    grid = stable(15.0, 0.03, steps, SIGMAS, KAPPAS)
    assert (grid[0], grid[-1]) == pytest.approx((15, 0.03))
    assert (np.diff(grid) < 0).all()
    found = bounds(grid)
    assert found == pytest.approx([found[0]] * (steps - 1), rel=2e-3)


def test_its_density_of_steps_is_that_of_its_docstring():
    grid = stable(15.0, 0.03, 60, SIGMAS, KAPPAS)
    c = bounds(grid)[0]
    middles = np.sqrt(grid[:-1] * grid[1:])
    kappa = np.interp(np.log(middles), np.log(SIGMAS[::-1]), KAPPAS[::-1])
    assert -np.diff(np.log(grid)) == pytest.approx(-np.log(1 - c / kappa), rel=0.1)


@settings(deadline=None)
@given(
    inner=st.lists(st.floats(0.031, 14.9), min_size=1, max_size=8, unique=True),
    kappas=st.lists(st.floats(1, 12), min_size=40, max_size=40),
)
def test_no_other_grid_of_as_many_steps_has_a_better_worst_step(inner, kappas):
    other = np.array([15.0, *sorted(inner, reverse=True), 0.03])
    grid = stable(15.0, 0.03, len(other), SIGMAS, kappas)
    assert bounds(grid, SIGMAS, kappas).max() <= bounds(other, SIGMAS, kappas).max() * 1.02


def test_kappa_below_one_counts_as_one():
    low = stable(15.0, 0.03, 8, SIGMAS, np.minimum(KAPPAS, 0.2))
    assert low == pytest.approx(np.geomspace(15, 0.03, 8), rel=1e-3)


def test_it_is_a_method_by_name_with_the_ends_of_others():
    levels = Levels.from_diffusers(SD)
    profile = replace(with_kappa(KAPPAS, 7.5, SIGMAS), schedule=fingerprint(levels))
    for steps in (1, 2, 5, 20):
        grid = timesteps(SD, steps, allocation="stable", profile=profile)
        other = timesteps(SD, steps, allocation="logsnr")
        assert (grid[0], grid[-1]) == (other[0], other[-1])
        ends = levels.sigmas[-1], levels.sigmas[0]
        assert grid == levels.nearest(stable(*ends, steps, SIGMAS, KAPPAS))
        scheduler = ASDDIMScheduler(**SD, allocation="stable", profile=profile.to_dict())
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == grid
    assert timesteps(SD, 4, allocation="stable", profile=profile, begin=500)[0] == 500


def test_a_flow_model_takes_it():
    config = FlowMatchEulerDiscreteScheduler(shift=3.0).config
    levels = Levels.from_diffusers(config)
    profile = replace(with_kappa(KAPPAS, 7.5, SIGMAS), schedule=fingerprint(levels))
    how = {"allocation": "stable", "profile": profile.to_dict()}
    scheduler = ASFlowScheduler.from_config(config, **how)
    scheduler.set_timesteps(6)
    sigmas = scheduler.sigmas.numpy()
    assert (np.diff(sigmas) < 0).all()
    assert (sigmas[0], sigmas[-1]) == (1, 0)


@pytest.mark.parametrize("schedule", [PROFILE.schedule, "0" * 16])
def test_a_profile_without_kappa_or_of_another_schedule_is_refused(schedule):
    with refuses("profile"):
        timesteps(SD, 5, allocation="stable", profile=replace(PROFILE, schedule=schedule))
    with refuses("profile"):
        timesteps(SD, 5, allocation="stable")
