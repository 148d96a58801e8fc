"""What diffusers asks of any scheduler (its SchedulerCommonTest, written anew) and of DDIM."""

import inspect

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

CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": True,
}


def make(**changes):
    return ASDDIMScheduler(**{**CONFIG, "allocation": "uniform", **changes})


def sample():
    return (torch.arange(4 * 3 * 8 * 8).reshape(3, 8, 8, 4) / (4 * 3 * 8 * 8)).permute(3, 0, 1, 2)


def model(x, t):
    """diffusers' dummy network."""
    return x * (t if isinstance(t, torch.Tensor) else torch.tensor(t)) / (t + 1)


def full_loop(scheduler, steps=10):
    x = sample()
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t), t, x, 0.0).prev_sample
    return x


@pytest.mark.parametrize(
    ("changes", "total", "mean"),
    [
        ({}, 172.0067, 0.223967),
        ({"prediction_type": "v_prediction"}, 52.5302, 0.0684),
        ({"set_alpha_to_one": True, "beta_start": 0.01}, 149.8295, 0.1951),
        ({"set_alpha_to_one": False, "beta_start": 0.01}, 149.0784, 0.1941),
    ],
)
def test_full_loop_gives_diffusers_own_sums(changes, total, mean):
    found = full_loop(make(**changes)).abs()
    assert float(found.sum()) == pytest.approx(total, abs=1e-2)
    assert float(found.mean()) == pytest.approx(mean, abs=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"allocation": "noise", "p": 0.7},
        {"allocation": "karras"},
        {"trained_betas": [0.1, 0.3], "num_train_timesteps": 2},
    ],
)
def test_save_and_load_round_trip(changes, tmp_path):
    made = make(**changes)
    made.save_config(tmp_path)
    again = ASDDIMScheduler.from_pretrained(tmp_path)
    assert {k: v for k, v in again.config.items() if not k.startswith("_")} == {
        k: v for k, v in made.config.items() if not k.startswith("_")
    }
    steps = 2 if "trained_betas" in changes else 10
    torch.testing.assert_close(full_loop(again, steps), full_loop(made, steps), rtol=0, atol=0)


@pytest.mark.parametrize(
    "other",
    [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler],
)
def test_from_and_to_other_schedulers(other):
    theirs = other(
        num_train_timesteps=500,
        beta_start=0.001,
        beta_end=0.015,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
    )
    ours = ASDDIMScheduler.from_config(theirs.config, allocation="noise")
    back = other.from_config(ours.config)
    for key in (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "prediction_type",
    ):
        assert ours.config[key] == theirs.config[key] == back.config[key]
    returned = ASDDIMScheduler.from_config(back.config)  # what only ours knows travels along
    assert returned.config["allocation"] == "noise"


@pytest.mark.parametrize("t", [0, 1, 10, 49, 500])
def test_step_off_the_grid_takes_the_next_smaller_point(t):
    scheduler = make(timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    x = sample()
    found = scheduler.step(model(x, t), t, x).prev_sample
    below = [s for s in scheduler.timesteps.tolist() if s < t]
    reference = make()
    reference.set_timesteps(timesteps=[t, below[0]] if below else [t])
    assert torch.equal(found, reference.step(model(x, t), t, x).prev_sample)


def test_outputs_as_tuple_and_dict_agree():
    scheduler = make()
    scheduler.set_timesteps(10)
    x, t = sample(), scheduler.timesteps[4]
    as_dict, as_tuple = (
        scheduler.step(model(x, t), t, x),
        scheduler.step(model(x, t), t, x, return_dict=False),
    )
    assert torch.equal(as_dict.prev_sample, as_tuple[0])
    assert torch.equal(as_dict.pred_original_sample, as_tuple[1])


def test_the_rest_of_the_face():
    scheduler, x = make(), sample()
    scheduler.set_timesteps(500)
    assert len(scheduler.timesteps) == 500
    assert scheduler.init_noise_sigma == 1.0
    assert scheduler.order == 1
    assert torch.equal(scheduler.scale_model_input(x, 5), x)
    noisy = scheduler.add_noise(x, torch.ones_like(x), torch.tensor([15] * len(x)))
    bar = scheduler.alphas_cumprod[15]
    torch.testing.assert_close(noisy, bar**0.5 * x + (1 - bar) ** 0.5)
    assert (
        "timesteps" in inspect.signature(scheduler.set_timesteps).parameters
    )  # pipelines look for the name
    assert (
        scheduler.step(
            x, scheduler.timesteps[0], x, eta=1.0, generator=torch.Generator().manual_seed(0)
        ).prev_sample.shape
        == x.shape
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    scheduler = make(allocation="noise")
    scheduler.set_timesteps(5)
    x = sample().to(dtype)
    for t in (
        scheduler.timesteps[2],
        scheduler.timesteps[2].repeat(len(x)),
        int(scheduler.timesteps[2]),
    ):
        assert scheduler.step(x, t, x).prev_sample.dtype == dtype


@pytest.mark.parametrize(
    "how",
    [
        {"clip_sample": True, "clip_sample_range": 0.5},
        {"clip_sample": False, "thresholding": True, "sample_max_value": 0.8},
    ],
)
@pytest.mark.parametrize("clipped", [False, True])
def test_clipping_and_thresholding_equal_diffusers(how, clipped):
    ours, theirs = make(**how), DDIMScheduler(**{**CONFIG, **how})
    x = 3 * sample() - 1
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(8)
    t = ours.timesteps[3]
    found = [
        s.step(model(x, t), t, x, 0.3, clipped, variance_noise=torch.ones_like(x)).prev_sample
        for s in (ours, theirs)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("how", [{}, {"eta": 0.5}, {"use_clipped_model_output": True}])
def test_step_never_waits_for_a_device(how):
    """Meta tensors have no values: whoever asks for one, as a wait for a device would, is refused."""
    scheduler = make(allocation="noise")
    scheduler.set_timesteps(10, device="meta")
    x = torch.empty(2, 3, 8, 8, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        bool(x.sum() > 0)
    for t in scheduler.timesteps[:9]:
        x = scheduler.step(
            torch.empty_like(x), t, x, variance_noise=torch.empty_like(x), **how
        ).prev_sample
    assert x.shape == (2, 3, 8, 8)


def test_linspace_where_diffusers_is_wrong():
    """diffusers' DDIM steps back by T // K whatever the grid: on linspace it lands between grid points. Ours lands on them."""
    scheduler, reference = (
        make(timestep_spacing="linspace", clip_sample=False),
        DPMSolverMultistepScheduler,
    )
    scheduler.set_timesteps(7)
    x, t = sample().double(), scheduler.timesteps
    exact = reference(
        beta_start=0.0001,
        beta_end=0.02,
        solver_order=1,
        algorithm_type="dpmsolver++",
        final_sigmas_type="zero",
    )
    exact.set_timesteps(timesteps=t.tolist())
    ours = scheduler.step(model(x, t[2]), t[2], x).prev_sample
    exact._step_index = 2
    theirs = exact.step(model(x, t[2]), t[2], x).prev_sample
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
