"""Searched grids against brute force and the Gaussian's known optimum."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from typer.testing import CliRunner

from asddim_lib import ASDDIMScheduler, calibrate, load_pipeline, timesteps
from asddim_lib.cli import app
from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.core.step import ddim_step
from asddim_lib.evidence.adjoint import carry_back
from asddim_lib.evidence.trajectory import Trajectory, follow
from asddim_lib.grids.searched import (
    arrivals,
    detours,
    deviations,
    dual_path,
    gits,
    oracle,
    shortest_path,
)
from asddim_lib.measure.calibrate import record
from asddim_lib.metrics.distance import relative_distance
from asddim_lib.testing.mixtures import GaussianMixture
from asddim_lib.testing.trial import trial
from asddim_lib.tune.search import _ends, choose, direct_search

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
}
SCHEDULE = NoiseSchedule.from_config(SD)
BARS = SCHEDULE.alphas_cumprod


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
@pytest.mark.parametrize("growth", [0.8, 1.0, 1.15])
def test_shortest_path_equals_brute_force(steps, growth):
    cost = np.random.default_rng(steps).normal(size=(7, 7))
    paths = [(0, *middle, 6) for middle in itertools.combinations(range(1, 6), steps - 1)]
    best = min(
        paths,
        key=lambda path: sum(
            growth**k * cost[a, b] for k, (a, b) in enumerate(itertools.pairwise(path))
        ),
    )
    assert shortest_path(cost, steps, growth) == list(best[:-1])


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_oracle_of_a_gaussian_is_even_in_arctan(std, steps):
    data, every = GaussianMixture(torch.zeros(1, 2), std), list(range(999, -1, -1))
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = torch.stack([data.solve(x, float(BARS[-1]), float(BARS[t])) for t in every])
    noises = torch.stack([data.eps(y, float(BARS[t])) for t, y in zip(every, samples, strict=True)])
    found = oracle(
        Trajectory(every, samples, noises, data.solve(x, float(BARS[-1]), 1.0)), SCHEDULE, steps
    )
    angles = np.arctan(SCHEDULE.sigmas / std)
    even = np.interp(
        angles[-1] * (1 - np.arange(steps) / steps), angles, np.arange(1000)
    )  # clean data is the angle 0

    def loss(grid):  # a step over the angle a keeps cos a of the truth: what is lost, summed
        return sum(1 - np.cos(a - b) for a, b in itertools.pairwise([*angles[list(grid)], 0.0]))

    assert loss(found) <= loss(even.round().astype(int)) + 1e-12
    if (
        steps <= 10
    ):  # beyond, whole timesteps are too coarse for the even spacing, and the best whole ones lie further from it
        assert np.abs(np.array(found) - even.round()).max() <= 1


def test_deviation_is_that_of_a_step():
    data = GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), 0.3)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    path = follow(lambda y, t: data.eps(y, float(BARS[t])), x, SCHEDULE, list(range(990, -1, -10)))
    landed, _ = ddim_step(
        path.samples[20], path.noises[20], torch.tensor(BARS[790]), torch.tensor(BARS[490])
    )
    error = (landed - path.samples[50]).norm() / path.samples[50].norm()
    assert deviations(path, SCHEDULE)[20, 50] == pytest.approx(float(error), rel=1e-9)


def test_detour_is_the_distance_from_the_straight_line():
    start, end = torch.tensor([[0.0, 0.0, 4.0]]), torch.tensor([[4.0, 0.0, 4.0]])
    samples = torch.stack([start, torch.tensor([[2.0, 3.0, 4.0]]), end]) * torch.tensor(
        [BARS[t] ** 0.5 for t in (999, 500, 100)]
    ).reshape(3, 1, 1)
    towards = (torch.tensor([[2.0, 4.0, 4.0]]) - start) / (
        SCHEDULE.sigmas[500] - SCHEDULE.sigmas[999]
    )  # lands 4 beside the line, the path lies 3 beside it
    path = Trajectory(
        [999, 500],
        samples[:2],
        torch.stack([towards, torch.zeros(1, 3)]),
        samples[2],
        float(BARS[100]),
    )
    assert detours(path, SCHEDULE)[0, 1] == pytest.approx(1.0, rel=1e-5)
    assert detours(path, SCHEDULE)[1, 2] == pytest.approx(
        3.0, rel=1e-5
    )  # stays where it is, while the path returns to the line


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_pipeline_s_recorded_path_is_the_one_that_ddim_takes(prediction_type):
    pipe, prompts = (
        load_pipeline(),
        [
            "a red boot on a white ground",
            "two blue bags on a tan ground",
            "a pink dress on a black ground",
        ],
    )
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, prediction_type=prediction_type
    )
    path = record(pipe, prompts, guidance_scale=2.0, num_steps=12, batch_size=2)
    starts = torch.cat(
        [
            torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
            for seed in range(3)
        ]
    ).flatten(1)
    torch.testing.assert_close(path.samples[0], starts)
    bars = [*(float(BARS[t]) for t in path.timesteps), path.alpha_end]
    for k, landed in enumerate(
        [*path.samples[1:], path.end]
    ):  # each point is one DDIM step from the one before, along the ε on record
        made, _ = ddim_step(
            path.samples[k], path.noises[k], torch.tensor(bars[k]), torch.tensor(bars[k + 1])
        )
        torch.testing.assert_close(made, landed, rtol=1e-3, atol=1e-3)
    for name in ("oracle", "gits"):
        found = timesteps(pipe.scheduler, 5, allocation=name, path=path)
        assert len(found) == 5
        assert found[0] == 999
        assert set(found) <= set(path.timesteps)
    assert timesteps(pipe.scheduler, 13, allocation="oracle", path=path) == path.timesteps
    with pytest.raises(ValueError, match="num_inference_steps is 14"):
        timesteps(pipe.scheduler, 14, allocation="gits", path=path)


def test_a_search_without_a_path_is_refused():
    with pytest.raises(ValueError, match="path is None"):
        timesteps(SD, 5, allocation="oracle")


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


def swept(fine, probes=4, std=0.2):
    """A mixture's exact path with its exact adjoints, and the probes they began from."""
    data = GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), std)
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    eps = lambda y, t: data.eps(y, float(BARS[t]))  # noqa: E731
    path = follow(eps, x, SCHEDULE, fine)

    def transpose(k, v):
        return torch.einsum(
            "nij,pni->pnj", data.jacobian(path.samples[k], float(BARS[path.timesteps[k]])), v
        )

    probe = torch.randn(
        probes, *x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    return (
        replace(path, adjoints=carry_back(path.sigmas(SCHEDULE), transpose, probe).transpose(0, 1)),
        probe,
        eps,
    )


@pytest.mark.parametrize(("steps", "off"), [(20, 0.2), (40, 0.1), (80, 0.05)])
def test_arrivals_add_up_to_a_grid_s_error_at_the_end(steps, off):
    path, probe, eps = swept(
        [*range(999, 0, -4), 0], std=0.8
    )  # smooth: no sample is near the watershed between two means
    nodes = [round(k * 250 / steps) for k in range(steps)]
    end = follow(eps, path.samples[0], SCHEDULE, [path.timesteps[i] for i in nodes]).end
    spread = (path.end - path.end.mean(0)).square().sum(1).mean().sqrt()
    told = arrivals(path, SCHEDULE)[nodes, [*nodes[1:], len(path.timesteps)]].sum(0)
    true = (probe * (end - path.end)).sum(2).flatten() / spread
    assert (
        told - true
    ).norm() < off * true.norm()  # to first order: half the step, half of what is left out


def test_dual_path_adds_up_to_less_than_the_shortest_paths_and_than_its_neighbours():
    path, _, _ = swept(list(range(999, -1, -27)))
    found, arriving, last = (
        dual_path(path, SCHEDULE, 6),
        arrivals(path, SCHEDULE),
        len(path.timesteps),
    )

    def cost(grid):
        nodes = [path.timesteps.index(t) for t in grid]
        return float(arriving[nodes, [*nodes[1:], last]].sum(0).square().mean())

    assert cost(found) < cost(oracle(path, SCHEDULE, 6))
    for k, move in itertools.product(range(1, 6), (-27, 27)):
        moved = [*found[:k], found[k] + move, *found[k + 1 :]]
        if all(a > b for a, b in itertools.pairwise(moved)) and moved[-1] >= 0:
            assert cost(found) <= cost(moved)


def test_dual_path_ends_nearer_on_samples_that_it_has_not_seen():
    data = GaussianMixture(
        torch.randn(8, 16, generator=torch.Generator().manual_seed(16), dtype=torch.float64), 0.2
    )
    found = trial(data, SD, 10, ["dual-path", "trailing", "karras", "arctan"], count=128)
    assert found["dual-path"] == min(found.values())


def test_dual_path_needs_adjoints():
    path = follow(lambda y, t: y, torch.ones(2, 2, dtype=torch.float64), SCHEDULE, [999, 500, 0])
    with pytest.raises(ValueError, match="adjoints is None; record the path with adjoint_probes"):
        timesteps(SD, 2, allocation="dual-path", path=path)
    assert dual_path(replace(path, adjoints=torch.ones(1, 3, 2, 2)), SCHEDULE, 1) == [999]


def test_direct_search_betters_its_start_for_any_solver():
    pipe, prompts = (
        load_pipeline(),
        ["a red boot on a white ground", "two blue bags on a tan ground"],
    )
    own = pipe.scheduler
    for solver in (ASDDIMScheduler, DPMSolverMultistepScheduler):
        pipe.scheduler = solver.from_config(own.config)
        starts, before = [[999, 600, 200], [999, 100, 50]], pipe.scheduler
        found = direct_search(pipe, prompts, starts, guidance_scale=3.0, reference_steps=20)
        assert pipe.scheduler is before
        goal = _ends(
            _with(pipe, ASDDIMScheduler.from_config(own.config)),
            prompts,
            timesteps(own, 20, allocation="trailing"),
            3.0,
            2,
            0,
        )
        pipe.scheduler = before
        costs = [
            float(relative_distance(_ends(pipe, prompts, grid, 3.0, 2, 0), goal).mean())
            for grid in (*starts, found.timesteps)
        ]
        assert found.distance == pytest.approx(costs[2], rel=1e-5)
        assert costs[2] < min(costs[:2])
        assert found.evaluations > 20 * 2 * 2
        name, best = choose(
            pipe, prompts, {"a": starts[0], "b": starts[1]}, guidance_scale=3.0, reference_steps=20
        )
        within = direct_search(
            pipe, prompts, starts, budget=10, guidance_scale=3.0, reference_steps=20
        )
        assert within.evaluations == (20 + 2 * 3 + 3 * 3) * 2 * 2, (
            "three trials of three steps are all that ten steps hold"
        )
        assert found.distance <= within.distance <= min(costs[:2])
        assert name == "ab"[costs.index(min(costs[:2]))]
        assert best == (
            starts["ab".index(name)],
            pytest.approx(min(costs[:2]), rel=1e-5),
            (20 + 2 * 3) * 2 * 2,
        )
    with pytest.raises(ValueError, match="strictly decreasing"):
        direct_search(pipe, prompts, [[5, 600]], reference_steps=1)
    with pytest.raises(ValueError, match=r"pipe\.scheduler is DDIMScheduler; .* ASDDIMScheduler"):
        direct_search(_with(pipe, own), prompts, [[999, 500]])


def _with(pipe, scheduler):
    pipe.scheduler = scheduler
    return pipe


def test_choose_lists_what_it_tried_best_last(tmp_path):
    calibrate(
        load_pipeline(),
        ["a red boot on a white ground"],
        guidance_scale=3.0,
        num_steps=8,
        estimator="path",
    ).save(tmp_path / "p.json")
    asked = [
        "choose",
        "--steps",
        "3",
        "--solver",
        "dpm++",
        "--count",
        "2",
        "--guidance-scale",
        "3",
        "--reference-steps",
        "20",
        "--profile",
        str(tmp_path / "p.json"),
    ]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    lines = [line.split(maxsplit=1) for line in shown.stdout.splitlines()]
    values = [float(value) for value, _ in lines]
    assert len(lines) == 9
    assert values == sorted(values, reverse=True)
    assert json.loads(lines[-1][1][lines[-1][1].index("[") :])[0] <= 999
    moved = [
        line.split(maxsplit=2)
        for line in CliRunner().invoke(app, [*asked, "--search"]).stdout.splitlines()
    ]
    assert (len(moved), moved[-1][1]) == (10, "searched")
    assert float(moved[-1][0]) <= values[-1]
    assert "solver is heun" in str(
        CliRunner().invoke(app, ["choose", "--solver", "heun"]).exception
    )
