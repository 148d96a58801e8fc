"""A scheduler that holds its grid: its levels, its pictures after saving, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asddim_lib import (
    ASDDIMInverseScheduler,
    ASDDIMScheduler,
    ASFlowScheduler,
    DPMSolverGridScheduler,
    UniPCGridScheduler,
    sigmas,
    timesteps,
)
from asddim_lib.levels import Levels
from asddim_lib.schedulers.place import drawing, hold, with_grid
from tests.tiny import SD, img2img, sd, sd3

#: Each scheduler, and the one of ours that holds its grid.
DIFFUSION = {
    ASDDIMScheduler: ASDDIMScheduler,
    DDIMScheduler: ASDDIMScheduler,
    EulerDiscreteScheduler: ASDDIMScheduler,
    UniPCGridScheduler: UniPCGridScheduler,
    UniPCMultistepScheduler: UniPCGridScheduler,
    DPMSolverGridScheduler: DPMSolverGridScheduler,
    DPMSolverMultistepScheduler: DPMSolverGridScheduler,
}
FLOW = {
    ASFlowScheduler: ASFlowScheduler,
    FlowMatchEulerDiscreteScheduler: ASFlowScheduler,
    UniPCGridScheduler: UniPCGridScheduler,
    UniPCMultistepScheduler: UniPCGridScheduler,
    DPMSolverGridScheduler: DPMSolverGridScheduler,
    DPMSolverMultistepScheduler: DPMSolverGridScheduler,
}
#: Those of diffusers that take no grid of that kind: theirs is our solver's of the same name.
GRIDLESS = {DDIMScheduler, UniPCMultistepScheduler}, {DPMSolverMultistepScheduler}
FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
LEVELS = Levels.from_diffusers(SD)
by_name = {"ids": lambda kind: kind.__name__}


@st.composite
def grids(draw, kind=int):
    """Whole timesteps, or a flow model's sigmas in (0, 1] with three decimals."""
    found = draw(st.lists(st.integers(0, 999), min_size=1, max_size=12, unique=True))
    found = sorted(found, reverse=True)
    return found if kind is int else [(number + 1) / 1000 for number in found]


def ratios(scheduler):
    """Noise over signal where each step of a diffusion model begins, and where the last one ends.

    Read from what the scheduler steps by: DDIM's ᾱ, or the solvers' sigmas.
    """
    if hasattr(scheduler, "sigmas"):
        return scheduler.sigmas.double().numpy()
    bars = scheduler.alphas_cumprod[scheduler.timesteps].tolist()
    bars = np.array([*bars, float(scheduler.final_alpha_cumprod)])
    return ((1 - bars) / bars) ** 0.5


def laid(scheduler, steps, **how):
    scheduler.set_timesteps(steps, **how)
    return scheduler


# the same levels as those that `hold` lays


@pytest.mark.parametrize("kind", DIFFUSION, **by_name)
@settings(max_examples=5)
@given(
    grid=grids(), flag=st.sampled_from([None, *FLAGS]), end=st.sampled_from(["zero", "sigma_min"])
)
def test_a_diffusion_model_s_grid_is_held_as_it_would_be_laid(kind, grid, flag, end):
    takes = DIFFUSION[kind] if kind in GRIDLESS[0] else kind
    meant = laid(hold(drawing(takes, SD, end), grid), len(grid))
    flags = {flag: True} if flag and not issubclass(kind, DDIMScheduler) else {}
    source = kind.from_config({**drawing(kind, SD, end).config, **flags})
    ours = laid(with_grid(source, grid), len(grid))
    assert type(ours) is DIFFUSION[kind]
    np.testing.assert_allclose(ratios(ours), ratios(meant), rtol=2e-4)
    np.testing.assert_allclose(ratios(ours)[:-1], LEVELS.finite_sigmas[grid], rtol=2e-4)
    assert ours.timesteps.tolist() == grid
    assert ours.num_inference_steps == len(grid)


@pytest.mark.parametrize("kind", FLOW, **by_name)
@settings(max_examples=5)
@given(
    grid=grids() | grids(float),
    shift=st.floats(0.1, 12),
    mu=st.none() | st.floats(0.1, 2),
    flag=st.sampled_from([None, *FLAGS]),
)
@example(grid=[1.0], shift=3.0, mu=None, flag=None)  # what a pipeline passes for one step
@example(grid=[999], shift=3.0, mu=0.5, flag=None)
@example(grid=[998], shift=5.0, mu=None, flag=None)  # more noise than pure noise counts as
def test_a_flow_model_s_grid_is_held_as_it_would_be_laid(kind, grid, shift, mu, flag):
    dynamic = {"shift": shift, "use_dynamic_shifting": mu is not None}
    config = FlowMatchEulerDiscreteScheduler(**dynamic).config
    takes = FLOW[kind] if kind in GRIDLESS[1] else kind
    meant = laid(hold(drawing(takes, config), grid), len(grid), mu=mu)
    source = kind.from_config({**drawing(kind, config).config, **({flag: True} if flag else {})})
    ours = laid(with_grid(source, grid, mu), len(grid), mu=mu)
    assert type(ours) is FLOW[kind]
    exact = np.array(grid)  # sigmas have the shift in them, timesteps have not
    if isinstance(grid[0], int):
        mix, factor = (exact + 1) / 1000, shift if mu is None else math.exp(mu)
        exact = factor * mix / (1 + (factor - 1) * mix)
    np.testing.assert_allclose(ours.sigmas[:-1], exact, rtol=2e-6)
    np.testing.assert_allclose(ours.sigmas, meant.sigmas, rtol=2e-6)
    if kind is UniPCMultistepScheduler:  # diffusers' cuts them to whole numbers below T
        cut = (ours.timesteps - meant.timesteps).numpy()
        assert ((cut >= -1e-3) & (cut <= 1 + 1e-3)).all()
    else:
        np.testing.assert_allclose(ours.timesteps, meant.timesteps, rtol=2e-6)
    if mu is not None:  # a shift that comes later moves the held grid no more
        again = laid(ours, len(grid), mu=mu + 0.5).sigmas
        np.testing.assert_allclose(again, meant.sigmas, rtol=2e-6)


def test_what_else_placed_the_steps_is_left_out():
    ddim = ASDDIMScheduler(**SD, allocation="logsnr")
    ours, theirs = laid(with_grid(ddim, [900, 400, 20]), 3), hold(ddim, [900, 400, 20])
    assert torch.equal(ours.timesteps, laid(theirs, 3).timesteps)
    assert (ours.numbers, ours.config["allocation"]) == ([900, 400, 20], "uniform")
    flow = ASFlowScheduler(shift=3.0, boundary=0.875)
    assert laid(with_grid(flow, [1.0, 0.6]), 2).sigmas.tolist() == pytest.approx([1, 0.6, 0])
    held = with_grid(with_grid(flow, [1.0, 0.6]), [0.9, 0.5, 0.1])  # another in its place
    assert len(laid(held, 3).timesteps) == 3
    assert drawing(ASFlowScheduler, held).config["grid"] is None


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, UniPCGridScheduler])
def test_what_an_earlier_class_left_in_the_config_counts_as_in_the_scheduler(kind):
    """DDIM clips and ends at timestep 0; what was made of its config does neither."""
    source = kind.from_config(DDIMScheduler(**{**SD, "clip_sample": True}).config)
    ours = laid(with_grid(source, [900, 400, 20]), 3)
    assert not ours.config.get("clip_sample")
    assert ratios(ours)[-1] == 0


@pytest.mark.parametrize("kind", [UniPCGridScheduler, DPMSolverGridScheduler])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_a_video_model_s_own_levels_are_held(kind, end):
    video = CogVideoXDDIMScheduler(snr_shift_scale=3.0)
    ours = laid(with_grid(drawing(kind, video, end), [900, 400, 20]), 3)
    bars = video.alphas_cumprod[[900, 400, 20, 0]].double().numpy()
    meant = ((1 - bars) / bars) ** 0.5 * (1, 1, 1, end != "zero")
    np.testing.assert_allclose(ratios(ours), meant, rtol=1e-4)


def test_the_way_back_holds_the_same_grid():
    inverse = with_grid(ASDDIMInverseScheduler(**SD), [900, 400, 20])
    assert type(inverse) is ASDDIMInverseScheduler
    assert laid(inverse, 3).timesteps.tolist() == [20, 400, 900]


# pictures


def picture(pipe, steps, **how):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    how |= {"num_inference_steps": steps, "generator": generator, "output_type": "latent"}
    return pipe("a red boot", **how).images


MODELS = {"sd": (sd, [980, 601, 250, 17]), "sd3": (sd3, [1.0, 0.71, 0.33, 0.05])}
SAVED = [("sd", kind) for kind in (ASDDIMScheduler, UniPCGridScheduler, DPMSolverGridScheduler)]
SAVED += [("sd3", kind) for kind in (ASFlowScheduler, UniPCGridScheduler, DPMSolverGridScheduler)]


@pytest.mark.parametrize(("model", "kind"), SAVED, ids=str)
def test_a_saved_pipeline_draws_on_its_grid(model, kind, tmp_path):
    """The picture is the one that `hold` drew, and is the same after the pipeline was loaded."""
    make, grid = MODELS[model]
    pipe, options = make()
    source = drawing(kind, pipe.scheduler)
    pipe.scheduler = hold(source, grid)
    tried = picture(pipe, len(grid), **options)
    pipe.scheduler = with_grid(source, grid)
    drawn = picture(pipe, len(grid), **options)
    torch.testing.assert_close(drawn, tried, rtol=1e-4, atol=1e-4)
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again.scheduler) is kind
    assert again.scheduler.config["grid"] == pipe.scheduler.config["grid"]
    assert torch.equal(picture(again, len(grid), **options), drawn)
    assert torch.isfinite(picture(again, 9, **options)).all()
    assert len(again.scheduler.timesteps) == 9


@pytest.mark.parametrize("kind", [ASDDIMScheduler, UniPCGridScheduler, DPMSolverGridScheduler])
def test_image_to_image_begins_within_the_grid(kind):
    pipe, options = img2img()
    grid, asked = [980, 801, 601, 250, 17], []
    pipe.scheduler = with_grid(drawing(kind, pipe.scheduler), grid)
    pipe.unet.register_forward_pre_hook(lambda network, args: asked.append(int(args[1])))
    found = picture(pipe, 5, **{**options, "strength": 0.6})
    assert asked == grid[2:]
    pipe.scheduler = drawing(kind, pipe.scheduler)
    del asked[:]
    cut = {**options, "strength": 1.0, "timesteps": grid[2:]}
    torch.testing.assert_close(picture(pipe, None, **cut), found, rtol=1e-4, atol=1e-4)
    assert asked == grid[2:]


def test_timesteps_of_a_scheduler_that_holds_a_grid_are_that_grid():
    """Unless an allocation is asked for."""
    own = ASDDIMScheduler(grid=[900, 500, 100])
    assert timesteps(own, 3) == [900, 500, 100]
    assert timesteps(own, 3, allocation="trailing") == [999, 666, 332]
    assert len(timesteps(own, 4)) == 4
    flow = with_grid(ASFlowScheduler(shift=3.0), [900, 500, 100])
    assert [round(1000 * s) - 1 for s in sigmas(flow, 3)] == [900, 500, 100]
