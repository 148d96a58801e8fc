"""Searched grids against brute force and the Gaussian's known optimum."""

import itertools

import numpy as np
import pytest
import torch

from asddim_lib import timesteps
from asddim_lib.analytic import GaussianMixture
from asddim_lib.noise import NoiseSchedule
from asddim_lib.search import Trajectory, deviations, follow, gits, oracle, shortest_path
from asddim_lib.step import ddim_step

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}
SCHEDULE = NoiseSchedule.from_config(SD)
BARS = SCHEDULE.alphas_cumprod


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_shortest_path_equals_brute_force(steps):
    cost = np.random.default_rng(steps).random((7, 7))
    paths = [(0, *middle, 6) for middle in itertools.combinations(range(1, 6), steps - 1)]
    best = min(paths, key=lambda path: sum(cost[a, b] for a, b in itertools.pairwise(path)))
    assert shortest_path(cost, steps) == list(best[:-1])


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_oracle_of_a_gaussian_is_even_in_arctan(std, steps):
    data, every = GaussianMixture(torch.zeros(1, 2), std), list(range(999, -1, -1))
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = torch.stack([data.solve(x, float(BARS[-1]), float(BARS[t])) for t in every])
    noises = torch.stack([data.eps(y, float(BARS[t])) for t, y in zip(every, samples, strict=True)])
    found = oracle(Trajectory(every, samples, noises, data.solve(x, float(BARS[-1]), 1.0)), SCHEDULE, steps)
    angles = np.arctan(SCHEDULE.sigmas / std)
    even = np.interp(angles[-1] * (1 - np.arange(steps) / steps), angles, np.arange(1000))  # clean data is the angle 0

    def loss(grid):  # a step over the angle a keeps cos a of the truth: what is lost, summed
        return sum(1 - np.cos(a - b) for a, b in itertools.pairwise([*angles[list(grid)], 0.0]))

    assert loss(found) <= loss(even.round().astype(int)) + 1e-12
    if steps <= 10:  # beyond, whole timesteps are too coarse for the even spacing, and the best whole ones lie further from it
        assert np.abs(np.array(found) - even.round()).max() <= 1


def test_deviation_is_that_of_a_step():
    data = GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), 0.3)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    path = follow(lambda y, t: data.eps(y, float(BARS[t])), x, SCHEDULE, list(range(990, -1, -10)))
    landed, _ = ddim_step(path.samples[20], path.noises[20], torch.tensor(BARS[790]), torch.tensor(BARS[490]))
    error = ((landed - path.samples[50]) / BARS[490] ** 0.5).square().mean().sqrt()
    assert deviations(path, SCHEDULE, relative=False)[20, 50] == pytest.approx(float(error), rel=1e-9)


def test_searched_grids_beat_uniform_where_it_counts():
    data = GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), 0.1)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    eps = lambda y, t: data.eps(y, float(BARS[t]))  # noqa: E731
    path = follow(eps, x, SCHEDULE, list(range(999, -1, -9)))
    exact = data.solve(x, float(BARS[-1]), 1.0)
    error = {
        name: float((follow(eps, x, SCHEDULE, grid).end - exact).square().mean())
        for name, grid in (
            ("oracle", oracle(path, SCHEDULE, 10)),
            ("gits", gits(path, SCHEDULE, 10)),
            (
                "uniform",
                timesteps(SD, 10, allocation="uniform"),
            ),
        )
    }
    assert error["oracle"] < error["uniform"]
    assert error["gits"] < error["uniform"]
