"""A grid in a scheduler's config: what goes before it, and what is refused."""

import json
import re

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)

from asddim_lib import (
    ASDDIMScheduler,
    ASFlowScheduler,
    DPMSolverGridScheduler,
    UniPCGridScheduler,
)
from asddim_lib.errors import WrongUse
from asddim_lib.schedulers.place import holding

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VP = [ASDDIMScheduler, UniPCGridScheduler, DPMSolverGridScheduler]
WRONG = [[5, 5], [1, 2], [1000], [3, -1], [], [0.9, 0.5], [float("nan")], [None], "5"]
SHARES = [[0.5, 0.9], [0.5, 0.5], [1.2, 0.5], [0.5, 0.0], [990, 500], [float("nan")], []]
FLOWING = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize("kind", VP)
def test_given_timesteps_go_before_the_grid(kind):
    scheduler = kind(**SD, grid=np.array([900, 500]))
    assert scheduler.config["grid"] == [900, 500]
    scheduler.set_timesteps(timesteps=[700, 300, 10])
    assert scheduler.timesteps.tolist() == [700, 300, 10]
    scheduler.set_timesteps(2)
    assert scheduler.timesteps.tolist() == [900, 500]


@pytest.mark.parametrize("kind", [UniPCGridScheduler, DPMSolverGridScheduler])
def test_given_sigmas_go_before_the_grid_but_not_a_pipeline_s_own(kind):
    scheduler = kind(**FLOWING, grid=[0.95, 0.5])
    for how in ({"sigmas": [1.0, 0.5]}, {"sigmas": np.array([1.0, 0.5]), "mu": None}):
        scheduler.set_timesteps(**how)
        np.testing.assert_allclose(scheduler.sigmas, [0.95, 0.5, 0.0], rtol=1e-6)
    scheduler.set_timesteps(timesteps=[1000, 1], sigmas=[1.0, 0.001])  # CogView 4's
    np.testing.assert_allclose(scheduler.sigmas, [0.95, 0.5, 0.0], rtol=1e-6)
    scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.1])
    np.testing.assert_allclose(scheduler.sigmas, [2.7 / 2.8, 0.75, 0.25, 0.0], rtol=1e-6)


def test_of_two_steps_that_are_told_one_time_the_first_comes_first():
    scheduler = UniPCGridScheduler(**FLOWING, grid=[0.9999, 0.9992, 0.5])
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [999, 999, 500]
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    for step, t in enumerate(scheduler.timesteps):
        x = scheduler.step(torch.sin(x), t, x).prev_sample
        assert scheduler.step_index == step + 1
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("kind", VP)
@pytest.mark.parametrize("wrong", [*WRONG, torch.tensor([1, 2])], ids=repr)
def test_what_is_no_grid_of_timesteps_is_refused_in_one_line(kind, wrong):
    with pytest.raises(WrongUse, match=r"^grid is [^\n]*; [^\n]*$"):
        kind(grid=wrong)


@pytest.mark.parametrize("kind", [UniPCGridScheduler, DPMSolverGridScheduler])
@pytest.mark.parametrize("wrong", SHARES, ids=repr)
def test_what_is_no_grid_of_sigmas_is_refused_in_one_line(kind, wrong):
    with pytest.raises(WrongUse, match=r"^grid is [^\n]*; give strictly falling sigmas[^\n]*$"):
        kind(**FLOWING, grid=wrong)


@pytest.mark.parametrize("kind", VP)
@pytest.mark.parametrize("steps", [1, 3, 50])
def test_another_number_of_steps_is_refused_in_one_line(kind, steps):
    words = f"num_inference_steps is {steps}; this scheduler holds a grid of 2 steps: give 2"
    with pytest.raises(WrongUse, match=f"^{re.escape(words)}$"):
        kind(grid=[900, 500]).set_timesteps(steps)


NONE = [DDPMScheduler, HeunDiscreteScheduler, EulerAncestralDiscreteScheduler]
NONE += [DPMSolverSinglestepScheduler, EDMEulerScheduler, FlowMatchHeunDiscreteScheduler]


@pytest.mark.parametrize("kind", NONE, ids=lambda kind: kind.__name__)
def test_a_method_that_is_none_of_ours_is_refused_in_one_line(kind):
    words = f"^scheduler is {kind.__name__}; no class of ours is the same method[^\n]*$"
    with pytest.raises(WrongUse, match=words):
        holding(kind(), [900, 500])


def test_each_other_error_is_one_line():
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for act, words in (
        (lambda: ASDDIMScheduler(allocation="noise", grid=[5, 3]), "allocation is noise; this"),
        (lambda: holding(dynamic, [0.9, 0.5]), "mu is None; its shift depends"),
        (lambda: holding(dynamic, [0.5, 0.9], 1.0), "grid is [0.5, 0.9]; give strictly"),
        (lambda: holding(DDIMScheduler(), [0.9, 0.5]), "grid is [0.9, 0.5]; give strictly"),
        (lambda: holding(DDIMScheduler(), [500, 900]), "grid is [500, 900]; give strictly"),
        (
            lambda: UniPCGridScheduler(
                **FLOWING, use_dynamic_shifting=True, grid=[0.9]
            ).set_timesteps(1),
            "mu is None; this scheduler's shift",
        ),
    ):
        with pytest.raises(WrongUse, match=f"^{re.escape(words)}[^\n]*$"):
            act()


@pytest.mark.parametrize("kind", [ASDDIMScheduler, UniPCGridScheduler, ASFlowScheduler])
def test_a_config_of_version_0_2_loads_unless_it_told_the_network_other_times(
    kind, tmp_path, caplog
):
    kind().save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps({**saved, "look_ahead": 0.0}))
    again = kind.from_pretrained(tmp_path)
    assert "look_ahead" not in again.config
    assert not caplog.records
    file.write_text(json.dumps({**saved, "look_ahead": 0.2}))
    for load in (kind.from_pretrained, lambda _: kind.from_config(kind().config, look_ahead=-0.1)):
        with pytest.raises(WrongUse, match="look_ahead"):
            load(tmp_path)
