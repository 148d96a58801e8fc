"""Levels that a pipeline brings by itself, which are not evenly spaced, and held grids."""

import numpy as np
import pytest
import torch
from diffusers import LTXConditionPipeline
from diffusers.pipelines.ltx import pipeline_ltx_condition
from diffusers.pipelines.mochi import pipeline_mochi

from asddim_lib import ASFlowScheduler
from asddim_lib.grids.rules import linear_quadratic
from asddim_lib.schedulers.mixin import passed_by_pipeline
from tests.zoo.first import built

SHARES = [1.0, 0.71, 0.33, 0.05]


@pytest.mark.parametrize("steps", range(1, 40))
def test_linear_quadratic_levels_are_the_pipelines(steps):
    found = linear_quadratic(steps)
    np.testing.assert_allclose(
        found, pipeline_ltx_condition.linear_quadratic_schedule(steps), atol=1e-6
    )
    if steps > 1:
        theirs = pipeline_mochi.linear_quadratic_schedule(steps, 0.025)
        np.testing.assert_allclose(found, theirs, atol=1e-12)
        assert passed_by_pipeline(np.array(theirs), None, 1000)


def conditioned(scheduler, steps=4):
    """LTX with conditions, which gives linear-quadratic timesteps of its own: its latents."""
    pipe, options = built("ltx")
    pipe = LTXConditionPipeline(**{**pipe.components, "scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    how = {**options, "generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    return pipe(prompt="a red boot", num_inference_steps=steps, guidance_scale=1.0, **how).frames


def test_a_held_grid_arrives_where_a_pipeline_brings_its_own():
    holding, spread = ASFlowScheduler(grid=SHARES), ASFlowScheduler(allocation="logsnr")
    plain = conditioned(ASFlowScheduler())
    for scheduler in (holding, spread):
        assert not torch.equal(plain, conditioned(scheduler))
        found = scheduler.sigmas
        scheduler.set_timesteps(4)
        assert torch.equal(scheduler.sigmas, found)
    np.testing.assert_allclose(holding.sigmas[:-1], SHARES, atol=1e-6)
    conditioned(holding, steps=5)
    assert len(holding.timesteps) == 5
