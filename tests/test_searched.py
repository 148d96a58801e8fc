"""Searched grids against brute force and the known optimum of a Gaussian."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from asddim_lib import timesteps
from asddim_lib.evidence.path import Trajectory, carry_back
from asddim_lib.grids.searched import detours, gits, shortest_path
from asddim_lib.levels import Levels
from asddim_lib.paper import ddim_step
from experiments.mixtures import GaussianMixture, follow
from experiments.searches import arrivals, deviations, dual_path, oracle
from experiments.trial import trial
from tests.refusals import refuses
from tests.tiny import SD

TRAILING = {**SD, "timestep_spacing": "trailing"}
SCHEDULE = Levels.from_diffusers(SD)
BARS = SCHEDULE.alphas_cumprod


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
@pytest.mark.parametrize("growth", [0.8, 1.0, 1.15])
def test_shortest_path_equals_brute_force(steps, growth):
    cost = np.random.default_rng(steps).normal(size=(7, 7))

    def length(path):
        return sum(growth**k * cost[a, b] for k, (a, b) in enumerate(itertools.pairwise(path)))

    paths = [(0, *middle, 6) for middle in itertools.combinations(range(1, 6), steps - 1)]
    assert shortest_path(cost, steps, growth) == list(min(paths, key=length)[:-1])


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_oracle_of_a_gaussian_is_even_in_arctan(std, steps):
    data, every = GaussianMixture(torch.zeros(1, 2), std), list(range(999, -1, -1))
    x, first = normal(4, 2, seed=0), float(BARS[-1])
    samples = torch.stack([data.solve(x, first, float(BARS[t])) for t in every])
    noises = torch.stack([data.eps(y, float(BARS[t])) for t, y in zip(every, samples, strict=True)])
    grid = oracle(Trajectory(every, samples, noises, data.solve(x, first, 1.0)), SCHEDULE, steps)
    angles = np.arctan(SCHEDULE.sigmas / std)  # of clean data, the angle is 0
    shares = 1 - np.arange(steps) / steps
    even = np.interp(angles[-1] * shares, angles, np.arange(1000)).round()

    def loss(grid):
        """A step over the angle a keeps cos a of the truth."""
        return sum(1 - np.cos(a - b) for a, b in itertools.pairwise([*angles[grid], 0.0]))

    assert loss(grid) <= loss(even.astype(int)) + 1e-12
    if steps <= 10:  # beyond, whole timesteps are too coarse for even spacing
        assert np.abs(np.array(grid) - even).max() <= 1


def test_deviation_is_that_of_a_step():
    data = GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), 0.3)
    grid = list(range(990, -1, -10))
    path = follow(lambda y, t: data.eps(y, float(BARS[t])), normal(3, 2, seed=1), SCHEDULE, grid)
    levels = torch.tensor(BARS[790]), torch.tensor(BARS[490])
    end, _ = ddim_step(path.samples[20], path.noises[20], *levels)
    error = (end - path.samples[50]).norm() / path.samples[50].norm()
    assert deviations(path, SCHEDULE)[20, 50] == pytest.approx(float(error), rel=1e-9)


def test_detour_is_the_distance_from_the_straight_line():
    """The step lands 4 beside the line, and the path lies 3 beside it."""
    start, end = torch.tensor([[0.0, 0.0, 4.0]]), torch.tensor([[4.0, 0.0, 4.0]])
    roots = torch.tensor([BARS[t] ** 0.5 for t in (999, 500, 100)]).reshape(3, 1, 1)
    samples = torch.stack([start, torch.tensor([[2.0, 3.0, 4.0]]), end]) * roots
    move = torch.tensor([[2.0, 4.0, 4.0]]) - start
    noises = torch.stack([move / (SCHEDULE.sigmas[500] - SCHEDULE.sigmas[999]), torch.zeros(1, 3)])
    path = Trajectory([999, 500], samples[:2], noises, samples[2], float(BARS[100]))
    assert detours(path, SCHEDULE)[0, 1] == pytest.approx(1.0, rel=1e-5)
    # The second step stays where it is, while the path returns to the line.
    assert detours(path, SCHEDULE)[1, 2] == pytest.approx(3.0, rel=1e-5)


def test_searched_grids_beat_uniform_where_it_counts():
    data = GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), 0.1)
    x = normal(64, 2, seed=2)
    eps = lambda y, t: data.eps(y, float(BARS[t]))  # noqa: E731
    path = follow(eps, x, SCHEDULE, list(range(999, -1, -9)))
    exact = data.solve(x, float(BARS[-1]), 1.0)

    def error(grid):
        return float((follow(eps, x, SCHEDULE, grid).end - exact).square().mean())

    uniform = error(timesteps(TRAILING, 10, allocation="uniform"))
    assert error(oracle(path, SCHEDULE, 10)) < uniform
    assert error(gits(path, SCHEDULE, 10)) < uniform


def swept(grid, probes=4, std=0.2):
    """A mixture's exact path with its exact adjoints, the probes they start from, and ε."""
    data = GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), std)
    x = normal(32, 2, seed=3)
    eps = lambda y, t: data.eps(y, float(BARS[t]))  # noqa: E731
    path = follow(eps, x, SCHEDULE, grid)

    def transpose(k, v):
        jacobian = data.jacobian(path.samples[k], float(BARS[path.timesteps[k]]))
        return torch.einsum("nij,pni->pnj", jacobian, v)

    probe = normal(probes, *x.shape, seed=4)
    adjoints = carry_back(path.sigmas(SCHEDULE), transpose, probe).transpose(0, 1)
    return replace(path, adjoints=adjoints), probe, eps


@pytest.mark.parametrize(("steps", "tolerance"), [(20, 0.2), (40, 0.1), (80, 0.05)])
def test_arrivals_add_up_to_a_grid_s_error_at_the_end(steps, tolerance):
    """To first order: half the step, half the rest. No sample is near a watershed of the means."""
    path, probe, eps = swept([*range(999, 0, -4), 0], std=0.8)
    nodes = [round(k * 250 / steps) for k in range(steps)]
    end = follow(eps, path.samples[0], SCHEDULE, [path.timesteps[i] for i in nodes]).end
    spread = (path.end - path.end.mean(0)).square().sum(1).mean().sqrt()
    predicted = arrivals(path, SCHEDULE)[nodes, [*nodes[1:], len(path.timesteps)]].sum(0)
    true = (probe * (end - path.end)).sum(2).flatten() / spread
    assert (predicted - true).norm() < tolerance * true.norm()


def test_dual_path_costs_less_than_the_shortest_path_and_than_its_neighbours():
    path, _, _ = swept(list(range(999, -1, -27)))
    grid, arriving = dual_path(path, SCHEDULE, 6), arrivals(path, SCHEDULE)

    def cost(grid):
        nodes = [path.timesteps.index(t) for t in grid]
        following = [*nodes[1:], len(path.timesteps)]
        return float(arriving[nodes, following].sum(0).square().mean())

    assert cost(grid) < cost(oracle(path, SCHEDULE, 6))
    for k, move in itertools.product(range(1, 6), (-27, 27)):
        moved = [*grid[:k], grid[k] + move, *grid[k + 1 :]]
        if all(a > b for a, b in itertools.pairwise(moved)) and moved[-1] >= 0:
            assert cost(grid) <= cost(moved)


def test_dual_path_ends_nearer_on_samples_that_it_has_not_seen():
    data = GaussianMixture(normal(8, 16, seed=16), 0.2)
    names = ["dual-path", "trailing", "karras", "arctan"]
    distances = trial(data, TRAILING, 10, names, count=128)
    assert distances["dual-path"] == min(distances.values())


def test_dual_path_needs_adjoints():
    path = follow(lambda y, t: y, torch.ones(2, 2, dtype=torch.float64), SCHEDULE, [999, 500, 0])
    with refuses("adjoints"):
        timesteps(SD, 2, allocation="dual-path", path=path)
    assert dual_path(replace(path, adjoints=torch.ones(1, 3, 2, 2)), SCHEDULE, 1) == [999]


def test_a_search_without_a_path_is_refused():
    with refuses("path"):
        timesteps(SD, 5, allocation="oracle")


def test_a_path_of_another_noise_schedule_is_refused():
    data = GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), 0.3)
    every = list(range(999, -1, -50))
    path = follow(lambda y, t: data.eps(y, float(BARS[t])), normal(3, 2, seed=1), SCHEDULE, every)
    assert len(timesteps(TRAILING, 5, allocation="oracle", path=path)) == 5
    for other in ({**TRAILING, "beta_end": 0.02}, {**TRAILING, "num_train_timesteps": 100}):
        with refuses("path"):
            timesteps(other, 5, allocation="oracle", path=path)
