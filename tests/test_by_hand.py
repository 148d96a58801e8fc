"""The book's worked example: data from N(0, s²), whose every step has a closed form.

With σ = s tan θ, one DDIM step keeps cos(θ − θ') of the standard deviation.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asddim_lib.evidence.path import Trajectory, carry_back, shares
from asddim_lib.levels import Levels, noise_schedule
from asddim_lib.paper import allocate, ddim_step, gradient_step
from asddim_lib.sensitivity import gradient_norm
from experiments.mixtures import GaussianMixture, follow

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE, LEVELS = noise_schedule(SD), Levels.from_diffusers(SD)
BARS = SCHEDULE.alphas_cumprod
ONE = torch.ones(1, 1, dtype=torch.float64)
SPREADS = st.floats(0.02, 5)
GRIDS = st.sets(st.integers(0, 999), min_size=1, max_size=12).map(
    lambda chosen: sorted(chosen, reverse=True)
)


def variance(s):
    """The variance of x at each timestep."""
    return BARS * s**2 + 1 - BARS


def angles(s):
    """θ at each timestep."""
    return np.arctan(SCHEDULE.sigmas / s)


def best_density(s):
    """dθ/dt, up to a factor."""
    return SCHEDULE.betas * np.sqrt(BARS) / (np.sqrt(1 - BARS) * variance(s))


def path(s, grid):
    """DDIM's path from x = 1 over a grid, by the library's own step."""
    line = GaussianMixture([[0.0]], s)
    return follow(lambda x, t: line.eps(x, BARS[t]), ONE, LEVELS, grid)


def kept(s, grid):
    """The share of the exact standard deviation with which DDIM ends on a grid."""
    return float(path(s, grid).end) * variance(s)[grid[0]] ** 0.5 / s


@given(SPREADS, GRIDS)
@settings(max_examples=50)
def test_ddim_keeps_the_product_of_cosines(s, grid):
    product = np.cos(np.diff([*angles(s)[grid], 0])).prod()
    assert kept(s, grid) == pytest.approx(product, rel=1e-9, abs=1e-12)


@given(SPREADS, st.lists(st.floats(0.01, 1), min_size=1, max_size=8), st.floats(0.1, 1.57))
@settings(max_examples=50)
def test_no_grid_beats_equal_angles(s, parts, first):
    """Not only for short steps: for every number of them (Sabour et al. 2024, Theorem 3.1)."""
    line, steps = GaussianMixture([[0.0]], s), len(parts)

    def end(widths):
        theta = first * (1 - np.cumsum([0, *widths]) / np.sum(widths))
        levels = torch.from_numpy(1 / (1 + (s * np.tan(theta)) ** 2))
        x = ONE
        for now, after in itertools.pairwise(levels):
            x, _ = ddim_step(x, line.eps(x, now), now, after)
        return float(x / line.solve(ONE, levels[0], 1.0))

    best = np.cos(first / steps) ** steps
    assert end(np.ones(steps)) == pytest.approx(best, rel=1e-7)
    assert end(parts) <= best + 1e-9


@given(st.floats(0.02, 1), st.integers(1, 999))
def test_the_exact_step_back_lies_between_ddpm_s_two(s, t):
    line, shrink = GaussianMixture([[0.0]], s), variance(s)[t - 1] / variance(s)[t]
    mean, small = SCHEDULE.reverse_step(ONE, line.eps(ONE, BARS[t]), t)
    assert float(mean) == pytest.approx((1 - SCHEDULE.betas[t]) ** 0.5 * shrink, rel=1e-9)
    exact = SCHEDULE.betas[t] * shrink
    assert small <= exact * (1 + 1e-9)
    assert exact <= SCHEDULE.betas[t] * (1 + 1e-9)


@given(st.floats(0.05, 0.7))
@settings(max_examples=20)
def test_the_sensitivity_has_its_peak_where_noise_is_s_over_root_one_minus_s_squared(s):
    g = np.sqrt(1 - BARS) / variance(s)
    peak = 1 / (2 * s * np.sqrt(1 - s**2))
    wanted = s**2 / (1 - s**2)
    assume(1 - BARS[1] < wanted < 1 - BARS[-2])
    t = int(g.argmax())
    assert wanted**0.5 / (s**2 * (1 - wanted) + wanted) == pytest.approx(peak, rel=1e-9)
    assert g.max() <= peak * (1 + 1e-9)
    assert 1 - BARS[t - 1] <= wanted <= 1 - BARS[t + 1]
    line = GaussianMixture([[0.0]], s)
    found, _ = gradient_norm(lambda x, t: line.eps(x, BARS[t]), ONE, torch.tensor(t))
    assert float(found) == pytest.approx(g[t], rel=1e-6)


@given(st.floats(0.1, 2))
@settings(max_examples=5)
def test_the_library_measures_both_densities_of_a_gaussian(s):
    """√c by σ is (s² + σ²)^−¾ where the error is made, and (s² + σ²)⁻¹ where it arrives."""
    grid = allocate(1 / best_density(s), 64)
    made = path(s, [*grid, 0] if grid[-1] else grid)
    line = GaussianMixture([[0.0]], s)

    def transpose(k, v):
        slope = line.jacobian(made.samples[k], BARS[made.timesteps[k]])
        return torch.einsum("nij,pni->pnj", slope, v)

    back = carry_back(made.sigmas(LEVELS), transpose, ONE[None]).transpose(0, 1)
    carried = Trajectory(made.timesteps, made.samples, made.noises, made.end, adjoints=back)
    sigma = made.sigmas(LEVELS).numpy()[:-1]
    square = s**2 + sigma[:-1] * sigma[1:]  # of a point within the step
    widths = -np.diff(sigma)
    for found, root in (
        (shares(carried, LEVELS), square**-0.75),
        (shares(carried, LEVELS, carried=True), 1 / square),
    ):
        ratio = (found / (root * widths))[8:]  # the first steps in σ are long
        assert ratio.std() / ratio.mean() < 0.05


@pytest.mark.parametrize("s", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("steps", [2, 4, 10, 30])
def test_the_best_density_gives_the_best_end(s, steps):
    best = np.cos(angles(s)[-1] / steps) ** steps
    laid = kept(s, allocate(1 / best_density(s), steps))
    even = kept(s, allocate(np.ones(1000), steps))
    assert even < laid < best + 1e-9
    assert 1 - laid < 1.15 * (1 - best)  # whole timesteps are not quite even in θ


def test_the_gradient_alone_is_worse_than_even_steps():
    """For s = ½, since g goes to 0 next to clean data: the claim of the chapter."""
    g = np.sqrt(1 - BARS) / variance(0.5)
    for steps in (4, 10, 30):
        even = kept(0.5, allocate(np.ones(1000), steps))
        assert kept(0.5, allocate(gradient_step(g, 1.0), steps)) < even
