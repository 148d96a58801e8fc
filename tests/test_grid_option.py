"""The options `grid` and `allocation` of every scheduler: what counts, and what is refused."""

import copy
import itertools
import json
import logging

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from asddim_lib import (
    ASDDIMInverseScheduler,
    ASDDIMScheduler,
    ASFlowScheduler,
    DPMSolverGridScheduler,
    UniPCGridScheduler,
    timesteps,
)
from asddim_lib.errors import WrongUse
from asddim_lib.levels import Levels
from asddim_lib.schedulers.mixin import resampled
from asddim_lib.schedulers.place import with_grid

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VP = [ASDDIMScheduler, ASDDIMInverseScheduler, UniPCGridScheduler, DPMSolverGridScheduler]
FLOW = [ASFlowScheduler, UniPCGridScheduler, DPMSolverGridScheduler]
SOLVING = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
#: Align Your Steps for SD 1.5, as its authors print it.
AYS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
SIGMAS = Levels.from_diffusers(ASDDIMScheduler(**SD)).sigmas[[900, 500]].tolist()
by_name = {"ids": lambda kind: kind.__name__}


def flow(kind, **changes):
    """A flow scheduler of shift 3."""
    config = {"shift": 3.0} if kind is ASFlowScheduler else SOLVING
    return kind(**config, **changes)


def steps(scheduler, *args, **how):
    """The timesteps that are set, falling; a flow model's sigmas."""
    scheduler.set_timesteps(*args, **how)
    if Levels.from_diffusers(scheduler, 1.0).kind == "flow":
        return scheduler.sigmas[:-1].tolist()
    return sorted(scheduler.timesteps.tolist(), reverse=True)


# What a grid may be written as


@pytest.mark.parametrize("kind", VP, **by_name)
@pytest.mark.parametrize(
    "grid",
    [
        [900, 500],
        (900, 500),
        [900.0, 500.0],
        np.array([900, 500]),
        np.array([900.0, 500.0]),
        torch.tensor([900, 500]),
        SIGMAS,
        [round(sigma, 3) for sigma in SIGMAS] + [0.0],
        torch.tensor([*SIGMAS, 0.0]),
    ],
    ids=repr,
)
def test_timesteps_and_sigmas_name_one_grid(kind, grid):
    scheduler = kind(**SD, grid=grid)
    assert scheduler.config["grid"] == [900, 500]
    assert all(type(t) is int for t in scheduler.config["grid"])
    assert steps(scheduler, 2) == [900, 500]
    plain = kind(**SD)
    name = "timesteps" if float(grid[0]) > 100 else "sigmas"
    assert steps(plain, **{name: grid}) == [900, 500]


@pytest.mark.parametrize("kind", FLOW, **by_name)
@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor], ids=lambda f: f.__name__)
@pytest.mark.parametrize("grid", [[1.0, 0.7, 0.2], [0.9, 0.001], [1.0], [0.5]], ids=str)
def test_a_flow_grid_is_what_the_network_sees(kind, form, grid):
    for printed in (grid, [*grid, 0.0]):
        scheduler = flow(kind, grid=form(printed))
        np.testing.assert_allclose(scheduler.config["grid"], grid, rtol=1e-7)
        assert json.loads(json.dumps(scheduler.config["grid"])) == scheduler.config["grid"]
        np.testing.assert_allclose(steps(scheduler, len(grid)), grid, rtol=2e-6)
        assert scheduler.sigmas[-1] == 0
        again = kind.from_config(scheduler.config)
        assert again.config["grid"] == scheduler.config["grid"]


@pytest.mark.parametrize("kind", FLOW, **by_name)
def test_whole_numbers_number_a_flow_model_s_levels(kind):
    scheduler = flow(kind, grid=[999, 499, 0])
    shares = [3 * s / (1 + 2 * s) for s in (1.0, 0.5, 0.001)]
    assert steps(scheduler, 3) == pytest.approx(shares, rel=2e-6)


def test_whole_sigmas_of_a_call_are_sigmas():
    wanted = Levels.from_diffusers(ASDDIMScheduler(**SD)).nearest(np.array([10.0, 5.0, 1.0]))
    for kind in VP:
        assert steps(kind(**SD), sigmas=[10.0, 5.0, 1.0, 0.0]) == wanted


@pytest.mark.parametrize("grid", [[1.0, 0.9137, 0.7512], [0.99999, 0.99998, 0.3, 0.0001]])
def test_one_flow_grid_is_told_to_the_network_alike_by_every_solver(grid):
    told = []
    for kind in FLOW:
        scheduler = flow(kind, grid=grid)
        scheduler.set_timesteps(len(grid))
        told.append(scheduler.timesteps)
        assert scheduler.timesteps.dtype == torch.float32
    np.testing.assert_allclose(told[0], np.array(grid) * 1000, rtol=1e-6)
    for other in told[1:]:
        assert torch.equal(other, told[0])
    called = []
    for kind in FLOW[1:]:
        scheduler = flow(kind)
        scheduler.set_timesteps(sigmas=grid)
        called.append(scheduler.timesteps)
    assert torch.equal(*called)


# What is refused, in one line

WRONG = [[5, 5], [1, 2], [1000], [3, -1], [], [[900], [500]], [[900, 500], [3]], "5", None]
WRONG += [[0.9, 0.5], [float("nan")], [float("inf"), 1.0], [None], {900: 1}, 7, [True, False]]
SHARES = [[0.5, 0.9], [0.5, 0.5], [1.2, 0.5], [float("nan"), 0.5], [], [[0.9], [0.5]], "0.5", 0.5]
SHARES += [[14.6, 6.3, 0.4], [0.9, 0.9 - 1e-9], [0.5, 0.0, 0.0], [None]]


def refused(act, *words):
    with pytest.raises(WrongUse) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert any(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("kind", VP, **by_name)
@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_what_is_no_grid_of_timesteps_is_refused_in_one_line(kind, wrong):
    if wrong is not None:
        refused(lambda: kind(**SD, grid=wrong), "grid")
        refused(lambda: kind.from_config(kind(**SD).config, grid=wrong), "grid")
    rising = kind is ASDDIMInverseScheduler and wrong in ([1, 2], [float("inf"), 1.0])
    if wrong is not None and not rising:
        refused(lambda: kind(**SD).set_timesteps(timesteps=wrong), "timesteps", "num_inference")


@pytest.mark.parametrize("kind", FLOW, **by_name)
@pytest.mark.parametrize("wrong", SHARES, ids=repr)
def test_what_is_no_grid_of_a_flow_model_is_refused_in_one_line(kind, wrong):
    refused(lambda: flow(kind, grid=wrong), "grid")
    refused(lambda: flow(kind).set_timesteps(sigmas=wrong), "sigmas")


@pytest.mark.parametrize("kind", FLOW, **by_name)
def test_two_steps_that_float32_cannot_tell_apart_are_refused(kind):
    close = np.nextafter(np.float32(0.9), np.float32(0))
    refused(lambda: flow(kind, grid=[0.9, 0.9 - 1e-9]), "grid")
    shares = [float(np.float32(0.9)), float(close)]  # two sigmas, which are perhaps one timestep
    times = np.float32(shares) * np.float32(1000)
    if times[0] == times[1]:
        refused(lambda: flow(kind, grid=shares), "grid")
    else:
        assert len(set(steps(flow(kind, grid=shares), 2))) == 2


@pytest.mark.parametrize("kind", [*VP, *FLOW], **by_name)
def test_other_mistakes_are_named(kind):
    make = (lambda **how: flow(kind, **how)) if kind is ASFlowScheduler else kind
    grid = [0.9, 0.5] if kind is ASFlowScheduler else [900, 500]
    refused(lambda: make(grid=grid, allocation="noise"), "allocation")
    refused(lambda: make(allocation="nothing"), "allocation")
    refused(lambda: make(allocation="fitted", profile="profile.json"), "profile")
    refused(lambda: make(allocation="fitted").set_timesteps(5), "profile")
    refused(lambda: kind.from_config([1, 2]), "config")
    for wrong in (0, -1, 2.5, None, "5"):
        refused(lambda wrong=wrong: make(grid=grid).set_timesteps(wrong), "num_inference_steps")
        refused(lambda wrong=wrong: make(allocation="noise").set_timesteps(wrong), "num_inference")
    if kind is not ASFlowScheduler:
        refused(lambda: make(boundary=0.8), "boundary")
    refused(lambda: kind.from_config(EDMEulerScheduler().config), "config")


@pytest.mark.parametrize("kind", FLOW, **by_name)
def test_a_missing_mu_is_named_where_it_is_needed(kind):
    dynamic = {"use_dynamic_shifting": True}
    refused(lambda: flow(kind, **dynamic, allocation="karras").set_timesteps(4), "mu")
    refused(lambda: flow(kind, **dynamic, grid=[900, 500]), "mu")
    refused(lambda: flow(kind, **dynamic).set_timesteps(sigmas=[0.9, 0.5]), "mu")
    # The shift is in the grid already.
    found = steps(flow(kind, **dynamic, grid=[0.9, 0.5]), 2)
    assert found == pytest.approx([0.9, 0.5], rel=1e-6)
    assert steps(flow(kind, **dynamic, grid=[0.9, 0.5]), 2, mu=0.7) == found


NONE = [DDPMScheduler, PNDMScheduler, HeunDiscreteScheduler, EulerAncestralDiscreteScheduler]
NONE += [DPMSolverSinglestepScheduler, EDMEulerScheduler, FlowMatchHeunDiscreteScheduler]


@pytest.mark.parametrize("kind", NONE, **by_name)
def test_a_method_that_is_none_of_ours_is_refused_in_one_line(kind):
    refused(lambda: with_grid(kind(), [900, 500]), f"scheduler is {kind.__name__}; no class")


def test_a_grid_that_is_none_is_no_scheduler_s():
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    refused(lambda: with_grid(dynamic, [0.9, 0.5]), "mu")
    refused(lambda: with_grid(dynamic, [0.5, 0.9], 1.0), "grid")
    refused(lambda: with_grid(DDIMScheduler(), [900.5, 0.5]), "grid")
    refused(lambda: with_grid(DDIMScheduler(), [500, 900]), "grid")


# The last word wins


@pytest.mark.parametrize("kind", VP, **by_name)
def test_a_grid_and_an_allocation_replace_each_other(kind):
    spread, held = kind(**SD, allocation="logsnr"), kind(**SD, grid=[900, 500])
    made = kind.from_config(held.config, allocation="logsnr")
    assert steps(made, 5) == steps(spread, 5)
    made = kind.from_config(spread.config, grid=[900, 500])
    assert steps(made, 2) == [900, 500]
    assert steps(kind.from_config(held.config, grid=[800, 20]), 2) == [800, 20]
    plain = steps(kind(**SD), 5)
    assert steps(kind.from_config(held.config, allocation="uniform"), 5) == plain
    assert steps(kind.from_config(held.config, grid=None), 5) == plain
    assert steps(kind.from_config(held.config, timestep_spacing="trailing"), 2) == [900, 500]
    euler = EulerDiscreteScheduler.from_config(held.config)  # which keeps what is ours
    assert steps(kind.from_config(euler.config), 2) == [900, 500]
    assert steps(kind.from_config(euler.config, allocation="logsnr"), 5) == steps(spread, 5)


@pytest.mark.parametrize("kind", VP, **by_name)
@pytest.mark.parametrize("own", [{"grid": [900, 500]}, {"allocation": "karras"}], ids=str)
def test_a_call_s_timesteps_take_precedence_with_a_warning(kind, own, caplog):
    scheduler = kind(**SD, **own)
    before = steps(scheduler, 2)
    assert not caplog.records
    assert steps(scheduler, timesteps=[700, 300, 10]) == [700, 300, 10]
    assert "precedence" in caplog.text
    assert steps(scheduler, sigmas=AYS[:10]) == Levels.from_diffusers(scheduler).nearest(AYS[:10])
    assert steps(scheduler, 2) == before


@pytest.mark.parametrize("kind", FLOW, **by_name)
@pytest.mark.parametrize("own", [{"grid": [0.95, 0.5]}, {"allocation": "karras"}], ids=str)
def test_a_call_s_sigmas_take_precedence_but_not_a_pipeline_s_own(kind, own, caplog):
    scheduler = flow(kind, **own)
    before = steps(scheduler, 2)
    for how in ({"sigmas": [1.0, 0.5]}, {"sigmas": np.array([1.0, 0.5]), "mu": None}):
        assert steps(scheduler, **how) == before
    assert steps(scheduler, timesteps=[1000, 1], sigmas=[1.0, 0.001]) == before  # CogView 4's
    assert not caplog.records
    found = steps(scheduler, sigmas=[0.9, 0.5, 0.1])
    assert found == pytest.approx([2.7 / 2.8, 0.75, 0.25], rel=1e-6)
    assert "precedence" in caplog.text
    assert steps(scheduler, sigmas=[0.9, 0.5, 0.1, 0.0]) == found
    assert steps(scheduler, 2) == before


@pytest.mark.parametrize("kind", FLOW, **by_name)
def test_a_step_begins_at_the_boundary_of_two_networks(kind):
    for own in ({}, {"allocation": "karras"}, {"grid": [1.0, 0.9, 0.6, 0.2]}):
        found = steps(flow(kind, **own, boundary=0.875), 4)
        assert sum(abs(s - (0.875 - 1e-4)) < 1e-6 for s in found) == 1
        assert all(a > b for a, b in itertools.pairwise([*found, 0.0]))


# Another number of steps


def test_align_your_steps_are_interpolated_as_its_authors_do(caplog):
    """log σ over the number of the step, the list's last value being the end."""
    for count in (5, 20, 37):
        points = np.log(AYS[::-1])
        wanted = np.interp(np.linspace(0, 1, count + 1), np.linspace(0, 1, 11), points)
        wanted = np.exp(wanted)[::-1][:-1]
        np.testing.assert_allclose(resampled(np.array(AYS[:10]), count, 0.029), wanted, rtol=1e-12)
        levels = Levels.from_diffusers(ASDDIMScheduler(**SD))
        wanted[0] = levels.sigmas[-1]
        for kind in VP:
            found = steps(kind(**SD, grid=AYS[:10]), count)
            assert len(found) == count
            assert np.abs(np.array(found) - levels.timesteps_at(wanted)).max() < 25
            assert "10 steps" in caplog.text
            assert f"{count} steps" in caplog.text


@settings(max_examples=60)
@given(
    grid=st.lists(st.integers(0, 999), min_size=1, max_size=12, unique=True),
    count=st.integers(1, 60),
    flow_model=st.booleans(),
)
def test_any_grid_serves_any_number_of_steps(grid, count, flow_model):
    logging.getLogger("asddim_lib.schedulers.mixin").setLevel(logging.ERROR)
    grid = sorted(grid, reverse=True)
    kinds = FLOW if flow_model else VP
    if not flow_model and count > grid[0] + 1:
        refused(lambda: kinds[0](**SD, grid=grid).set_timesteps(count), "num_inference_steps")
        return
    results = []
    for kind in kinds:
        made = flow(kind, grid=[(t + 1) / 1000 for t in grid]) if flow_model else kind(grid=grid)
        found = steps(made, count)
        assert len(found) == count
        assert all(a > b for a, b in itertools.pairwise(found))
        if count == len(grid):
            whole = [(t + 1) / 1000 for t in grid] if flow_model else grid
            assert found == pytest.approx(whole, rel=2e-6)
        assert found[0] == pytest.approx((grid[0] + 1) / 1000 if flow_model else grid[0], rel=2e-6)
        results.append(found)
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=2e-6)


def test_between_its_ends_a_grid_keeps_its_curve():
    """Twice as many steps go through the same nodes; half as many are every second one."""
    sigmas = np.geomspace(80, 0.5, 8)
    np.testing.assert_allclose(resampled(sigmas, 16, 0.01)[::2], sigmas)
    np.testing.assert_allclose(resampled(sigmas, 4, 0.01), sigmas[::2])
    ended = np.append(sigmas, 0.01)  # the last step begins at the lowest level
    found = resampled(ended, 17, 0.01)
    np.testing.assert_allclose(found[::2], ended)
    assert resampled(np.array([3.0]), 3, 0.003)[1] == pytest.approx(0.3)


@pytest.mark.parametrize("kind", VP, **by_name)
def test_the_library_s_functions_give_the_steps_that_the_scheduler_sets(kind):
    for own in ({"grid": [900, 500, 100]}, {"allocation": "karras"}, {}):
        scheduler = kind(**SD, **own)
        for count in (3, 5):
            assert timesteps(copy.deepcopy(scheduler), count) == steps(scheduler, count)


@pytest.mark.parametrize("kind", VP, **by_name)
@pytest.mark.parametrize("allocation", ["logsnr", "karras", "noise"])
def test_an_allocation_is_one_grid_in_every_scheduler(kind, allocation):
    scheduler = kind.from_config(DDIMScheduler(**SD).config, allocation=allocation)
    assert steps(scheduler, 7) == timesteps(SD, 7, allocation=allocation)


def test_a_config_of_version_0_2_with_other_times_is_refused(tmp_path):
    for kind in (*VP, ASFlowScheduler):
        kind().save_pretrained(tmp_path)
        file = tmp_path / "scheduler_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "look_ahead": 0.2}))
        refused(lambda kind=kind: kind.from_pretrained(tmp_path), "look_ahead")
        refused(lambda kind=kind: kind.from_config(kind().config, look_ahead=-0.1), "look_ahead")
