"""Grids in real pipelines: held ones, boundaries between experts, the shift by a picture's size."""

import contextlib
import copy
import itertools
import logging
import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asddim_lib import (
    ASDDIMScheduler,
    ASFlowScheduler,
    DPMSolverGridScheduler,
    UniPCGridScheduler,
    sigmas,
)
from asddim_lib.levels import Levels, with_boundary
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.place import drawing, hold, set_grid, with_grid
from tests.refusals import refuses
from tests.tiny import SD
from tests.zoo import ZOO
from tests.zoo.first import built, counted, stopped
from tests.zoo.flow import FLOWS

DYNAMIC = ("flux-dev", "flux-kontext", "flux-2", "qwen-image", "ltx", "modular-flux")
FLOWING = (*FLOWS, "sana", "hunyuan-video", "ltx", "wan-2.1", "wan-2.2", "modular-flux")
NUMBERS, SHARES = [990, 600, 250, 20], [1.0, 0.71, 0.33, 0.05]


def run_of(name, **how):
    pipe, options = built(name)
    return Run(pipe, ["a red boot", "two blue bags"], options=options, shift_steps=4, **how)


def call(run, scheduler, steps=4, **how):
    """One prompt's latents."""
    one = slice(0, 1)
    how = {"num_inference_steps": steps, "output_type": "latent", **how}
    with torch.no_grad():
        return run.call(one, scheduler, run.generators(one), **how)


# what is no grid


@pytest.mark.parametrize(
    "grid", [[0.5, 0.9], [0.5, 0.5], [1.2, 0.5], [0.5, 0.0, 0.0], [math.nan], []]
)
def test_a_wrong_grid_is_one_line(grid):
    with refuses("grid"):
        ASFlowScheduler(grid=grid)


@pytest.mark.parametrize("boundary", [0, 1.0, 875, math.nan])
def test_a_wrong_boundary_is_one_line(boundary):
    with refuses("boundary"):
        ASFlowScheduler(boundary=boundary)


@pytest.mark.parametrize(
    ("how", "steps", "name"),
    [
        ({"boundary": 0.9}, 1, "num_inference_steps"),
        ({"boundary": 0.9, "grid": [1.0]}, 1, "num_inference_steps"),
        ({"boundary": 0.9, "grid": [0.8, 0.2]}, 2, "boundary"),
        ({"boundary": 5e-5}, 4, "boundary"),
        ({"allocation": "karras"}, 0, "num_inference_steps"),
        ({"allocation": "karras"}, None, "num_inference_steps"),
    ],
    ids=str,
)
def test_a_wrong_number_of_steps_is_one_line(how, steps, name):
    with refuses(name):
        ASFlowScheduler(**how).set_timesteps(steps)


@pytest.mark.parametrize("kind", [ASFlowScheduler, FlowMatchEulerDiscreteScheduler])
def test_what_is_no_grid_is_not_laid(kind):
    for wrong in ([990.0, 600.0], [0.5, 0.9], [600, 990]):
        with refuses("grid"):
            set_grid(kind(shift=3.0), wrong)


# a boundary between two networks


@settings(max_examples=200)
@given(
    levels=st.lists(st.integers(1, 1000), min_size=2, max_size=20, unique=True),
    boundary=st.integers(2, 999),
)
def test_one_node_moves_just_below_the_boundary(levels, boundary):
    levels, boundary = np.array(sorted(levels, reverse=True)) / 1000, boundary / 1000
    assume(levels[0] >= boundary)
    moved = with_boundary(levels, boundary)
    (changed,) = np.flatnonzero(moved != levels)
    assert changed > 0
    assert moved[changed] == boundary - 1e-4
    assert abs(levels[changed] - boundary) == np.abs(levels[1:] - boundary).min()
    assert all(a > b for a, b in itertools.pairwise([*moved, 0.0]))
    # a pipeline's own comparison, in single precision
    times = torch.tensor(moved, dtype=torch.float32) * 1000
    assert (times >= boundary * 1000).tolist() == [k < changed for k in range(len(levels))]


@pytest.mark.parametrize("steps", [2, 3, 6])
@pytest.mark.parametrize("allocation", ["uniform", "logsnr"])
def test_each_expert_of_wan_is_called_on_its_own_side(steps, allocation):
    pipe, _ = built("wan-2.2")
    how = {"allocation": allocation, "boundary": pipe.config.boundary_ratio}
    scheduler = ASFlowScheduler.from_config(pipe.scheduler.config, **how)
    seen = {"transformer": [], "transformer_2": []}
    handles = [
        getattr(pipe, name).register_forward_pre_hook(
            lambda _, args, kwargs, name=name: seen[name].append(float(kwargs["timestep"][0])),
            with_kwargs=True,
        )
        for name in seen
    ]
    try:
        call(run_of("wan-2.2", guidance_scale=1.0), scheduler, steps)
    finally:
        for handle in handles:
            handle.remove()
    above, below = seen.values()
    assert [*above, *below] == scheduler.timesteps.tolist()
    assert min(above) >= 875 > max(below)
    assert below[0] == pytest.approx(874.9, abs=1e-3)


# grids held in every pipeline


def kinds(name):
    solvers = [UniPCGridScheduler, DPMSolverGridScheduler]
    if name in FLOWING:
        return [ASFlowScheduler, FlowMatchEulerDiscreteScheduler, *solvers]
    return [ASDDIMScheduler, *solvers]


def shift_of(run):
    """By the definition of diffusers' schedulers, from the config's own words."""
    config = run.pipe.scheduler.config
    if run.mu is not None:
        return math.exp(run.mu)
    return config["flow_shift"] if config.get("use_flow_sigmas") else config["shift"]


def state(scheduler):
    """All that a scheduler is, to be compared."""
    held = vars(scheduler).items()
    return {key: value.tolist() if torch.is_tensor(value) else str(value) for key, value in held}


@pytest.mark.parametrize("name", ZOO)
def test_at_its_first_step_a_scheduler_holds_what_was_meant(name):
    run, flow = run_of(name), name in FLOWING
    own = run.pipe.scheduler
    assert (Levels.from_diffusers(own, mu=0.0).kind == "flow") == flow
    for kind, grid in itertools.product(kinds(name), (NUMBERS, SHARES) if flow else (NUMBERS,)):
        scheduler = drawing(kind, own)
        before, held = state(scheduler), hold(scheduler, grid)
        with stopped(held):
            call(run, held)
        if flow:
            meant = np.array(grid)  # sigmas have the shift in them, timesteps have not
            if grid is NUMBERS:
                mix = (meant + 1) / 1000
                meant = shift_of(run) * mix / (1 + (shift_of(run) - 1) * mix)
            np.testing.assert_allclose(held.sigmas, [*meant, 0.0], rtol=1e-5, atol=2e-6)
            # diffusers' UniPC cuts its timesteps to whole numbers
            near = 1 if kind is UniPCGridScheduler else 1e-2
            np.testing.assert_allclose(held.timesteps, 1000 * meant, atol=near)
        else:
            assert held.timesteps.tolist() == grid
        assert state(scheduler) == before
        assert isinstance(held, kind)
        assert run.pipe.scheduler is own


@pytest.mark.parametrize("name", ["sana", "wan-2.1", "sd3"])
def test_diffusers_own_unipc_takes_a_flow_grid_too(name):
    run = run_of(name)
    held = hold(drawing(UniPCMultistepScheduler, run.pipe.scheduler), SHARES)
    assert torch.isfinite(call(run, held)).all()
    assert len(held.timesteps) == len(SHARES)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sdxl", UniPCGridScheduler), ("sdxl", ASDDIMScheduler), ("flux-dev", ASFlowScheduler)],
)
def test_one_call_s_grid_does_not_leak_into_another(name, kind):
    run = run_of(name)
    scheduler = drawing(kind, run.pipe.scheduler)
    one, other = hold(scheduler, NUMBERS), hold(scheduler, [950, 400, 30])
    first = call(run, one)
    assert not torch.equal(call(run, other, 3), first)
    assert torch.equal(call(run, one), first)
    assert torch.equal(call(run, hold(copy.deepcopy(scheduler), NUMBERS)), first)
    assert run.ends(NUMBERS).shape == (2, first.numel())


def test_a_flow_model_s_config_is_refused_by_ddim_in_one_line_whatever_its_shift():
    for config in ({"shift": 3.0}, {"use_dynamic_shifting": True}):
        with refuses("config"):
            ASDDIMScheduler.from_config(FlowMatchEulerDiscreteScheduler(**config).config)
    with refuses("config"):
        drawing(ASFlowScheduler, ASDDIMScheduler(**SD), "zero")


# the shift by a picture's size


@contextlib.contextmanager
def watched(scheduler):
    """A copy of a scheduler, and the shifts it is given; the run ends at its first step."""
    seen, kind = [], type(scheduler)

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None):
        seen.append(mu)
        kind.set_timesteps(self, num_inference_steps, device, sigmas, mu)

    watching = copy.copy(scheduler)
    watching.__class__ = type(kind.__name__, (kind,), {"set_timesteps": set_timesteps})
    with stopped(watching):
        yield watching, seen


@pytest.mark.parametrize("name", DYNAMIC)
def test_mu_is_what_the_pipeline_gives_at_each_size(name):
    pipe, options = built(name)
    found = []
    for size in (32, 64):
        larger = {**options, "height": size, "width": size}
        run = Run(pipe, ["a red boot"], options=larger, shift_steps=4)
        with watched(pipe.scheduler) as (scheduler, seen):
            call(run, scheduler)
        assert seen == [run.mu]
        found += seen
    assert found[0] < found[1] or name == "flux-kontext"  # which keeps to its picture's size


@pytest.fixture
def said():
    """What diffusers logs, whose loggers do not pass it on."""
    records, handler = [], logging.Handler()
    handler.emit = records.append
    logging.getLogger("diffusers").addHandler(handler)
    yield records
    logging.getLogger("diffusers").removeHandler(handler)


@pytest.mark.parametrize("name", ZOO)
def test_mu_costs_no_evaluation_and_leaves_no_trace(name, said):
    run = run_of(name)
    own = run.pipe.scheduler
    before = state(own)
    said.clear()
    with counted(run.pipe) as rows:
        mu = run.mu
    assert (mu is not None) == (name in DYNAMIC)
    assert not rows
    assert state(own) == before
    assert run.pipe.scheduler is own
    assert not said, "to be asked for a shift is no error"


@pytest.mark.parametrize("name", FLOWING)
def test_a_pipeline_draws_on_the_allocation_s_levels(name):
    """Whatever sigmas it gives by itself, and with its own shift."""
    run = run_of(name)
    scheduler = ASFlowScheduler.from_config(run.pipe.scheduler.config, allocation="logsnr")
    with stopped(scheduler):
        call(run, scheduler)
    how = {"allocation": "logsnr", "shifted": True, "mu": run.mu}
    np.testing.assert_allclose(scheduler.sigmas, sigmas(run.pipe.scheduler, 4, **how), rtol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_held_grid_of_sigmas_comes_back_as_it_is(shift):
    held = ASFlowScheduler(shift=shift, grid=[1.0, 0.9, 0.5005, 0.0012, 0.0008])
    assert sigmas(held, 5, shifted=True) == [*held.config["grid"], 0.0]
    plain = FlowMatchEulerDiscreteScheduler(shift=shift)
    plain.set_timesteps(sigmas=sigmas(held, 5))
    np.testing.assert_allclose(plain.sigmas[:-1], held.config["grid"], rtol=1e-5)


@pytest.mark.parametrize("kind", [DPMSolverGridScheduler, UniPCGridScheduler])
def test_a_grid_that_begins_its_last_step_at_the_end_loses_none_when_it_is_loaded(kind):
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    made = kind(**flow, final_sigmas_type="sigma_min", grid=[999, 500, 0])
    assert len(made.config["grid"]) == 3
    assert kind.from_config(made.config).config["grid"] == made.config["grid"]
    again = with_grid(with_grid(made, [999, 500, 0]), made.config["grid"] + [0.0])
    assert again.config["grid"] == made.config["grid"]
