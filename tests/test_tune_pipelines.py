"""`tune` on tiny pipelines of several kinds: what it hands out draws; what it cannot do is said."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from asddim_lib import ASDDIMScheduler, ASFlowScheduler, timesteps, tune
from asddim_lib.cache import unseal
from asddim_lib.levels import is_flow
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.family import OWN, needing_a_path, own_grid, peer_names, peers
from experiments import grids
from experiments.setting import Cell, Setting
from tests import tiny
from tests.planted import SMALL, WORDS
from tests.test_goals import encoders as encoders
from tests.zoo.entry import entry

#: Without a search, which knows nothing of pipelines.
PLAN = replace(SMALL, profile_steps=4, trials=0, reference_steps=4)


def tuned(name, goal, **more):
    made = entry(name)
    how = {"guidance_scale": made.guidance, "options": made.options, "plan": PLAN, **more}
    return made, tune(made.pipe, WORDS[:8], steps=2, goal=goal, **how)


@pytest.mark.parametrize("goal", ["latents", "embedding"])
@pytest.mark.parametrize("name", ["sd15", "sd3", "wan-2.1"])
def test_a_tuned_scheduler_draws_in_its_pipeline(name, goal, encoders):
    sees = {} if goal == "latents" else {"encoder": encoders[0]}
    made, found = tuned(name, goal, **sees)
    flow = is_flow(made.pipe.scheduler)
    assert found.setting["flow"] == flow
    assert ("shift" in found.setting) == flow
    assert (found.setting["encoder"] == "") == (goal == "latents")
    run = made.run(1, seeds=(3,))
    expected = replace(run, scheduler=run.prepared_with(type(found.scheduler)).scheduler)
    expected = expected.ends(found.grid)
    held = Run(made.pipe, run.prompts, (3,), run.guidance_scale, options=made.options)
    own, made.pipe.scheduler = made.pipe.scheduler, found.scheduler
    how = {"num_inference_steps": 2, "output_type": "latent"}
    try:
        drawn = held.call(slice(0, 1), found.scheduler, held.generators(slice(0, 1)), **how)
    finally:
        made.pipe.scheduler = own
    torch.testing.assert_close(drawn.flatten(1).float(), expected, rtol=1e-3, atol=1e-3)


def test_a_shift_that_depends_on_the_size_is_held_with_the_grid(encoders):
    made, found = tuned("flux-dev", "latents")
    shift = found.setting["shift"]
    mix = [(t + 1) / 1000 for t in found.grid]
    assert found.sigmas == mix
    meant = [shift * s / (1 + (shift - 1) * s) for s in mix]
    assert found.scheduler_config["grid"] == pytest.approx(meant, rel=1e-6)
    assert shift == pytest.approx(torch.tensor(made.run().mu).exp().item(), rel=1e-6)


def test_a_modular_pipeline_has_latents_for_a_goal_and_says_so(encoders):
    words = r"^pipe is .*; its blocks have no derivative for an encoder: use goal latents, the ord"
    with pytest.raises(ValueError, match=words):
        tuned("modular-sdxl", "embedding", encoder=encoders[0])
    _, found = tuned("modular-sdxl", "latents")
    assert len(found.grid) == 2
    plan = replace(PLAN, sweeps=0)
    _, found = tuned("modular-sdxl", "embedding", encoder=encoders[0], plan=plan)
    assert len(found.grid) == 2


def test_a_prompt_that_clip_would_have_to_cut_is_refused_before_anything_is_drawn():
    """T5 reads more of it than a CLIP that scores the pictures."""
    made, drawn = entry("sd3"), []
    words = [f"{word} {'boot ' * 40}" for word in WORDS[:8]]
    how = {"guidance_scale": made.guidance, "options": made.options, "plan": PLAN}
    hook = made.pipe.transformer.register_forward_hook(lambda *_: drawn.append(1))
    try:
        with pytest.raises(ValueError, match=r"^prompt is .* tokens; shorten it to"):
            tune(made.pipe, words, steps=2, goal="score", encoder="bundled", **how)
    finally:
        hook.remove()
    assert not drawn


def test_guidance_that_cannot_be_replayed_is_refused_in_tune_s_own_words(monkeypatch):
    from asddim_lib.pipeline import guiding as guidance

    monkeypatch.setattr(guidance, "_known", lambda *_: iter(()))
    words = (
        r"^pipe is .*, whose way of guiding is not known here; measure without derivatives: plan"
    )
    with pytest.raises(ValueError, match=words):
        tuned("sd15", "latents")
    _, found = tuned("sd15", "latents", plan=replace(PLAN, sweeps=0))
    assert len(found.grid) == 2


def test_a_pipeline_that_begins_later_is_named_with_what_to_do():
    pipe, options = tiny.img2img()
    pipe.set_progress_bar_config(disable=True)
    how = {"steps": 2, "guidance_scale": 2.0, "goal": "latents", "plan": PLAN}
    words = "^pipe is .*, whose samples begin at timestep 499; give strength=1, or"
    with pytest.raises(ValueError, match=words):
        tune(pipe, WORDS[:8], options=options, **how)
    assert len(tune(pipe, WORDS[:8], options={**options, "strength": 1.0}, **how).grid) == 2


@pytest.mark.parametrize("kind", [ASDDIMScheduler, ASFlowScheduler])
def test_every_peer_of_a_default_plan_is_known_and_laid(kind):
    config = kind().config
    names = peer_names(config)
    found, left_out = peers(config, 8, names, None, [990, 800, 600, 500, 300, 200, 100, 3])
    assert OWN in found
    assert set(left_out) <= {*needing_a_path(names), OWN}
    assert {*found, *left_out} == {*names, OWN}


KARRAS = {"use_karras_sigmas": True}
SOLVERS = [(DPMSolverMultistepScheduler, {}), (DPMSolverMultistepScheduler, KARRAS)]
SOLVERS += [(UniPCMultistepScheduler, {}), (EulerDiscreteScheduler, KARRAS)]
SOLVERS += [(ASDDIMScheduler, {"allocation": "logsnr"})]


def of_tiny(kind, **how):
    """A run of a tiny Stable Diffusion with a scheduler of this class."""
    pipe, _ = tiny.sd()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = kind(**tiny.SD, **how) if kind is DDIMScheduler else kind(**LEVELS, **how)
    return Run(pipe, ["a boot"], None, 1.0)


LEVELS = {name: tiny.SD[name] for name in ("beta_start", "beta_end", "beta_schedule")}


@pytest.mark.parametrize(("kind", "how"), SOLVERS, ids=str)
def test_a_peer_is_what_the_pipeline_s_own_scheduler_lays(kind, how):
    run = of_tiny(kind, **how)
    grid, own = own_grid(run, 5), run.pipe.scheduler
    run.call(slice(0, 1), own, run.generators(slice(0, 1)), num_inference_steps=5)
    laid = getattr(own, "numbers", own.timesteps.round().int().tolist())
    assert max(abs(a - b) for a, b in zip(grid, laid, strict=True)) <= 1
    found, _ = peers(run.config, 5, ("trailing",), None, grid)
    assert found[OWN] == grid


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_of_ddim_it_is_its_own_spacing(spacing):
    run = of_tiny(DDIMScheduler, timestep_spacing=spacing)
    for steps in (1, 5, 61):  # 61 trailing steps of diffusers end in −1
        assert own_grid(run, steps) == timesteps(run.config, steps)


@pytest.mark.parametrize("name", ["sd3", "flux-dev", "wan-2.1", "z-image"])
def test_of_a_flow_model_it_is_what_the_pipeline_asks_for(name):
    run = entry(name).run(1)
    grid, own = own_grid(run, 4), run.pipe.scheduler
    run.call(slice(0, 1), own, run.generators(slice(0, 1)), num_inference_steps=4)
    levels = run.schedule.finite_sigmas[grid]
    np.testing.assert_allclose(levels / (1 + levels), own.sigmas[:-1], atol=2e-3)


@pytest.mark.parametrize(
    ("kind", "how", "reason"),
    [
        (PNDMScheduler, {"skip_prk_steps": True}, "its scheduler lays .*, which are not 5 times"),
        (ASDDIMScheduler, {"grid": [900, 500]}, "num_inference_steps is 5; .* holds a grid of 2"),
    ],
)
def test_where_it_lays_no_such_grid_the_peer_is_left_out_with_the_reason(kind, how, reason):
    run = of_tiny(kind, **how)
    found, left_out = peers(run.config, 5, ("trailing",), None, own_grid(run, 5))
    assert set(found) == {"trailing"}
    assert re.match(reason, left_out[OWN])


def test_what_tune_hands_out_is_a_method_of_the_experiment(tmp_path, monkeypatch):
    """It is found once, kept with its report, and read by the next process."""
    made = entry("sd15")
    small = partial(tune, plan=PLAN, goal="latents")
    monkeypatch.setattr(grids, "tune", small)
    setting = Setting(
        methods=("tuned",),
        steps=(2,),
        guidance_scales=(made.guidance,),
        calibrate_on=1,
        tune_on=8,
        truncate=True,
    )
    (tmp_path / "images").mkdir()
    cell = Cell("tuned", 2, made.guidance)
    found, _ = grids.find_grids(made.pipe, setting, tmp_path, WORDS[:8])
    kept = unseal(grids.grid_file(cell, tmp_path))
    assert kept["timesteps"] == kept["tuned"]["grid"] == found[cell]
    assert kept["tuned"]["acceptance"]["comparisons"]
    monkeypatch.delattr(grids, "tune")  # a second search would fail
    assert grids.find_grids(made.pipe, setting, tmp_path, WORDS[:8])[0] == found
