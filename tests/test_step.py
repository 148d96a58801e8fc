"""The scheduler's step (Eq 3) against diffusers' DDIM and DPM-Solver, and its refusals."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from asddim_lib import ASDDIMScheduler
from tests.refusals import refuses
from tests.tiny import SD

LEVELS = {key: SD[key] for key in ("beta_start", "beta_end", "beta_schedule")}
FIRST_ORDER = {"solver_order": 1, "final_sigmas_type": "sigma_min"}
NOISE = [
    {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    {"beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
    {"trained_betas": np.geomspace(1e-4, 0.03, 1000).tolist()},
]
REST = [
    {
        "prediction_type": prediction,
        "steps_offset": offset,
        "set_alpha_to_one": bool(offset),
        "clip_sample": clip,
    }
    for prediction in ("epsilon", "v_prediction", "sample")
    for offset in (0, 1)
    for clip in (False, True)
]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def starts_blind(scheduler):
    """Whether the grid starts at ᾱ = 0 with ε-prediction, where diffusers divides by zero."""
    first = int(scheduler.timesteps[0])
    return scheduler.config.prediction_type == "epsilon" and scheduler.alphas_cumprod[first] == 0


def compare(ours, theirs, steps, generator):
    """Compares steps at both ends of the grid and inside it; returns how many.

    The trailing spacing of diffusers steps beside its own grid where 1000 / K is no whole number:
    those steps are left out, and have a test of their own.
    """
    x, output, noise = torch.randn(3, 2, 4, generator=generator)
    grid, compared = theirs.timesteps.tolist()[:steps], 0
    for k in {0, steps // 3, steps - 2, steps - 1} - {-1}:
        following = grid[k + 1] if k + 1 < steps else -1
        if max(grid[k] - 1000 // steps, -1) != following:
            continue
        eta = (0.0, 0.7, 1.0)[(steps + k) % 3]
        one, other = (
            scheduler.step(output, grid[k], x, eta=eta, variance_noise=noise).prev_sample
            for scheduler in (ours, theirs)
        )
        assert one.isfinite().all()
        # With η = 1 from ᾱ = 0 diffusers takes the root of −1e-8.
        assert torch.equal(one, other) or other.isnan().any(), (steps, k)
        compared += 1
    return compared


@pytest.mark.parametrize("noise", NOISE, ids=lambda noise: "-".join(map(str, noise))[:40])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_uniform_equals_ddim_to_the_bit(spacing, noise):
    """Every K from 1 to 1000, with prediction type, offset, clipping and η in turn.

    A large K that does not divide 1000 is stepped with one of the five noise schedules.
    """
    configs = [{**SD, **noise, **rest, "timestep_spacing": spacing} for rest in REST]
    pairs = [(ASDDIMScheduler(**config), DDIMScheduler(**config)) for config in configs]
    generator, compared = torch.Generator().manual_seed(0), 0
    for steps in range(1, 1001):
        ours, theirs = pairs[steps % len(pairs)]
        if spacing == "leading" and steps == 1000 and theirs.config.steps_offset:
            continue  # it starts at timestep 1000, which does not exist
        theirs.set_timesteps(steps)
        if starts_blind(theirs):
            with refuses("timesteps"):
                ours.set_timesteps(steps)
            continue
        ours.set_timesteps(steps)
        # For K = 61, 103, … the trailing grid of diffusers has one more timestep, −1.
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()[:steps]
        if steps <= 50 or 1000 % steps == 0 or NOISE[steps % len(NOISE)] is noise:
            compared += compare(ours, theirs, steps, generator)
    assert compared > (700 if spacing == "leading" else 40)


@pytest.mark.parametrize("steps", [3, 7, 30, 150])
def test_diffusers_steps_beside_its_own_trailing_grid_and_ours_does_not(steps):
    """DDIM in diffusers goes back by T // K whatever the grid.

    Ours lands on the next timestep, as an independent first-order solver does.
    """
    config = {**SD, "timestep_spacing": "trailing"}
    ours, theirs = ASDDIMScheduler(**config), DDIMScheduler(**config)
    exact = DPMSolverMultistepScheduler(**LEVELS, **FIRST_ORDER)
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    exact.set_timesteps(timesteps=ours.timesteps.tolist())
    ends = []
    for scheduler in (ours, theirs, exact):
        x = normal(2, 4, seed=steps, dtype=torch.float64)
        for t in ours.timesteps:
            x = scheduler.step(torch.sin(x), t, x).prev_sample
        ends.append(x)
    assert (ends[0] - ends[2]).norm() < 1e-5 * ends[2].norm()
    assert (ends[1] - ends[2]).norm() > 1e-4 * ends[2].norm()


@pytest.mark.parametrize("seed", range(20))
def test_random_grids_equal_first_order_dpm_solver(seed):
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(1, 200))
    grid = sorted((int(t) for t in rng.choice(1000, steps, replace=False)), reverse=True)
    ours = ASDDIMScheduler(**SD)
    theirs = DPMSolverMultistepScheduler(**LEVELS, **FIRST_ORDER)
    ours.set_timesteps(timesteps=grid)
    theirs.set_timesteps(timesteps=grid)
    x = y = normal(2, 4, 4, 4, seed=seed, dtype=torch.float64)
    for t in grid:
        x = ours.step(torch.sin(x), t, x).prev_sample
        y = theirs.step(torch.sin(y), t, y).prev_sample
    assert (x - y).norm() < 1e-5 * y.norm()


def test_one_timestep_per_sample_equals_one_at_a_time():
    scheduler = ASDDIMScheduler(**SD, allocation="noise")
    scheduler.set_timesteps(12)
    x, output = normal(2, 3, 4, 8, 8)
    t = scheduler.timesteps[[0, 5, 11]]
    together = scheduler.step(output, t, x).prev_sample
    apart = [scheduler.step(output[[i]], t[i], x[[i]]).prev_sample for i in range(3)]
    torch.testing.assert_close(together, torch.cat(apart))


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_a_wrong_eta_is_refused(eta):
    scheduler, ones = ASDDIMScheduler(**SD), torch.ones(1, 4)
    scheduler.set_timesteps(5)
    with refuses("eta"):
        scheduler.step(ones, scheduler.timesteps[0], ones, eta=eta, variance_noise=ones)


@pytest.mark.parametrize("wrong", [[5, 5], [1, 2], [1000], [3, -1], []])
def test_wrong_timesteps_are_refused(wrong):
    with refuses("timesteps"):
        ASDDIMScheduler(**SD).set_timesteps(timesteps=wrong)


def test_a_network_that_fails_is_named_with_step_timestep_and_sigma():
    scheduler, ones = ASDDIMScheduler(**SD, allocation="noise"), torch.ones(1, 4)
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[3]
    scheduler.step(ones, scheduler.timesteps[2], ones)
    with refuses("model_output"):
        scheduler.step(torch.tensor([[1.0, float("inf"), 0, 0]]), t, ones)
    scheduler.step(ones, t, ones)  # a finite output is taken again
