"""The error along a path: closed forms, automatic differentiation, a Gaussian's known optimum."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from asddim_lib import ASDDIMScheduler, Profile, calibrate, load_pipeline, timesteps
from asddim_lib.calibration import record
from asddim_lib.errors import WrongUse
from asddim_lib.evidence.fit import excess, fit_paper
from asddim_lib.evidence.path import Trajectory, carry_back, local_errors, shares
from asddim_lib.levels import Levels, fingerprint
from asddim_lib.paper import allocate, gradient_step, noise_weights, step_sizes
from asddim_lib.pipeline.run import Run
from experiments.mixtures import GaussianMixture, follow
from tests.refusals import refuses

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = Levels.from_diffusers(SD)
BARS = SCHEDULE.alphas_cumprod
PROMPTS = [
    "a red boot on a white ground",
    "two blue bags on a tan ground",
    "a pink dress on a black ground",
]


def path_of(noises, grid):
    return Trajectory(list(grid), torch.zeros_like(noises), noises, torch.zeros_like(noises[0]))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_local_error_is_the_step_s_power_times_the_derivative(order):
    grid = [999, 940, 800, 700, 450, 300, 120, 30]
    sigma = SCHEDULE.sigmas[grid]
    half = -np.log(sigma)
    # The derivative of this order is 5 · order! everywhere.
    noises = torch.from_numpy(5 * half**order - half ** (order - 1)).reshape(-1, 1, 1)
    errors = local_errors(path_of(noises, grid), SCHEDULE, order).flatten().numpy()
    exact = np.diff(half) ** order * -np.diff(sigma) * 5 * math.factorial(order)
    np.testing.assert_allclose(errors, exact, rtol=1e-9)


@pytest.mark.parametrize("second", [998, 990, 960, 920])
def test_a_step_from_pure_noise_errs_as_a_normal_distribution_says(second):
    """Data N(m, s²): from noise x the path is y = m + x √(σ² + s²), and DDIM's step y = m + σ x."""
    schedule = Levels.from_diffusers({**SD, "rescale_betas_zero_snr": True})
    assert schedule.alphas_cumprod[999] == 0
    mean, spread, x = 0.7, 0.5, 1.3
    sigma = float(schedule.sigmas[second])
    y = mean + sigma * x
    clean = (mean * sigma**2 + spread**2 * y) / (sigma**2 + spread**2)
    noises = torch.tensor([x, (y - clean) / sigma], dtype=torch.float64).reshape(-1, 1, 1)
    error = float(local_errors(path_of(noises, [999, second]), schedule)) / 2
    exact = mean + x * math.hypot(sigma, spread) - y
    assert -error == pytest.approx(exact, rel=0.25 * (spread / sigma) ** 2 + spread**2 / sigma**2)


def test_a_path_s_length_is_its_number_of_timesteps():
    assert len(path_of(torch.zeros(3, 2, 4), [999, 500, 0])) == 3


def test_adjoints_equal_automatic_differentiation():
    data = GaussianMixture(
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        [0.3, 0.5, 0.8],
        [0.2, 0.5, 0.3],
    )
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grid = timesteps(SD, 12, allocation="noise")

    def eps(y, t):
        return data.eps(y, float(BARS[t]))

    path = follow(eps, x, SCHEDULE, grid)
    probe = torch.randn(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def transpose(k, v):
        return torch.einsum("nij,ni->nj", data.jacobian(path.samples[k], float(BARS[grid[k]])), v)

    adjoints = carry_back(path.sigmas(SCHEDULE), transpose, probe)
    for k in (0, 5, 11):
        start = path.samples[k].clone().requires_grad_()
        end = follow(eps, start, SCHEDULE, grid[k:]).end
        by_x = torch.autograd.grad((end * probe).sum(), start)[0]
        by_y = BARS[grid[k]] ** 0.5 * by_x
        torch.testing.assert_close(adjoints[k], by_y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("steps", [4, 8, 16])
def test_dual_weighting_finds_a_gaussian_s_best_grid(std, steps):
    """Steps even in arctan(σ / c) are optimal there (Sabour et al. 2024, Theorem 3.1).

    The errors where they are made do not lead to that grid.
    """
    data, grid = GaussianMixture(torch.zeros(1, 3), std), timesteps(SD, 500, allocation="trailing")
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path = follow(lambda y, t: data.eps(y, float(BARS[t])), x, SCHEDULE, [*grid, 0])

    def transpose(k, v):
        return torch.einsum(
            "nij,ni->nj", data.jacobian(path.samples[k], float(BARS[path.timesteps[k]])), v
        )

    probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    path = replace(path, adjoints=carry_back(path.sigmas(SCHEDULE), transpose, probe)[None])
    angles = np.arctan(SCHEDULE.sigmas / std)
    angles += angles[1] - 2 * angles[0]  # timestep 0 counts as one of a thousand
    even = np.interp(angles[-1] * (1 - np.arange(steps) / steps), angles, np.arange(1000))

    def distance(allocation, carried):
        how = {"allocation": allocation, "profile": profile(path, carried=carried)}
        return np.abs(np.array(timesteps(SD, steps, **how)) - even).max()

    assert distance("dual-weighted", True) <= 4  # of 1000; the path's own points are 2 apart
    assert distance("equidistributed", False) > 20


def profile(path, carried=False, order=1):
    kind = "adjoint" if carried else "local"
    error = {
        "timesteps": path.timesteps,
        kind: {str(order): shares(path, SCHEDULE, order, carried).tolist()},
    }
    return Profile(
        timesteps=[900, 50],
        g=[1.0, 4.0],
        stderr=[0.1] * 2,
        norm="frobenius",
        estimator="vjp",
        probes=1,
        samples=4,
        seed=0,
        guidance_scale=7.5,
        model="test",
        schedule=fingerprint(SCHEDULE),
        evaluations=100,
        local_error=error,
    )


def random_profile():
    """Of four points, whose intervals are 500, 400 and 99 timesteps long."""
    noises = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    return profile(path_of(noises, [999, 499, 99, 0]))


def test_density_divides_each_interval_s_share_among_its_timesteps():
    made = random_profile()
    density, share = made.density(SCHEDULE), made.local_error["local"]["1"]
    assert len(density) == 1000
    parts = [density[500:], density[100:500], density[:100]]
    np.testing.assert_allclose([part.sum() for part in parts[:2]], share[:2], rtol=1e-12)
    np.testing.assert_allclose(density[1:100].sum(), share[2], rtol=1e-12)
    assert all(len(set(part)) == 1 for part in parts)


def test_tempering_goes_from_the_density_to_uniform():
    made = random_profile()

    def grid(**how):
        return timesteps(SD, 8, allocation="equidistributed", profile=made, **how)

    assert grid(exponent=0) == timesteps(SD, 8, allocation="trailing")
    assert grid(exponent=1) == grid()
    assert grid(exponent=0.5) == allocate(made.density(SCHEDULE) ** -0.5, 8)
    with refuses("exponent"):
        grid(exponent=2)


def test_a_pipeline_s_adjoint_is_the_effect_of_a_nudge():
    pipe, calls = load_pipeline(dtype=torch.float64), []
    run = Run(pipe, PROMPTS[:2], seeds=[5, 6], guidance_scale=3.0)
    path = run.path(8, adjoint_probes=1, also=lambda eps, x, t: calls.append((eps, x, t)))
    assert len(calls) == len(path)
    generators = run.generators(slice(0, 2))

    def draw(dtype):
        noise = [torch.randn(1, 4, 16, 16, generator=one, dtype=dtype) for one in generators]
        return torch.cat(noise).double()

    start, probe = draw(torch.float64), draw(torch.float32)
    torch.testing.assert_close(path.samples[0], start.flatten(1))
    sigmas = path.sigmas(SCHEDULE)

    @torch.no_grad()
    def end_from(k, y):
        for j in range(k, len(calls)):
            eps, _, t = calls[j]
            y = y + (sigmas[j + 1] - sigmas[j]) * eps(y / (1 + sigmas[j] ** 2).sqrt(), t)
        return y.flatten(1)

    k, generator = 5, torch.Generator().manual_seed(9)
    nudge = torch.randn(2, 4, 16, 16, generator=generator, dtype=torch.float64)
    y = calls[k][1] * (1 + sigmas[k] ** 2).sqrt()
    effect = (end_from(k, y + 1e-4 * nudge) - end_from(k, y - 1e-4 * nudge)) / 2e-4
    predicted = (path.adjoints[0, k] * nudge.flatten(1)).sum(1)
    measured = (effect * probe.flatten(1)).sum(1)
    torch.testing.assert_close(predicted, measured, rtol=1e-4, atol=1e-4)


def test_calibration_measures_the_error_for_every_allocation_that_needs_it(tmp_path):
    pipe = load_pipeline()
    how = {"guidance_scale": 3.0, "num_steps": 10}
    made = calibrate(pipe, PROMPTS, estimator="path", adjoint_probes=2, batch_size=2, **how)
    made.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == made
    path = record(pipe, PROMPTS, **how)
    for order in (1, 2, 3):
        measured = made.local_error["local"][str(order)]
        np.testing.assert_allclose(measured, shares(path, SCHEDULE, order), rtol=1e-3)
        for allocation in ("equidistributed", "dual-weighted"):
            grid = timesteps(pipe.scheduler, 6, allocation=allocation, profile=made, order=order)
            assert len(grid) == 6
            assert grid[0] == 999
    without = calibrate(pipe, PROMPTS[:1], guidance_scale=3.0, num_steps=3, estimator="path")
    with refuses("profile"):
        timesteps(pipe.scheduler, 6, allocation="dual-weighted", profile=without)
    with refuses("profile"):
        timesteps(pipe.scheduler, 6, allocation="equidistributed", profile=made, order=4)


def test_a_path_from_pure_noise_is_finite():
    """Zero terminal SNR: ᾱ begins at 0, and the network predicts v."""
    pipe = load_pipeline()
    config = {
        **pipe.scheduler.config,
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
    }
    pipe.scheduler = type(pipe.scheduler).from_config(config)
    made = calibrate(pipe, PROMPTS[:1], guidance_scale=1.0, num_steps=6, adjoint_probes=1)
    for allocation in ("combined", "fitted", "equidistributed", "dual-weighted"):
        grid = timesteps(pipe.scheduler, 4, allocation=allocation, profile=made)
        assert len(grid) == 4
        assert grid[0] == 999


@pytest.mark.parametrize("order", [1, 2, 3])
def test_excess_is_the_ratio_of_the_errors_themselves(order):
    """K steps with errors c h^(p + 1), summed: under one density and under the best."""
    random = np.random.default_rng(order)
    places = np.linspace(0, 999, 12)
    logarithms = (np.interp(np.arange(1000), places, random.normal(size=12)) for _ in range(2))
    best, other = (np.exp(logarithm) for logarithm in logarithms)

    def error(density, count=4000):
        cumulative = np.concatenate([[0], np.cumsum(density)])
        cuts = np.interp(np.linspace(0, cumulative[-1], count + 1), cumulative, np.arange(1001))
        middles = np.minimum(((cuts[1:] + cuts[:-1]) / 2).astype(int), 999)
        coefficient = best[middles] ** (order + 1)
        return (coefficient * np.diff(cuts) ** (order + 1)).sum()

    assert excess(other, best, order) == pytest.approx(error(other) / error(best), rel=0.01)
    assert excess(3 * best, best, order) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("p", "lam"), [(0.5, 1.0), (1.5, 0.0), (0.0, 3.0)])
def test_a_fit_finds_the_paper_s_own_density(p, lam):
    g = np.exp(np.interp(np.arange(1000), [0, 400, 999], [2.0, 0.3, 0.0]))
    best = 1 / step_sizes(noise_weights(SCHEDULE.variance, p), gradient_step(g, lam))
    fit = fit_paper(SCHEDULE.variance, g, best)
    np.testing.assert_allclose(fit, (p, lam, 1), atol=0.01)


@pytest.mark.parametrize(
    "call",
    [
        lambda p: local_errors(p, SCHEDULE, 4),
        lambda p: local_errors(p, SCHEDULE, 3),
        lambda p: shares(p, SCHEDULE, carried=True),
    ],
)
def test_a_path_that_does_not_serve_is_named(call):
    with pytest.raises(WrongUse, match=r"order is 4|path is 2 points|adjoints is None"):
        call(path_of(torch.randn(2, 1, 3), [999, 0]))


def test_a_saved_scheduler_keeps_the_error_that_it_allocates_by(tmp_path):
    made = random_profile()
    scheduler = ASDDIMScheduler(**SD, allocation="equidistributed", profile=made.to_dict())
    scheduler.save_config(tmp_path)
    again = ASDDIMScheduler.from_pretrained(tmp_path)
    again.set_timesteps(6)
    assert again.timesteps.tolist() == timesteps(SD, 6, allocation="equidistributed", profile=made)
