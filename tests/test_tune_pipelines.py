"""`tune` on tiny pipelines of several kinds: what it hands out draws; what it cannot do is said."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.ace_step.pipeline_ace_step import AceStepPipeline
from diffusers.pipelines.ideogram4.pipeline_ideogram4 import _logit_normal_sigmas
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from diffusers.pipelines.stable_audio_3.pipeline_stable_audio_3 import logsnr_sigma_schedule

from asddim_lib import ASDDIMScheduler, tune
from asddim_lib.cache import unseal
from asddim_lib.configs import completed, is_flow
from asddim_lib.errors import WrongUse
from asddim_lib.grids.table import METHODS
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.place import with_grid
from asddim_lib.tuning.draw import Setup
from asddim_lib.tuning.goals import Latents
from asddim_lib.tuning.proposals import Plan, baselines, planned
from asddim_lib.tuning.report import without_us
from asddim_lib.tuning.result import TunedFor
from asddim_lib.tuning.verify import CANDIDATE
from experiments import grids
from experiments.setting import Cell, Setting
from tests import tiny
from tests.planted import SMALL, WORDS
from tests.refusals import refuses
from tests.support import GRID
from tests.test_goals import encoders as encoders
from tests.zoo.entry import entry
from tests.zoo.first import counted

#: Without a search, which knows nothing of pipelines.
PLAN = replace(SMALL, profile_steps=4, trials=0, reference_steps=4)


def tuned(name, goal, **more):
    made = entry(name)
    how = {"guidance_scale": made.guidance, "options": made.options, "plan": PLAN, **more}
    return made, tune(made.pipe, WORDS[:8], steps=2, goal=goal, **how)


@pytest.mark.parametrize("goal", ["latents", "embedding"])
@pytest.mark.parametrize("name", ["sd15", "sd3", "wan-2.1"])
def test_what_is_judged_is_returned_in_every_kind_of_pipeline(name, goal, encoders):
    sees = {} if goal == "latents" else {"encoder": encoders[0]}
    made, found = tuned(name, goal, **sees)
    flow = is_flow(made.pipe.scheduler)
    assert (found.setting.shift is not None) == flow
    assert (found.setting.encoder == "") == (goal == "latents")
    assert len(found.grids[CANDIDATE]) == 2
    if not found.changed:
        assert found.scheduler is made.pipe.scheduler


def test_grids_of_a_scheduler_that_ends_elsewhere_than_ours_have_as_many_steps():
    """diffusers' DPM-Solver++ for flow matching may end at the first σ of betas that it ignores."""
    made = entry("sana")
    own = made.pipe.scheduler
    made.pipe.scheduler = type(own).from_config(own.config, final_sigmas_type="sigma_min")
    try:
        setup = Setup(made.run(2), 4, Latents(), reference_steps=8)
        placed = setup.sampler(setup.levels.sigmas_at([999, 700, 400, 100])).scheduler
        assert (len(placed.config["grid"]), len(setup.reference.scheduler.config["grid"])) == (4, 8)
    finally:
        made.pipe.scheduler = own


def stepping(monkeypatch):
    """A tiny FLUX whose shift depends on the number of steps, as FLUX.2's does."""
    from diffusers.pipelines.flux import pipeline_flux

    retrieve = pipeline_flux.retrieve_timesteps

    def by_steps(scheduler, num_inference_steps=None, *args, mu=None, **kwargs):
        mu += 0.3 / num_inference_steps
        return retrieve(scheduler, num_inference_steps, *args, mu=mu, **kwargs)

    monkeypatch.setattr(pipeline_flux, "retrieve_timesteps", by_steps)
    return entry("flux-dev")


@pytest.mark.parametrize("by_steps", [False, True])
def test_a_shift_that_depends_on_size_or_steps_is_that_of_k_steps(by_steps, monkeypatch):
    made = stepping(monkeypatch) if by_steps else entry("flux-dev")
    run, steps = made.run(2), 4
    setup = Setup(run, steps, Latents())
    grid = setup.current_grid
    even = [(1 - k / steps) for k in range(steps)]
    assert setup.levels.to_timesteps(grid) == [round(1000 * mix) - 1 for mix in even]
    judged = Latents().look(replace(run, scheduler=setup.sampler(grid).scheduler), steps)["seen"]
    own = Latents().look(replace(run, scheduler=setup.current.scheduler), steps)["seen"]
    torch.testing.assert_close(judged, own, rtol=1e-4, atol=1e-4)
    how = {"guidance_scale": made.guidance, "options": made.options, "plan": PLAN}
    found = tune(made.pipe, WORDS[:8], steps=steps, goal="latents", **how)
    assert found.skipped["trailing"] == "it is the grid of the current sampler"
    mix = np.array([(t + 1) / 1000 for t in found.grids[CANDIDATE]])
    held = setup.sampler(found.grids[CANDIDATE]).scheduler
    shift = found.setting.shift
    np.testing.assert_allclose(held.config["grid"], shift * mix / (1 + (shift - 1) * mix), 1e-6)
    assert setup.mu == pytest.approx(np.log(shift))


def test_the_report_s_lines_draw_a_flow_model_s_grid_with_diffusers_alone():
    made, best = entry("sd3"), [940, 500, 80]
    setup, own = Setup(made.run(), 3, Latents()), made.pipe.scheduler
    ours = setup.sampler(best).scheduler
    code = without_us(made.pipe, ours, best, TunedFor.of(setup)).strip("`").removeprefix("python")
    assert "asddim_lib" not in code
    noise = "noise = torch.Generator().manual_seed(3)\ndrawn = "
    how = f"prompt, generator=noise, output_type='latent', guidance_scale={made.guidance}, **more, "
    latents = []
    for lines in ("pipe.scheduler = ours\npipe(prompt, num_inference_steps=3)", code):
        space = {"pipe": made.pipe, "ours": ours, "prompt": WORDS[0], "torch": torch}
        lines = lines.replace(f", guidance_scale={made.guidance:g}", "")
        lines = lines.replace("pipe(prompt, ", f"{noise}pipe({how}")
        exec(lines, {**space, "more": made.options}, kept := {})
        latents.append(kept["drawn"].images)
        made.pipe.scheduler = own
    torch.testing.assert_close(*latents, rtol=2e-3, atol=2e-3)


#: Levels that pipelines of diffusers hand over whatever their scheduler's grid, and those of two
#: that hand over even ones.
LEVELS_OF = {
    "Ideogram 4": lambda k: _logit_normal_sigmas(k, 0.5).tolist(),
    "Stable Audio 3": lambda k: logsnr_sigma_schedule(k, -6.0, 2.0),
    "ACE-Step": lambda k: AceStepPipeline._get_timestep_schedule(None, k, 3.0).tolist(),
    "Cosmos 2": lambda k: torch.linspace(0, 1, k, dtype=torch.float64),
    "FLUX": lambda k: np.linspace(1, 1 / k, k),
    "Mochi": lambda k: linear_quadratic_schedule(k, 0.025),
}


@pytest.mark.parametrize("name", LEVELS_OF)
def test_a_pipeline_that_sets_its_own_levels_is_refused_before_any_work(name, monkeypatch):
    from diffusers.pipelines.flux import pipeline_flux

    made = entry("flux-dev")
    retrieve = pipeline_flux.retrieve_timesteps

    def own(scheduler, num_inference_steps=None, device=None, sigmas=None, **kwargs):
        sigmas = LEVELS_OF[name](num_inference_steps or len(sigmas))
        return retrieve(scheduler, None, device, sigmas=sigmas, **kwargs)

    monkeypatch.setattr(pipeline_flux, "retrieve_timesteps", own)
    for judge in (lambda: Setup(made.run(2), 4, Latents()), lambda: made.run().ends(GRID)):
        with counted(made.pipe) as rows:
            if name in ("FLUX", "Mochi"):
                judge()
                continue
            with refuses("pipe"):
                judge()
        assert not rows


def test_a_subclass_with_another_step_is_another_method():
    class Halved(EulerDiscreteScheduler):
        def step(self, model_output, *args, **kwargs):
            return super().step(0.5 * model_output, *args, **kwargs)

    run = of_tiny(EulerDiscreteScheduler)
    ends = [run.prepared_with(kind).ends(GRID) for kind in (EulerDiscreteScheduler, Halved)]
    assert not torch.allclose(*ends, rtol=0.1)
    with refuses("scheduler"):
        with_grid(Halved(**LEVELS), GRID)


def test_a_modular_pipeline_has_latents_for_a_goal_and_says_so(encoders):
    with pytest.raises(WrongUse, match="pipe is"):
        tuned("modular-sdxl", "embedding", encoder=encoders[0])
    _, found = tuned("modular-sdxl", "latents")
    assert len(found.grids[CANDIDATE]) == 2
    plan = replace(PLAN, sweeps=0)
    _, found = tuned("modular-sdxl", "embedding", encoder=encoders[0], plan=plan)
    assert len(found.grids[CANDIDATE]) == 2


def test_guidance_that_cannot_be_replayed_is_refused_in_tune_s_own_words(monkeypatch):
    from asddim_lib.guidance import formula as guidance

    monkeypatch.setattr(guidance, "_known", lambda *_: iter(()))
    with refuses("pipe"):
        tuned("sd15", "latents")
    _, found = tuned("sd15", "latents", plan=replace(PLAN, sweeps=0))
    assert len(found.grids[CANDIDATE]) == 2


def test_a_pipeline_that_begins_later_is_named_with_what_to_do():
    pipe, options = tiny.img2img()
    pipe.set_progress_bar_config(disable=True)
    how = {"steps": 2, "guidance_scale": 2.0, "goal": "latents", "plan": PLAN}
    with refuses("pipe"):
        tune(pipe, WORDS[:8], options=options, **how)
    found = tune(pipe, WORDS[:8], options={**options, "strength": 1.0}, **how)
    assert len(found.grids[CANDIDATE]) == 2


@pytest.mark.parametrize("kind", [DDIMScheduler, FlowMatchEulerDiscreteScheduler])
def test_every_baseline_of_a_default_plan_is_drawn_or_skipped_with_a_reason(kind):
    setup = SimpleNamespace(config=completed(kind()), steps=8, order=1, current_grid=None)
    plan = planned(Plan(), setup.config)
    found, skipped = baselines(setup, plan, None)
    assert set(skipped) <= {name for name in plan.baselines if METHODS[name].needs == "path"}
    assert {*found, *skipped} == set(plan.baselines)
    setup.current_grid = found["trailing"]
    again, skipped = baselines(setup, plan, None)
    assert again == {name: grid for name, grid in found.items() if name != "trailing"}
    assert "trailing" in skipped


def of_tiny(kind, **how):
    """A run of a tiny Stable Diffusion with a scheduler of this class."""
    pipe, _ = tiny.sd()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = kind(**LEVELS, **how)
    return Run(pipe, ["a boot", "a bag"], None, 1.0)


LEVELS = {name: tiny.SD[name] for name in ("beta_start", "beta_end", "beta_schedule")}
KARRAS = {"use_karras_sigmas": True}
SAME = [(DPMSolverMultistepScheduler, {}), (DPMSolverMultistepScheduler, KARRAS)]
SAME += [(UniPCMultistepScheduler, {}), (ASDDIMScheduler, {"allocation": "logsnr"})]
SAME += [(DDIMScheduler, {"timestep_spacing": name}) for name in ("leading", "trailing")]
SAME += [(ASDDIMScheduler, {"grid": [900, 500]})]  # it interpolates its grid to K steps
OTHERS = [(PNDMScheduler, {"skip_prk_steps": True}), (EulerDiscreteScheduler, KARRAS)]
OTHERS += [(EulerAncestralDiscreteScheduler, {}), (HeunDiscreteScheduler, {})]
OTHERS += [(DDIMScheduler, {"timestep_spacing": "linspace"})]  # which steps by T // K


@pytest.mark.parametrize(("kind", "how"), SAME, ids=str)
def test_the_current_grid_draws_what_the_current_scheduler_does(kind, how):
    setup = Setup(of_tiny(kind, **how), 5, Latents())
    assert setup.current_grid is not None
    looks = [
        Latents().look(replace(setup.run, scheduler=one.scheduler), 5)["seen"]
        for one in (setup.current, setup.sampler(setup.current_grid))
    ]
    atol = 0.02 if how.get("use_karras_sigmas") else 1e-4  # whole timesteps
    torch.testing.assert_close(*looks, rtol=atol, atol=atol)


@pytest.mark.parametrize(("kind", "how"), OTHERS, ids=str)
def test_another_solver_s_levels_are_no_grid_of_ours(kind, how):
    assert Setup(of_tiny(kind, **how), 5, Latents()).current_grid is None


def test_what_tune_returns_is_a_method_of_the_experiment(tmp_path, monkeypatch):
    """It is found once, kept with its report, and read by the next process."""
    made = entry("sd15")
    small = partial(tune, plan=PLAN, goal="latents")
    monkeypatch.setattr(grids, "tune", small)
    setting = Setting(
        solvers=("dpm++",),
        methods=("tuned",),
        steps=(2,),
        guidance_scales=(made.guidance,),
        calibrate_on=1,
        tune_on=8,
        truncate=True,
    )
    (tmp_path / "images").mkdir()
    cell = Cell("tuned", 2, made.guidance, "dpm++")
    found, _ = grids.find_grids(made.pipe, setting, tmp_path, WORDS[:8])
    kept = unseal(grids.grid_file(cell, tmp_path))
    assert kept["timesteps"] == kept["tuned"]["grid"] == found[cell]
    assert kept["tuned"]["decision"]["comparisons"]
    assert kept["tuned"]["setting"]["solver"] == "DPMSolverGridScheduler"
    monkeypatch.delattr(grids, "tune")  # a second search would fail
    assert grids.find_grids(made.pipe, setting, tmp_path, WORDS[:8])[0] == found
    with refuses("method"):
        grids.find_grids(made.pipe, replace(setting, methods=("direct",)), tmp_path, WORDS[:8])
