"""Rival grids against diffusers' own and against closed forms."""

import itertools

import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers import AysSchedules
from hypothesis import given, settings
from hypothesis import strategies as st

from asddim_lib import sigmas, timesteps
from asddim_lib.grids import ALLOCATIONS, RIVALS, arctan
from asddim_lib.noise import NoiseSchedule

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
FREE = [name for name in ALLOCATIONS if name not in ("uniform", "gradient", "combined")]


@pytest.mark.parametrize("name", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("steps", [2, 10, 37])
def test_levels_equal_diffusers(name, steps):
    theirs = EulerDiscreteScheduler(**SD, timestep_spacing="trailing", **{f"use_{name}_sigmas": True})
    theirs.set_timesteps(steps)
    # diffusers takes its ends from the K uniform timesteps; from the same ends, the levels are the same.
    high, low = float(theirs.sigmas[0]), float(theirs.sigmas[-2])
    np.testing.assert_allclose(RIVALS[name](high, low, steps), theirs.sigmas[:-1].numpy(), rtol=1e-5)


def test_align_your_steps_at_its_own_length():
    for name, key in (("ays-sd15", "StableDiffusion"), ("ays-sdxl", "StableDiffusionXL")):
        found = timesteps(SD, 10, allocation=name)
        assert np.abs(np.array(found) - AysSchedules[f"{key}Timesteps"]).max() <= 2  # its lists of levels and of timesteps are rounded apart


def test_arctan_is_even_in_its_angle():
    angles = np.arctan(arctan(80.0, 0.01, 12, std=0.5) / 0.5)
    np.testing.assert_allclose(np.diff(angles), np.diff(angles)[0])


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(FREE), steps=st.integers(1, 1000), schedule=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]), zero=st.booleans())
def test_every_rival_is_strict_and_within_range(name, steps, schedule, zero):
    config = {"beta_schedule": schedule, "rescale_betas_zero_snr": zero}
    grid = timesteps(config, steps, allocation=name)
    assert len(grid) == steps
    assert all(a > b for a, b in itertools.pairwise(grid))
    assert 0 <= grid[-1] <= grid[0] < len(NoiseSchedule.from_config(config))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("allocation", ["noise", "karras", "arctan"])
def test_flow_matching_lands_on_the_grid(shift, allocation):
    solver = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = NoiseSchedule.from_config(solver)
    every = solver.sigmas.numpy()[::-1].astype(float)  # diffusers' own shares of noise, least first
    np.testing.assert_allclose(schedule.variance, every**2 / (every**2 + (1 - every) ** 2), rtol=1e-4)
    solver.set_timesteps(sigmas=sigmas(solver, 8, allocation=allocation))
    assert len(solver.timesteps) == 8
    assert solver.sigmas[-1] == 0
    landed = [int(np.abs(every - s).argmin()) for s in solver.sigmas[:-1].tolist()]
    np.testing.assert_allclose(every[landed], solver.sigmas[:-1], rtol=1e-5)
    assert landed == timesteps({"trained_betas": list(schedule.betas)}, 8, allocation=allocation)


def test_flow_matching_refuses_what_it_cannot_know():
    with pytest.raises(ValueError, match="sigmas"):
        timesteps(FlowMatchEulerDiscreteScheduler(), 8)
    with pytest.raises(ValueError, match="use_dynamic_shifting"):
        sigmas(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 8)
