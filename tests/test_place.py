"""What a scheduler holds after a grid was laid is what was meant, whatever flags its config has."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from asddim_lib import (
    ASDDIMInverseScheduler,
    ASDDIMScheduler,
    UniPCGridScheduler,
    sigmas,
    timesteps,
)
from asddim_lib.errors import WrongUse
from asddim_lib.levels import Levels
from asddim_lib.schedulers.place import check_set, drawing, set_grid
from tests.refusals import refuses

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
#: Every class that takes a grid, and its flags that make levels of their own.
TAKERS = {
    ASDDIMScheduler: ("thresholding", "set_alpha_to_one", "rescale_betas_zero_snr"),
    UniPCGridScheduler: (*LEVELS, "rescale_betas_zero_snr"),
    DDPMScheduler: ("rescale_betas_zero_snr",),
    LCMScheduler: (),
    EulerDiscreteScheduler: (*LEVELS, "interpolation_type", "rescale_betas_zero_snr"),
    HeunDiscreteScheduler: LEVELS,
    DPMSolverMultistepScheduler: (*LEVELS, "use_lu_lambdas", "rescale_betas_zero_snr"),
    DPMSolverSinglestepScheduler: LEVELS,
}
VALUES = {"interpolation_type": "log_linear"}


@st.composite
def grids(draw, top=999):
    steps = draw(st.integers(2, 12))
    found = draw(st.lists(st.integers(1, top), min_size=steps, max_size=steps, unique=True))
    return sorted(found, reverse=True)


def configured(kind, flags, spacing):
    """A scheduler's config with its flags, as a finetune's might have it."""
    on = {flag: VALUES.get(flag, True) for flag in flags}
    if on.get("thresholding") or on.get("rescale_betas_zero_snr"):
        on["prediction_type"] = "v_prediction"
    if kind is not DPMSolverSinglestepScheduler:
        on["timestep_spacing"] = spacing
    return kind(**SD, **on).config


@pytest.mark.parametrize("kind", TAKERS, ids=lambda kind: kind.__name__)
@settings(max_examples=15)
@given(grid=grids(), data=st.data())
def test_a_scheduler_holds_the_grid_that_was_laid(kind, grid, data):
    flag = data.draw(st.sampled_from([(), *((flag,) for flag in TAKERS[kind])]))
    if kind is LCMScheduler:  # distilled: it takes timesteps of its own training grid alone
        grid = [t // 20 * 20 + 19 for t in sorted({t // 20 for t in grid}, reverse=True)]
        grid = sorted({t % 1000 for t in (19 + 20 * (g // 20) for g in grid)}, reverse=True)
    spacing = data.draw(st.sampled_from(["leading", "trailing", "linspace"]))
    scheduler = drawing(kind, configured(kind, flag, spacing), "zero")
    set_grid(scheduler, grid)
    asked = scheduler.timesteps.tolist()
    asked = asked[:1] + asked[1::2] if kind is HeunDiscreteScheduler else asked
    assert asked == grid
    meant = Levels.from_diffusers(scheduler).finite_sigmas[grid]
    if hasattr(scheduler, "sigmas"):
        levels = scheduler.sigmas.numpy()
        levels = levels[::2] if kind is HeunDiscreteScheduler else levels
        np.testing.assert_allclose(levels[: len(grid)], meant, rtol=1e-3)
        assert scheduler.sigmas[-1] == 0


@settings(max_examples=30)
@given(shift=st.floats(0.5, 12), steps=st.integers(1, 30), flag=st.sampled_from(LEVELS))
@pytest.mark.parametrize("allocation", ["trailing", "karras", "noise"])
def test_a_flow_scheduler_holds_the_shifted_grid(allocation, shift, steps, flag):
    config = FlowMatchEulerDiscreteScheduler(shift=shift, **{flag: True}).config
    with pytest.raises(WrongUse, match=flag):
        sigmas(config, steps, allocation=allocation)
    scheduler = drawing(FlowMatchEulerDiscreteScheduler, config)
    grid = sigmas(scheduler, steps, allocation=allocation)
    used = sigmas(scheduler, steps, allocation=allocation, shifted=True)
    set_grid(scheduler, used)
    np.testing.assert_allclose(scheduler.sigmas, used, rtol=1e-5)
    assert used[-1] == 0.0
    s = np.array(grid)
    np.testing.assert_allclose(used[:-1], shift * s / (1 + (shift - 1) * s), rtol=1e-9)


def test_what_another_program_is_given_is_what_a_flow_solver_uses():
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert sigmas(flow, 4, allocation="trailing", shifted=True) == [1.0, 0.9, 0.75, 0.5, 0.0]
    assert sigmas(flow, 4, allocation="trailing") == [1.0, 0.75, 0.5, 0.25]


def test_an_edm_grid_lies_within_its_own_levels():
    levels = sigmas(EDMEulerScheduler(), 6, allocation="karras")
    assert levels[0] == pytest.approx(80.0, rel=1e-6)
    assert levels[-1] == pytest.approx(0.002, rel=1e-3)
    assert all(a > b for a, b in itertools.pairwise(levels))


def test_a_scheduler_that_holds_another_grid_is_found_out():
    scheduler = EulerDiscreteScheduler(**SD)
    scheduler.set_timesteps(timesteps=[900, 500, 100])
    check_set(scheduler, [900, 500, 100])
    with refuses("scheduler"):
        check_set(scheduler, [900, 400, 100])
    with refuses("scheduler"):
        set_grid(PNDMScheduler(**SD), [900, 500])
    with refuses("scheduler"):
        set_grid(UniPCMultistepScheduler(**SD), [900, 500])
    with refuses("end"):
        drawing(HeunDiscreteScheduler, SD, "sigma_min")
    with refuses("end"):
        drawing(ASDDIMScheduler, SD, "nowhere")


@pytest.mark.parametrize("allocation", ["uniform", "noise", "karras", "beta", "ays-sd15"])
@pytest.mark.parametrize(("begin", "steps"), [(299, 6), (299, 300), (0, 1), (999, 10)])
def test_a_grid_below_a_timestep(allocation, begin, steps):
    config = {**SD, "timestep_spacing": "trailing"}
    grid = timesteps(config, steps, allocation=allocation, begin=begin)
    assert len(grid) == steps
    assert grid[0] <= begin
    assert all(a > b for a, b in itertools.pairwise([*grid, -1]))
    if begin == 999:
        assert grid == timesteps(config, steps, allocation=allocation)
    with refuses("num_inference_steps"):
        timesteps(config, begin + 2, allocation=allocation, begin=begin)


# the way back


@pytest.mark.parametrize("steps", [4, 10, 50])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_inversion_in_uniform_mode_is_diffusers_own(steps, prediction_type):
    config = {**SD, "prediction_type": prediction_type, "clip_sample": False}
    config["set_alpha_to_one"] = False  # at ᾱ = 1 a predicted picture says nothing of the noise
    ours, theirs = (kind(**config) for kind in (ASDDIMInverseScheduler, DDIMInverseScheduler))
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    for t in ours.timesteps:
        outputs = [s.step(torch.sin(x), t, x).prev_sample for s in (ours, theirs)]
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
        x = outputs[0]


@pytest.mark.parametrize("allocation", ["uniform", "noise", "logsnr"])
def test_inversion_undoes_each_step_on_the_same_grid(allocation):
    forward = ASDDIMScheduler(**SD, clip_sample=False, allocation=allocation)
    inverse = ASDDIMInverseScheduler.from_config(forward.config)
    for scheduler in (forward, inverse):
        scheduler.set_timesteps(9)
    assert inverse.timesteps.tolist() == forward.timesteps.tolist()[::-1]
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in forward.timesteps:
        noise = torch.cos(x)
        landed = forward.step(noise, t, x).prev_sample
        back = inverse.step(noise, t, landed).prev_sample
        torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)
        x = landed
    with refuses("eta"):
        inverse.step(x, t, x, eta=0.5)


@pytest.mark.parametrize("allocation", [None, "uniform", "trailing", "logsnr"])
def test_timesteps_are_refused_where_they_are_no_whole_numbers(allocation):
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for source in (FlowMatchEulerDiscreteScheduler(), dynamic, EDMEulerScheduler()):
        with refuses("scheduler"):
            timesteps(source, 4, allocation=allocation)
