"""A pipeline saved with each scheduler of ours loads again, and draws the same picture."""

import pickle

import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

import asddim_lib
from asddim_lib import (
    ASDDIMInverseScheduler,
    ASDDIMScheduler,
    ASFlowScheduler,
    DPMSolverGridScheduler,
    Profile,
    UniPCGridScheduler,
    load_pipeline,
)
from asddim_lib.levels import fingerprint, noise_schedule
from asddim_lib.schedulers import __dict__ as exported
from asddim_lib.schedulers.place import hold
from experiments.quick import quicken
from experiments.stopping import stopped
from tests.refusals import refuses
from tests.tiny import sd

SOLVERS = [UniPCGridScheduler, DPMSolverGridScheduler]
SCHEDULERS = [ASDDIMScheduler, ASDDIMInverseScheduler, *SOLVERS]


def profile(scheduler):
    schedule = fingerprint(noise_schedule(scheduler))
    g, error = [1.0, 1.5, 4.0], [0.1, None, 0.1]
    rest = ("frobenius", "vjp", 1, 4, 0, 7.5, "test", schedule, 100)
    return Profile([900, 500, 50], g, error, *rest).to_dict()


def picture(pipe):
    generator = torch.Generator().manual_seed(3)
    how = {"num_inference_steps": 4, "generator": generator, "output_type": "latent"}
    return pipe("a red boot", **how).images


def test_the_list_is_whole():
    classes = {v for v in exported.values() if isinstance(v, type)}
    assert classes == {*SCHEDULERS, ASFlowScheduler}  # which `test_flow_config.py` saves


@pytest.mark.parametrize("load", [DiffusionPipeline.from_pretrained, load_pipeline])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_saved_pipeline_comes_back_as_it_was(kind, load, tmp_path):
    pipe, _ = sd()
    changes = {}
    if kind not in SOLVERS:
        changes = {"allocation": "combined", "lam": 2.0, "profile": profile(pipe.scheduler)}
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **changes)
    pipe.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert type(again.scheduler) is kind
    for name, value in changes.items():
        assert again.scheduler.config[name] == value
    close = 0 if load is not load_pipeline else 1e-3  # it lays weights out channels last
    torch.testing.assert_close(picture(again), picture(pipe), rtol=close, atol=close)
    alone = kind.from_pretrained(tmp_path / "scheduler")
    assert {**alone.config} == {**again.scheduler.config}
    again.save_pretrained(tmp_path / "again")  # and once more, from what was loaded
    assert type(load(tmp_path / "again").scheduler) is kind


@pytest.mark.parametrize("kind", [*SCHEDULERS, ASFlowScheduler])
def test_a_file_names_the_package_alone(kind):
    """Inner files may move: what is saved must not name them."""
    assert kind.__module__ == "asddim_lib"
    assert getattr(asddim_lib, kind.__name__) is kind
    assert pickle.loads(pickle.dumps(kind)) is kind


HELD = {
    "hold": lambda scheduler: hold(scheduler, [999, 500]),
    "hold in stopped": lambda scheduler: hold(stopped(scheduler, 1.0), [999, 500]),
    "stopped": lambda scheduler: stopped(scheduler, 1.0),
}


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("kind", [ASDDIMScheduler, DPMSolverMultistepScheduler])
def test_a_scheduler_that_no_file_can_hold_is_not_saved(kind, name, tmp_path):
    pipe, _ = sd()
    pipe.scheduler = HELD[name](kind.from_config(pipe.scheduler.config))
    for one in (pipe.scheduler, pipe):
        with refuses("scheduler"):
            one.save_pretrained(tmp_path)
        assert not list(tmp_path.glob("*.json"))
        assert not (tmp_path / "scheduler").exists()


def test_a_quick_pipeline_is_saved_with_its_network(tmp_path):
    pipe, _ = sd()
    weights = {name: value.bfloat16() for name, value in pipe.unet.state_dict().items()}
    quicken(pipe).save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert type(again.unet) is type(sd()[0].unet)
    torch.testing.assert_close(dict(again.unet.state_dict()), weights, rtol=0, atol=0)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    torch.testing.assert_close(picture(quicken(again)), picture(pipe), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [ASDDIMScheduler, ASDDIMInverseScheduler])
def test_without_an_allocation_a_scheduler_is_ddim(kind):
    assert kind().config["allocation"] == "uniform"
    assert kind.from_config(sd()[0].scheduler.config).config["allocation"] == "uniform"
