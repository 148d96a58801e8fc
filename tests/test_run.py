"""A run records what the sampler followed, or refuses by name; and solvers share its end."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    UniPCMultistepScheduler,
)

from asddim_lib import ASDDIMScheduler, UniPCGridScheduler, calibrate, timesteps
from asddim_lib.calibration import record
from asddim_lib.errors import WrongUse
from asddim_lib.evidence.path import local_errors
from asddim_lib.levels import Levels
from asddim_lib.metrics.distance import relative_distance
from asddim_lib.pipeline import recording
from asddim_lib.pipeline.run import Run
from asddim_lib.sensitivity import PRODUCTS
from asddim_lib.tuning.draw import Setup
from asddim_lib.tuning.goals import Latents
from asddim_lib.tuning.proposals import Plan, measured
from asddim_lib.tuning.tune import tune
from tests import tiny
from tests.refusals import refuses
from tests.tiny import PICTURE, PLAIN, controlnet, img2img, inpaint, parts, sd, sdxl, unet

PROMPTS = ["a red boot", "a blue bag"]
SOLVERS = [ASDDIMScheduler, DPMSolverMultistepScheduler, UniPCGridScheduler, EulerDiscreteScheduler]


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def obeys_its_update(path, schedule):
    """Whether each point is one DDIM step from the one before, along the ε on record."""
    seen, sigma = path.clean(schedule), path.sigmas(schedule)
    landed = seen[:-1] + sigma.diff().reshape(-1, 1, 1) * path.noises.double()
    return (landed - seen[1:]).norm(dim=2) <= 1e-4 * seen[1:].norm(dim=2) + 1e-5


# the end that all share


GRID = list(range(999, -1, -1))


@pytest.fixture(scope="module")
def fine():
    """For each end a run over 1,000 steps, and the latents that DDIM gives on that grid."""
    pipe = quiet(tiny.easy())
    how = {"guidance_scale": 3.0, "options": {"height": 16, "width": 16}}
    runs = {end: Run(pipe, PROMPTS, end=end, **how) for end in ("zero", "sigma_min")}
    return {end: (run, run.prepared_with(ASDDIMScheduler).ends(GRID)) for end, run in runs.items()}


def test_the_ends_are_told_apart(fine):
    """Before, second-order solvers ended at σ = 0 and DDIM at σ = 0.029: 0.034 apart."""
    (_, zero), (_, least) = fine.values()
    assert float(relative_distance(zero, least).min()) > 0.03


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("kind", SOLVERS, ids=lambda kind: kind.__name__)
def test_a_fine_solver_ends_where_the_reference_ends(fine, kind, end):
    """On a 1,000-step grid every solver comes within 0.005 of DDIM's end."""
    run, reference = fine[end]
    assert float(relative_distance(run.prepared_with(kind).ends(GRID), reference).max()) < 0.005


def test_a_run_ends_where_its_config_says_unless_it_is_told():
    pipe = quiet(sd()[0])
    run = Run(pipe, PROMPTS, guidance_scale=1.0, options={"height": 16, "width": 16})
    least = float(Levels.from_diffusers(pipe.scheduler).alphas_cumprod[0])
    assert run.path(20).alpha_end == pytest.approx(least)
    for end, final in (("zero", 1.0), ("sigma_min", least), (None, least)):
        scheduler = Run(pipe, PROMPTS, end=end).prepared_with(ASDDIMScheduler).scheduler
        assert float(scheduler.final_alpha_cumprod) == pytest.approx(final)
    assert type(pipe.scheduler) is DDIMScheduler, "the pipeline comes back as it was"


# whatever scheduler the pipeline has


FRESH = [
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
]


@pytest.fixture(scope="module")
def profiled():
    """A pipeline, how it is measured, and its profile with its own scheduler."""
    how = {"guidance_scale": 3.0, "num_steps": 6, "adjoint_probes": 1, "height": 16, "width": 16}
    pipe = quiet(sd()[0])
    return pipe, how, calibrate(pipe, PROMPTS, **how)


@pytest.mark.parametrize("kind", FRESH, ids=lambda kind: kind.__name__)
def test_a_profile_does_not_depend_on_the_scheduler_s_class(profiled, kind):
    pipe, how, own = profiled
    levels = {k: pipe.scheduler.config[k] for k in ("beta_start", "beta_end", "beta_schedule")}
    pipe.scheduler = kind(**levels)  # fresh: nothing of DDIM's config goes along
    fresh = calibrate(pipe, PROMPTS, **how)
    np.testing.assert_allclose(fresh.g, own.g, rtol=1e-5)
    assert (fresh.timesteps, fresh.schedule) == (own.timesteps, own.schedule)
    for name in ("local", "adjoint"):
        for order, counts in own.local_error[name].items():
            np.testing.assert_allclose(fresh.local_error[name][order], counts, rtol=1e-4)


def test_latents_are_not_clipped_where_the_source_does_not_clip():
    pipe = quiet(sd()[0])
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        {k: v for k, v in pipe.scheduler.config.items() if k.startswith("beta")}
    )
    path = record(pipe, PROMPTS, guidance_scale=3.0, num_steps=12, height=16, width=16)
    assert path.end.abs().max() > 2


# what the sampler followed


def pix2pix():
    pipe = StableDiffusionInstructPix2PixPipeline(**parts(unet=unet(in_channels=8)), **PLAIN)
    return pipe, {"image": PICTURE, "image_guidance_scale": 1.5}


def pag():
    pipe = StableDiffusionPAGPipeline(**parts(), **PLAIN, pag_applied_layers="mid")
    return pipe, {"pag_scale": 2.0}


def negative():
    return sd()[0], {"negative_prompt": "blurry"}


def rescaled():
    return sd()[0], {"guidance_rescale": 0.7}


def inpaint_4():
    pipe = StableDiffusionInpaintPipeline(**parts(), **PLAIN)
    mask = (PICTURE[:, :1] > 0.5).float()
    return pipe, {"image": PICTURE, "mask_image": mask, "height": 64, "width": 64}


KINDS = [sd, sdxl, negative, rescaled, pag, pix2pix, img2img, inpaint, controlnet]


@pytest.mark.parametrize("build", KINDS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_every_recorded_row_obeys_its_own_update(build, prediction_type):
    pipe, how = build()
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type=prediction_type
    )
    calls, network = [], quiet(pipe).unet
    count = network.register_forward_hook(lambda *_: calls.append(1))
    path = record(pipe, PROMPTS[:1], guidance_scale=5.0, num_steps=6, **how)
    count.remove()
    schedule = Levels.from_diffusers(pipe.scheduler)
    assert obeys_its_update(path, schedule).all()
    assert len(calls) == len(path.timesteps), "recording adds no evaluation"
    assert path.timesteps[-1] == 0
    assert path.timesteps[0] == (599 if build is img2img else 999) or build is img2img
    profile = calibrate(pipe, PROMPTS[:1], guidance_scale=5.0, num_steps=6, estimator="path", **how)
    assert len(profile.g) == len(profile.timesteps)


def test_a_way_of_guiding_that_is_not_known_is_refused_by_name():
    pipe, how = pag()
    how |= {"pag_adaptive_scale": 0.001}  # a scale that falls from step to step
    for measure in ({"estimator": "vjp"}, {"estimator": "path", "adjoint_probes": 1}):
        line = "StableDiffusionPAGPipeline, whose way of guiding is not known.*estimator='path'"
        with pytest.raises(WrongUse, match=line):
            calibrate(quiet(pipe), PROMPTS[:1], num_steps=3, **measure, **how)


@pytest.mark.parametrize("build", [sd, negative, rescaled, pix2pix, inpaint, img2img])
def test_a_replay_is_the_function_that_the_sampler_used(build):
    """At the recorded sample it gives the recorded ε; elsewhere its derivative is the network's."""
    pipe, how = build()
    apart, slopes, visits = [], [], []

    def look(eps, x, t):
        generator = torch.Generator().manual_seed(0)
        v, w = torch.randn(2, *x.shape, generator=generator)
        with torch.no_grad():
            apart.append(float((eps(x, t) - visits[-1].epsilon).abs().max()))
            numeric = (w * (eps(x + 1e-2 * v, t) - eps(x - 1e-2 * v, t)) / 2e-2).sum()
        product = PRODUCTS["vjp"](eps, x, t, w)
        slopes.append(float((numeric - (product * v).sum()).abs() / (product.norm() * v.norm())))

    run, kept = Run(quiet(pipe), PROMPTS[:1], guidance_scale=5.0, options=how), recording.Visit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "Visit", lambda *a: visits.append(kept(*a)) or visits[-1])
        run.path(3, also=look)
    assert max(apart) < 1e-4
    assert max(slopes) < 1e-3


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"eta": 0.5}, "eta is 0.5; a path is recorded without noise"),
        ({"num_images_per_prompt": 2}, "num_images_per_prompt is 2; give a prompt several times"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"generator": 3}, "generator is 3; give seeds"),
        ({"num_steps": 1}, "num_steps is 1"),
        ({"estimator": "magic"}, "estimator is magic"),
        ({"norm": "nuclear"}, "norm is nuclear"),
    ],
)
def test_options_that_a_measurement_cannot_keep_are_refused(how, message):
    with pytest.raises(WrongUse, match=message):
        calibrate(quiet(sd()[0]), PROMPTS, **{"num_steps": 3, "estimator": "path", **how})


def test_a_guidance_scale_that_is_given_twice_is_refused():
    pipe, options = quiet(sd()[0]), {"guidance_scale": 9.0}
    for act in (partial(Run, seeds=None), partial(tune, steps=4)):
        with refuses("guidance_scale"):
            act(pipe, PROMPTS, guidance_scale=1.0, options=options)
    run = Run(pipe, PROMPTS, None, options={**options, "height": 16, "width": 16})
    plan = Plan(profile_prompts=1, profile_steps=3, sweeps=0)
    assert measured(Setup(run, 4, Latents()), run, plan).guidance_scale == 9.0


def test_a_pipeline_that_moves_its_samples_is_refused():
    pipe, how = inpaint_4()
    with refuses("samples"):
        record(quiet(pipe), PROMPTS[:1], num_steps=4, **how)


def test_guidance_zero_is_no_guidance():
    found = [
        calibrate(quiet(sd()[0]), PROMPTS, guidance_scale=scale, num_steps=3, height=32, width=32)
        for scale in (0.0, 1.0)
    ]
    np.testing.assert_allclose(found[0].g, found[1].g)
    assert found[0].evaluations == found[1].evaluations


def test_a_path_that_begins_lower_makes_grids_that_begin_lower():
    pipe, how = img2img()
    profile = calibrate(quiet(pipe), PROMPTS[:1], num_steps=10, estimator="path", **how)
    first = profile.local_error["timesteps"][0]
    assert first < 999
    evidence = {"allocation": "equidistributed", "profile": profile}
    with refuses("profile"):
        timesteps(pipe.scheduler, 5, **evidence)
    grid = timesteps(pipe.scheduler, 5, **evidence, begin=first)
    assert grid[0] == first
    with refuses("profile"):
        timesteps(pipe.scheduler, 5, profile=profile)


def test_latents_that_are_not_finite_are_named():
    pipe = quiet(sd()[0])
    forward = pipe.unet.forward
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)

    def spoil(sample, timestep, *rest, **more):
        out = forward(sample, timestep, *rest, **more)
        return (out[0] * torch.nan,) if int(timestep) == 501 else out

    pipe.unet.forward = spoil
    setup = Setup(Run(pipe, PROMPTS, None, 1.0), 2, Latents(), reference_steps=4)
    with refuses("loss"):
        setup.trials([0, 1]).losses(setup.sampler([999, 501]))


def test_local_errors_of_a_recorded_path_are_the_solver_s_own():
    """Of order 1, they are the difference of a whole step and two halves, to leading order."""
    pipe = quiet(sd()[0])
    path = record(pipe, PROMPTS, guidance_scale=1.0, num_steps=100, height=16, width=16)
    schedule = Levels.from_diffusers(pipe.scheduler)
    errors = local_errors(path, schedule).norm(dim=2)
    assert errors.shape == (len(path) - 1, 2)
    assert errors.isfinite().all()
