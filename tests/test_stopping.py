"""F-scheduler's grid against its equations, and draws that stop above clean data."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import experiments.rivals  # noqa: F401 - its methods join the table
from asddim_lib import ASDDIMScheduler, ASFlowScheduler, sigmas, timesteps
from asddim_lib.levels import Levels
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.multistep import UniPCGridScheduler
from asddim_lib.schedulers.place import drawing, set_grid, with_grid
from experiments.stopping import EIGHT, FEW, XL, Stop, stopped, stopping
from tests.refusals import refuses
from tests.tiny import SD, easy, sd3

SCHEDULE = Levels.from_diffusers(SD)
PROMPTS = ["a red boot", "two blue bags"]
SMALL = {"height": 16, "width": 16}


def timestep_of(sigma):
    """The real timestep of a level, by bisection of log σ between the schedule's own levels."""
    levels = np.log(SCHEDULE.sigmas)
    low = int((levels <= np.log(sigma)).sum()) - 1
    return low + (np.log(sigma) - levels[low]) / (levels[low + 1] - levels[low])


@pytest.mark.parametrize(("stop", "steps"), [(FEW, 5), (FEW, 6), (EIGHT, 8), (XL, 6), (XL, 8)])
def test_the_grid_is_even_in_a_power_of_time_down_to_its_stop(stop, steps):
    """Eqs 10 and 11, written out."""
    high, low, root = SCHEDULE.sigmas[-1], SCHEDULE.sigmas[0], 1 / stop.power
    share = stop.after / stop.of
    wanted = (high**root + share * (low**root - high**root)) ** stop.power
    grid, sigma = stopping(SCHEDULE, steps, stop)
    assert sigma == pytest.approx(wanted, rel=1e-12)
    ends = 999 ** (1 / 1.2), timestep_of(wanted) ** (1 / 1.2)
    nodes = [(ends[0] + i / steps * (ends[1] - ends[0])) ** 1.2 for i in range(steps + 1)]
    assert grid == [round(t) for t in nodes[:-1]]
    assert grid[-1] > nodes[-1] > 0


@pytest.mark.parametrize(("name", "stop"), [("f-scheduler", FEW), ("f-scheduler-xl", XL)])
def test_the_table_s_last_step_begins_at_the_stop(name, stop):
    for steps in (2, 5, 6):
        grid = timesteps(SD, steps, allocation=name)
        assert grid[0] == 999
        assert grid[-1] == round(timestep_of(stopping(SCHEDULE, steps, stop)[1]))
        assert grid[:-1] == stopping(SCHEDULE, steps - 1, stop)[0]
    flow = sigmas(FlowMatchEulerDiscreteScheduler(shift=3.0), 6, allocation=name)
    assert all(a > b for a, b in itertools.pairwise([*flow, 0.0]))
    assert flow[0] == 1.0


@settings(max_examples=50)
@given(steps=st.integers(1, 60), power=st.floats(1, 15), after=st.integers(1, 12))
def test_no_step_lies_below_the_stop(steps, power, after):
    stop = Stop(power, after, 12)
    sigma = stop.sigma(SCHEDULE.sigmas[-1], SCHEDULE.sigmas[0])
    assume(steps <= (SCHEDULE.sigmas > sigma).sum() / 2)  # the ramp is at most 1.3 times as dense
    grid, found = stopping(SCHEDULE, steps, stop)
    assert found == pytest.approx(sigma)
    assert len(grid) == steps
    assert all(a > b for a, b in itertools.pairwise(grid))
    assert SCHEDULE.sigmas[grid[-1]] > sigma * (1 - 1e-9)


def test_wrong_stops_are_named():
    with refuses("after"):
        stopping(SCHEDULE, 5, Stop(5.0, 8, 7))
    with refuses("num_inference_steps"):
        stopping(SCHEDULE, 400, Stop(1.0, 1, 2))
    with refuses("sigma"):
        stopped(ASDDIMScheduler(**SD), 0)
    with refuses("sigma"):
        set_grid(stopped(ASDDIMScheduler(**SD), 1.0), [999, 10])


def test_a_stop_is_not_lost_where_a_grid_is_held():
    plain, grid = ASDDIMScheduler(**SD), [999, 500, 100]
    with refuses("scheduler"):
        with_grid(stopped(plain, 0.1), grid)
    both = stopped(with_grid(plain, grid), 0.1)
    both.set_timesteps(3)
    assert both.timesteps.tolist() == grid
    assert float(both.final_alpha_cumprod) == pytest.approx(1 / (1 + 0.1**2))


def test_ddim_and_its_first_steps_stop_at_the_same_sample():
    """K steps that stop at σ are the first K of K + 1 steps, of which the last begins there."""
    pipe, grid = easy(), [999, 700, 300, 100]
    sigma = float(SCHEDULE.sigmas[grid[-1]])
    seen = {}

    def keep(pipe, step, timestep, values):
        seen[step] = values["latents"].flatten(1).clone()
        return values

    run = Run(pipe, PROMPTS, guidance_scale=1.0, options=SMALL)
    scheduler = stopped(drawing(ASDDIMScheduler, pipe.scheduler), sigma)
    ends = replace(run, scheduler=scheduler).ends(grid[:-1])
    drawn = with_grid(drawing(ASDDIMScheduler, pipe.scheduler), grid)
    both = slice(0, 2)
    how = {"num_inference_steps": 4, "output_type": "latent", "callback_on_step_end": keep}
    run.call(both, drawn, run.generators(both), **how)
    torch.testing.assert_close(ends, seen[2])


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, UniPCGridScheduler])
def test_other_solvers_end_where_they_are_told(kind):
    scheduler = stopped(drawing(kind, {**SD, "_class_name": "DDIMScheduler"}), 0.2)
    set_grid(scheduler, [999, 700, 300])
    assert float(scheduler.sigmas[-1]) == pytest.approx(0.2)
    np.testing.assert_allclose(scheduler.sigmas[:-1], SCHEDULE.sigmas[[999, 700, 300]], rtol=1e-5)


def test_a_flow_model_ends_at_a_share_of_noise():
    pipe, how = sd3()
    scheduler = stopped(drawing(ASFlowScheduler, pipe.scheduler), 0.25)
    set_grid(scheduler, [999, 700, 300])
    assert float(scheduler.sigmas[-1]) == pytest.approx(0.2)
    own = drawing(ASFlowScheduler, pipe.scheduler)
    set_grid(own, [999, 700, 300])
    assert float(own.sigmas[-1]) == 0.0
    torch.testing.assert_close(own.sigmas[:-1], scheduler.sigmas[:-1])
    run = Run(pipe, PROMPTS, guidance_scale=1.0, options=how)
    ends = [replace(run, scheduler=one).ends([999, 700, 300]) for one in (own, scheduler)]
    assert not torch.allclose(*ends)
