"""A shift that depends on the picture's size, and on the number of steps (FLUX.2), is asked for."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from asddim_lib import ASFlowScheduler, calibrate
from asddim_lib.calibration import record
from asddim_lib.levels import Levels
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.place import with_grid
from tests.zoo.entry import PROMPTS, entry
from tests.zoo.first import counted

DYNAMIC = ["flux-2", "flux-dev", "modular-flux", "qwen-image"]
GRID = [999, 700, 400, 100]


def test_flux_2_s_mu_is_that_of_the_number_of_steps():
    one = entry("flux-2")
    for steps in (2, 4, 28, None):
        tokens = (one.options["height"] // 4) * (one.options["width"] // 4)
        mu = one.run(shift_steps=steps).mu
        assert mu == pytest.approx(compute_empirical_mu(tokens, steps or 50))


@pytest.mark.parametrize("name", DYNAMIC)
@pytest.mark.parametrize("steps", [3, 9])
def test_a_recorded_path_obeys_its_update_at_any_number_of_steps(name, steps):
    one = entry(name)
    for shift_steps in (None, 4):
        run = one.run(shift_steps=shift_steps)
        path = run.path(steps)
        y, sigmas = path.clean(run.schedule), path.sigmas(run.schedule)
        landed = y[:-1] + sigmas.diff().reshape(-1, 1, 1) * path.noises.double()
        assert ((landed - y[1:]).norm(dim=2) <= 1e-5 * y.norm(dim=2).max()).all()


@pytest.mark.parametrize("name", DYNAMIC)
def test_what_is_judged_is_what_is_returned(name):
    """Latents and levels, drawn by the run, and by the pipeline with the scheduler, bit for bit."""
    one = entry(name)
    run = one.run().prepared_with(ASFlowScheduler)
    judged = run.ends(GRID)
    made = with_grid(run.scheduler, GRID, run.mu_at(len(GRID)))
    mix = (np.array(GRID) + 1) / 1000
    levels = Levels.from_diffusers(one.pipe.scheduler, run.mu_at(len(GRID))).shifted(mix)
    np.testing.assert_allclose(made.config["grid"], levels, rtol=1e-6)
    own, one.pipe.scheduler = one.pipe.scheduler, made
    try:
        drawn = Run(one.pipe, PROMPTS[:1], None, one.guidance, options=one.options)
        latents = drawn.pictures(num_inference_steps=len(GRID)).latents
    finally:
        one.pipe.scheduler = own
    made.set_timesteps(len(GRID), mu=run.mu_at(len(GRID)))
    assert torch.equal(latents.flatten(1), judged)
    np.testing.assert_allclose(made.sigmas[:-1], levels, rtol=1e-6)


def test_a_profile_for_some_steps_serves_a_scheduler_at_those_steps():
    one = entry("flux-2")
    how = {"num_steps": 6, "estimator": "path", "shift_steps": 4, **one.options}
    profile = calibrate(one.pipe, PROMPTS, guidance_scale=one.guidance, **how)
    run = one.run(shift_steps=4)
    profile.check_schedule(run.schedule)
    config = {**one.pipe.scheduler.config, "allocation": "equidistributed"}
    scheduler = ASFlowScheduler.from_config(config, profile=profile.to_dict())
    assert one.run(scheduler=scheduler).pictures(num_inference_steps=4).finite.all()
    path = record(one.pipe, PROMPTS, guidance_scale=one.guidance, num_steps=6, **one.options)
    path.check_schedule(one.run().schedule)


def test_asking_for_the_shift_calls_no_network():
    for name in DYNAMIC:
        with counted(entry(name).pipe) as rows:
            assert entry(name).run(shift_steps=7).mu is not None
        assert not rows
