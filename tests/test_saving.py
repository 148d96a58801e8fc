"""A pipeline saved with each scheduler of ours loads again, and draws the same picture."""

import pickle

import pytest
import torch
from diffusers import DiffusionPipeline

import asddim_lib
from asddim_lib import (
    ASDDIMInverseScheduler,
    ASDDIMScheduler,
    ASFlowScheduler,
    DPMSolverGridScheduler,
    SensitivityProfile,
    UniPCGridScheduler,
    load_pipeline,
)
from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.evidence.profile import fingerprint
from asddim_lib.schedulers import __dict__ as exported
from tests.tiny import sd

SOLVERS = [UniPCGridScheduler, DPMSolverGridScheduler]
SCHEDULERS = [ASDDIMScheduler, ASDDIMInverseScheduler, *SOLVERS]


def profile(scheduler):
    schedule = fingerprint(NoiseSchedule.from_config(scheduler))
    g, error = [1.0, 1.5, 4.0], [0.1, None, 0.1]
    rest = ("frobenius", "vjp", 1, 4, 0, 7.5, "test", schedule, 100)
    return SensitivityProfile([900, 500, 50], g, error, *rest).to_dict()


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


@pytest.mark.parametrize("kind", [ASDDIMScheduler, ASDDIMInverseScheduler])
def test_without_an_allocation_a_scheduler_is_ddim(kind):
    assert kind().config["allocation"] == "uniform"
    assert kind.from_config(sd()[0].scheduler.config).config["allocation"] == "uniform"
