"""`ASFlowScheduler` made from any flow-matching scheduler's config, saved, and loaded again."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from asddim_lib import ASFlowScheduler, Profile, sigmas
from asddim_lib.errors import WrongUse
from asddim_lib.levels import fingerprint, noise_schedule
from tests.refusals import refuses
from tests.test_flow import FLAGS, line, same
from tests.tiny import sd3

FLOW = {"use_flow_sigmas": True, "flow_shift": 5.0, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize(
    ("source", "shift", "dynamic"),
    [
        (UniPCMultistepScheduler(**FLOW), 5.0, False),  # Wan
        (DPMSolverMultistepScheduler(**FLOW), 5.0, False),  # Sana
        (DPMSolverSinglestepScheduler(**FLOW), 5.0, False),
        (UniPCMultistepScheduler(**FLOW, use_dynamic_shifting=True), 5.0, True),
        (FlowMatchHeunDiscreteScheduler(shift=5.0), 5.0, False),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 1.0, True),
    ],
    ids=lambda source: type(source).__name__,
)
def test_any_flow_matching_scheduler_s_config_makes_it(source, shift, dynamic):
    """Whether it was built here, or comes from a file, which names its class."""
    for config in (source.config, {**source.config, "_class_name": type(source).__name__}):
        made = ASFlowScheduler.from_config(config, allocation="logsnr")
        assert (made.config.shift, made.config.use_dynamic_shifting) == (shift, dynamic)
        assert made.config.allocation == "logsnr"
        names = {"num_train_timesteps", *FLAGS, "shift_terminal", "time_shift_type"}
        names &= set(source.config)
        assert all(made.config[name] == source.config[name] for name in names)
        assert not set(made.config) & {"beta_start", "use_flow_sigmas", "flow_shift"}
        made.set_timesteps(5, mu=0.5)
        meant = sigmas(source, 5, allocation="logsnr", shifted=True, mu=0.5)
        np.testing.assert_allclose(made.sigmas, meant, rtol=1e-6)


def test_reversed_levels_take_no_allocation():
    mochi = FlowMatchEulerDiscreteScheduler(shift=5.0, invert_sigmas=True).config
    assert ASFlowScheduler.from_config(mochi).config.invert_sigmas
    with refuses("invert_sigmas"):
        ASFlowScheduler.from_config(mochi, allocation="logsnr")


def test_what_a_config_leaves_out_is_what_its_class_says():
    wan = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 2.0}
    assert ASFlowScheduler.from_config(wan).config.shift == 2.0
    del wan["flow_shift"]
    assert (
        ASFlowScheduler.from_config(wan).config.shift == UniPCMultistepScheduler().config.flow_shift
    )


@pytest.mark.parametrize(
    "config",
    [
        DDIMScheduler().config,
        EulerDiscreteScheduler().config,
        UniPCMultistepScheduler().config,
        EDMEulerScheduler().config,
        {"some": "thing"},
        None,
        "a/folder",
    ],
    ids=lambda config: str(getattr(config, "get", str)("_class_name")),
)
def test_another_kind_s_config_is_refused_in_one_line(config):
    with pytest.raises(WrongUse, match="; ") as error:
        ASFlowScheduler.from_config(config)
    line(error)


def changed(scheduler):
    """Every setting that a file must hold, other than by default."""
    schedule = fingerprint(noise_schedule(scheduler))
    values = ([900, 500, 50], [1.0, 1.5, 4.0], [0.1, None, 0.1])
    rest = ("frobenius", "vjp", 1, 4, 0, 7.5, "test", schedule, 100)
    profile = Profile(*values, *rest).to_dict()
    grid = np.array([1.0, 0.95, 0.7, 0.2])  # an array is a list in the file
    return [
        {"allocation": "combined", "lam": 2.0, "p": 0.4, "profile": profile, "boundary": 0.8},
        {"grid": grid, "boundary": 0.875},
        {"invert_sigmas": True},
    ]


@pytest.mark.parametrize("number", range(3))
def test_it_comes_back_from_a_file_as_it_was(number, tmp_path):
    source = FlowMatchEulerDiscreteScheduler(shift=3.0)
    made = ASFlowScheduler.from_config(source.config, **changed(source)[number])
    made.save_pretrained(tmp_path)
    again = ASFlowScheduler.from_pretrained(tmp_path)
    names = {key for key in made.config if not key.startswith("_")}
    assert {name: again.config[name] for name in names} == {n: made.config[n] for n in names}
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["shift"] == 3.0
    for scheduler in (made, again):
        scheduler.set_timesteps(4)
    same(again.sigmas, made.sigmas)


@pytest.mark.parametrize("number", range(2))
def test_a_saved_pipeline_draws_the_same_picture(number, tmp_path):
    pipe, options = sd3()
    how = {"num_inference_steps": 4, "output_type": "latent", **options}
    kept = changed(pipe.scheduler)[number]
    pipe.scheduler = ASFlowScheduler.from_config(pipe.scheduler.config, **kept)
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again.scheduler) is ASFlowScheduler
    for name, value in kept.items():
        assert again.scheduler.config[name] == (value.tolist() if name == "grid" else value)
    pictures = []
    for each in (pipe, again):
        each.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        pictures.append(each("a red boot", generator=generator, **how).images)
        pictures.append(each.scheduler.sigmas)
    same(pictures[0], pictures[2])
    same(pictures[1], pictures[3])
    assert pictures[1].tolist()[0] == 1.0
    assert (np.abs(pictures[1].numpy() - (kept["boundary"] - 1e-4)) < 1e-6).sum() == 1
