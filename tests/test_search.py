"""Grids searched on the bundled pipeline: on its recorded path, and by trying."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asddim_lib import ASDDIMScheduler, timesteps
from asddim_lib.calibration import record
from asddim_lib.levels import noise_schedule
from asddim_lib.paper import ddim_step
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.search import pattern_search, race, race_cost, rounds
from tests.near import distances, fine_ends
from tests.refusals import refuses

PROMPTS = ["a red boot on a white ground", "two blue bags on a tan ground"]
SMALL = {"height": 32, "width": 32}


def generators(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_recorded_path_is_the_one_that_ddim_takes(pipe, prediction_type):
    bars = noise_schedule(pipe.scheduler).alphas_cumprod
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, prediction_type=prediction_type
    )
    prompts = [*PROMPTS, "a pink dress on a black ground"]
    path = record(pipe, prompts, guidance_scale=2.0, num_steps=12, batch_size=2, **SMALL)
    starts = [torch.randn(1, 4, 8, 8, generator=generator) for generator in generators(3)]
    torch.testing.assert_close(path.samples[0], torch.cat(starts).flatten(1))
    levels = torch.tensor([*(float(bars[t]) for t in path.timesteps), path.alpha_end])
    for k, following in enumerate([*path.samples[1:], path.end]):
        end, _ = ddim_step(path.samples[k], path.noises[k], levels[k], levels[k + 1])
        torch.testing.assert_close(end, following, rtol=1e-3, atol=1e-3)
    for name in ("oracle", "gits"):
        grid = timesteps(pipe.scheduler, 5, allocation=name, path=path)
        assert len(grid) == 5
        assert grid[0] == 999
        assert set(grid) <= set(path.timesteps)
    assert timesteps(pipe.scheduler, 13, allocation="oracle", path=path) == path.timesteps
    with refuses("num_inference_steps"):
        timesteps(pipe.scheduler, 14, allocation="gits", path=path)


# pattern search and race


@settings(max_examples=50)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=5, unique=True), st.data())
def test_a_pattern_search_ends_where_no_first_move_helps_and_never_higher(best, data):
    best = sorted(best, reverse=True)
    start = data.draw(
        st.lists(st.integers(0, 99), min_size=len(best), max_size=len(best), unique=True)
    )
    start, tried = sorted(start, reverse=True), []

    def cost(grid):
        assert sorted(set(grid), reverse=True) == grid
        assert 0 <= grid[-1] <= grid[0] <= 99
        tried.append(tuple(grid))
        return float(np.square(np.subtract(grid, best)).sum())

    found = pattern_search(cost, start, 100)
    assert tried[0] == tuple(start)
    assert cost(found) == min(cost(list(grid)) for grid in list(tried))


def test_no_trial_is_made_that_is_not_affordable():
    left = iter([True] * 5)
    tried = []

    def cost(grid):
        tried.append(grid)
        return float(sum(grid))

    pattern_search(cost, [90, 50, 10], 100, lambda: next(left, False))
    assert len(tried) <= 5


@pytest.mark.parametrize("sizes", [[8], [8, 8, 8, 4], [2] * 9, [30]])
@pytest.mark.parametrize("count", [1, 2, 7, 17])
def test_a_race_names_the_best_and_draws_what_its_cost_says(count, sizes):
    grids, drawn = {str(n): [n] for n in range(count)}, set()

    def cost(grid, batches):
        drawn.update((grid[0], batch) for batch in range(batches))
        return abs(grid[0] - 3)

    assert race(cost, grids, sizes) == str(min(3, count - 1))
    assert sum(sizes[batch] for _, batch in drawn) == race_cost(count, sizes)
    first, begun = rounds(count, sizes)[0]
    assert first == count
    assert rounds(count, sizes)[-1][1] == len(sizes)
    assert sum(sizes[:begun]) >= min(8, sum(sizes))


def test_distances_are_those_of_the_pipeline_s_own_latents(pipe):
    scheduler = pipe.scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config)
    run = Run(pipe, PROMPTS, (0, 1), 3.0, options=SMALL)

    def ends(grid):
        how = {"guidance_scale": 3.0, "output_type": "latent", **SMALL}
        return pipe(PROMPTS, timesteps=grid, generator=generators(2), **how).images.flatten(1)

    goal = ends(timesteps(scheduler, 12, allocation="trailing"))
    spread = (goal - goal.mean(0)).square().sum(1).mean().sqrt()
    expected = float((ends([999, 200]) - goal).norm(dim=1).mean() / spread)
    found = distances(run, {"one": [999, 200]}, fine_ends(run, 12))
    assert found == {"one": pytest.approx(expected, rel=1e-5)}
    assert pipe.scheduler is scheduler
    for steps in (-1, 0, 1001):
        with refuses("steps"):
            fine_ends(run, steps)
