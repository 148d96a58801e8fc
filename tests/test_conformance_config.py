"""What diffusers requires of a scheduler's config and interface (its SchedulerCommonTest)."""

import inspect
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from asddim_lib import ASDDIMScheduler
from tests.ddim import deterministic, make, reloaded, run, same

# Saving, and other schedulers


def settings(scheduler):
    return {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"allocation": "noise", "p": 0.7},
        {"allocation": "karras"},
        {"trained_betas": [0.1, 0.3], "num_train_timesteps": 2},
    ],
)
def test_save_and_load(changes, tmp_path):
    scheduler = make(**changes)
    again = reloaded(scheduler, tmp_path)
    assert settings(again) == settings(scheduler)
    steps = 2 if "trained_betas" in changes else 10
    same(run(again, steps), run(scheduler, steps))


def test_trained_betas_may_be_an_array_of_another_length(tmp_path):
    scheduler = make(trained_betas=np.array([0.1, 0.3]))
    assert scheduler.betas.tolist() == pytest.approx([0.1, 0.3])
    assert reloaded(scheduler, tmp_path).betas.tolist() == scheduler.betas.tolist()


# A class whose package is not installed is a dummy, with the package's name in `_backends`.
COMPATIBLES = [c for c in DDIMScheduler().compatibles if not hasattr(c, "_backends")]


def test_it_is_compatible_with_what_ddim_is():
    # diffusers names the class itself; ours is no part of diffusers, so it names DDIM instead.
    assert set(make().compatibles) >= set(DDIMScheduler().compatibles)
    assert len(COMPATIBLES) >= 10


@pytest.mark.parametrize(
    "other", sorted(COMPATIBLES, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__
)
def test_its_config_survives_a_compatible_scheduler(other):
    # What a config leaves out is what its own class means by that: PNDM ends at ᾱ₀, DDIM at 1.
    said = {"set_alpha_to_one": True, "timestep_spacing": "trailing"}
    scheduler = make(prediction_type="v_prediction", **said)
    back = ASDDIMScheduler.from_config(other.from_config(scheduler.config).config)
    names = inspect.signature(ASDDIMScheduler.__init__).parameters.keys() - {"self"}
    assert {k: back.config[k] for k in names} == {k: scheduler.config[k] for k in names}


@pytest.mark.parametrize(
    "other",
    [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler],
)
def test_from_other_schedulers_and_back(other):
    shared = {
        "num_train_timesteps": 500,
        "beta_start": 0.001,
        "beta_end": 0.015,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
    }
    ours = ASDDIMScheduler.from_config(other(**shared).config, allocation="noise")
    back = other.from_config(ours.config)
    for key, value in shared.items():
        assert ours.config[key] == back.config[key] == value
    again = ASDDIMScheduler.from_config(back.config)  # settings that only ours has come back
    assert again.config["allocation"] == "noise"


# What pipelines call


def test_the_public_interface():
    scheduler, x = make(), deterministic()
    assert scheduler.init_noise_sigma == 1.0
    assert scheduler.order == 1
    assert len(scheduler) == 1000
    same(scheduler.scale_model_input(x, 0.0), x)
    parameters = inspect.signature(scheduler.set_timesteps).parameters
    assert {"num_inference_steps", "device", "timesteps"} <= set(parameters)
    ours = inspect.signature(scheduler.step).parameters
    assert list(ours) == list(inspect.signature(DDIMScheduler.step).parameters)[1:]


def test_a_step_without_a_grid_is_refused():
    with pytest.raises(ValueError, match="num_inference_steps"):
        make().step(deterministic(), 1, deterministic())
    with pytest.raises(ValueError, match="num_inference_steps"):
        make().set_timesteps(1001)


def test_add_noise_is_eq_1():
    scheduler, x, noise = make(), deterministic(), deterministic(reverse=True)
    scheduler.set_timesteps(50)
    t = scheduler.timesteps[5][None]
    bar = float(scheduler.alphas_cumprod[int(t)])
    noisy = scheduler.add_noise(x, noise, t)
    torch.testing.assert_close(noisy, bar**0.5 * x + (1 - bar) ** 0.5 * noise)
    same(noisy, make(DDIMScheduler).add_noise(x, noise, t))
    velocity = scheduler.get_velocity(x, noise, t)
    torch.testing.assert_close(velocity, bar**0.5 * noise - (1 - bar) ** 0.5 * x)


def test_no_argument_is_deprecated():
    assert "kwargs" not in inspect.signature(ASDDIMScheduler.__init__).parameters
    assert len(ASDDIMScheduler._deprecated_kwargs) == 0


def test_attributes_are_looked_up_as_in_diffusers():
    scheduler = make()
    scheduler.own = 5
    scheduler.register_to_config(registered=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scheduler.own == 5
        assert scheduler.save_pretrained == scheduler.save_pretrained
    with pytest.warns(FutureWarning):
        assert scheduler.registered == 5
    name = "'ASDDIMScheduler' object has no attribute 'missing'"
    with pytest.raises(AttributeError, match=name):
        _ = scheduler.missing
