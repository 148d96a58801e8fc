"""Grids searched on the bundled pipeline: on its recorded path, and by trying."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from asddim_lib import ASDDIMScheduler, timesteps
from asddim_lib.calibration import record
from asddim_lib.levels import noise_schedule
from asddim_lib.paper import ddim_step
from asddim_lib.schedulers.place import prepared
from asddim_lib.tuning.search import choose, direct_search, distances, solution

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
    with pytest.raises(ValueError, match="num_inference_steps is 14"):
        timesteps(pipe.scheduler, 14, allocation="gits", path=path)


STARTS = [[999, 200], [999, 50]]
#: Evaluations of the reference and both starts: two per step and prompt.
FIXED = (12 + 2 * 2) * 2 * 2


@pytest.fixture(params=[ASDDIMScheduler, DPMSolverMultistepScheduler])
def solver(request, pipe):
    """The pipeline's scheduler, of each class in turn."""
    pipe.scheduler = request.param.from_config(pipe.scheduler.config)
    return pipe.scheduler


@pytest.fixture
def how(pipe):
    return {"guidance_scale": 3.0, "reference_steps": 12, "options": SMALL}


@pytest.fixture
def distance(pipe, solver):
    """A grid's mean distance from the fine solution, from calls of the pipeline itself."""

    def ends(kind, grid):
        pipe.scheduler = prepared(kind, solver)
        how = {"guidance_scale": 3.0, "output_type": "latent", **SMALL}
        latents = pipe(PROMPTS, timesteps=grid, generator=generators(2), **how).images
        pipe.scheduler = solver
        return latents.flatten(1)

    goal = ends(ASDDIMScheduler, timesteps(solver, 12, allocation="trailing"))
    spread = (goal - goal.mean(0)).square().sum(1).mean().sqrt()
    return lambda grid: float((ends(type(solver), grid) - goal).norm(dim=1).mean() / spread)


def test_direct_search_improves_its_start(pipe, solver, how, distance):
    best = direct_search(pipe, PROMPTS, STARTS, **how)
    assert pipe.scheduler is solver
    assert best.distance == pytest.approx(distance(best.timesteps), rel=1e-5)
    assert best.distance < min(distance(start) for start in STARTS)
    assert best.evaluations > FIXED
    within = direct_search(pipe, PROMPTS, STARTS, budget=10, **how)
    # Ten steps hold five trials of two steps.
    assert within.evaluations == FIXED + 5 * 2 * 2 * 2
    assert best.distance <= within.distance <= min(distance(start) for start in STARTS)


def test_choose_takes_the_nearest(pipe, solver, how, distance):
    grids = dict(zip("ab", STARTS, strict=True))
    distances = {name: distance(grid) for name, grid in grids.items()}
    nearest = min(distances, key=distances.__getitem__)
    name, best = choose(pipe, PROMPTS, grids, **how)
    assert name == nearest
    assert best == (grids[nearest], pytest.approx(distances[nearest], rel=1e-5), FIXED)


def test_wrong_use_of_a_search_is_named(pipe):
    with pytest.raises(ValueError, match=r"pipe\.scheduler is DDIMScheduler; .* ASDDIMScheduler"):
        direct_search(pipe, PROMPTS, [[999, 500]])
    pipe.scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="strictly decreasing"):
        direct_search(pipe, PROMPTS, [[5, 600]], reference_steps=1, options=SMALL)
    with pytest.raises(ValueError, match="prompts is 1 prompt; give at least two"):
        direct_search(pipe, PROMPTS[:1], [[999, 500]])


@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_a_fine_solution_of_no_such_number_of_steps_is_refused(pipe, steps):
    pipe.scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config)
    for search, grids in (direct_search, [[[999]]]), (distances, [{"a": [999]}]), (solution, []):
        with pytest.raises(ValueError, match=f"^reference_steps is {steps}; give 1 to 1000$"):
            search(pipe, PROMPTS, *grids, reference_steps=steps)
