"""noise, step and allocation: closed forms that a hand can check, and every refusal verbatim."""

import re

import numpy as np
import pytest
import torch

from asddim_lib import timesteps
from asddim_lib.configs import is_flow
from asddim_lib.errors import WrongUse
from asddim_lib.levels import Levels, noise_schedule
from asddim_lib.paper import (
    NoiseSchedule,
    allocate,
    combined_weight,
    ddim_step,
    distinct,
    gradient_step,
    noise_weights,
    predict,
    step_sizes,
)

ONE, HALF = torch.ones(1), torch.tensor(0.5)
SCHEDULE = NoiseSchedule(np.array([0.1, 0.2, 0.5]))
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def test_the_three_readings_of_eqs_10_to_12():
    weight, factor = np.array([1.0, 4.0]), np.array([0.5, 0.25])
    np.testing.assert_allclose(combined_weight(weight, factor), [0.5, 1.0])
    np.testing.assert_allclose(step_sizes(weight, factor, "literal"), [0.5, 1.0])
    np.testing.assert_allclose(step_sizes(weight, factor, "density"), [2.0, 1.0])
    np.testing.assert_allclose(step_sizes(weight, factor, "intent"), [0.5, 0.0625])
    np.testing.assert_allclose(step_sizes(weight, factor), [0.5, 0.0625])


def test_eq_9_divides_g_by_its_mean_unless_it_is_raw():
    g = np.array([0.0, 1.0, 5.0])
    np.testing.assert_allclose(gradient_step(g, 3.0), [1.0, 1 / 2.5, 1 / 8.5])
    np.testing.assert_allclose(gradient_step(g, 3.0, normalized=False), [1.0, 1 / 4, 1 / 16])


def test_steps_are_in_proportion_and_distinct():
    assert allocate([1, 1, 1, 1, 2, 2, 2, 2], 6) == [7, 5, 3, 2, 1, 0]
    assert allocate([1.0, 1.0, 3.0, 3.0], 2) == [3, 0]
    assert distinct(np.array([5.0, 5.0, 5.0])) == [5, 4, 3]
    assert distinct(np.array([2.4, 1.6, 1.4])) == [2, 1, 0]
    assert distinct(np.array([9.0, 0.2, 0.1])) == [9, 1, 0]


def test_the_first_reverse_steps():  # Eq 2 where there is little or nothing before
    x, epsilon = torch.tensor([2.0]), torch.tensor([1.0])
    mean, variance = SCHEDULE.reverse_step(x, epsilon, 0)
    assert float(mean) == pytest.approx((2 - 0.1 / 0.1**0.5) / 0.9**0.5)
    assert variance == 0.0
    assert SCHEDULE.reverse_step(x, epsilon, 1)[1] == pytest.approx(0.2 * 0.1 / 0.28)
    assert SCHEDULE.reverse_step(x, epsilon, 1, "large")[1] == pytest.approx(0.2)


def test_the_cosine_schedule_is_capped_and_a_rescaled_one_keeps_its_start():
    assert noise_schedule({"beta_schedule": "squaredcos_cap_v2"}).betas.max() == 0.999
    plain, rescaled = (
        noise_schedule({**SD, "rescale_betas_zero_snr": flag}).alphas_cumprod
        for flag in (False, True)
    )
    assert rescaled[0] == pytest.approx(plain[0], rel=1e-12)
    assert rescaled[-1] == 0.0


def test_everything_is_float64_whatever_comes_in():
    single = np.array([0.1, 0.25], np.float32)
    schedules = (
        NoiseSchedule(single),
        NoiseSchedule([0.1, 0.25]),
        noise_schedule({"trained_betas": single}),
    )
    for schedule in schedules:
        assert schedule.betas.dtype == schedule.alphas_cumprod.dtype == np.float64
    assert gradient_step(single, 1.0).dtype == np.float64
    assert allocate(np.array([1, 1, 2, 2], np.float32), 2) == allocate([1.0, 1.0, 2.0, 2.0], 2)


def test_flow_matching_is_known_by_its_shift():
    assert is_flow({"shift": 3.0})
    assert not is_flow({"shift": 3.0, "beta_start": 0.1})
    assert not is_flow({})
    levels = Levels.from_diffusers({"shift": 3.0, "num_train_timesteps": 2})
    np.testing.assert_allclose(levels.shares, [0.75, 1.0])


def test_defaults_are_the_common_case():
    x0, epsilon = predict(ONE, ONE, HALF)
    assert (x0, epsilon) == predict(ONE, ONE, HALF, "epsilon")

    def step(**how):
        return ddim_step(2 * ONE, ONE, HALF, 0.8 * ONE, clean=lambda x0: 0.5 * x0, **how)[0]

    assert step() == step(keep_epsilon=True) != step(keep_epsilon=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: NoiseSchedule(np.ones((2, 2))),
            "betas is (2, 2); give one number per training timestep",
        ),
        (
            lambda: NoiseSchedule(np.array([0.0])),
            "betas is some outside (0, 1]; give variances of single noising steps",
        ),
        (
            lambda: noise_schedule({**SD, "beta_schedule": "cubic"}),
            "beta_schedule is 'cubic'; "
            "use linear, scaled_linear, squaredcos_cap_v2, sigmoid or trained_betas",
        ),
        (
            lambda: noise_schedule(3),
            "scheduler is int; give a diffusers scheduler or its config",
        ),
        (
            lambda: SCHEDULE.reverse_step(ONE, ONE, 1, "medium"),
            "variance is medium; use small or large",
        ),
        (
            lambda: noise_schedule(
                {"shift": 1.0, "num_train_timesteps": 2, "use_dynamic_shifting": True}
            ),
            "mu is None; its shift depends on the picture's size: give mu, as the pipeline gives "
            "it",
        ),
        (
            lambda: predict(ONE, ONE, HALF, "score"),
            "prediction_type is score; use one of epsilon, v_prediction, sample",
        ),
        (
            lambda: ddim_step(ONE, ONE, HALF, HALF, eta=1.5, noise=ONE),
            "eta is 1.5; give a number from 0 (deterministic) to 1 (DDPM's noise)",
        ),
        (
            lambda: ddim_step(ONE, ONE, HALF, HALF, eta=0.5),
            "noise is None; eta > 0 needs standard normal noise of the sample's shape",
        ),
        (
            lambda: noise_weights(np.ones(1), -1.0),
            "p is -1.0; give a finite number of at least 0 (0 ignores the noise level)",
        ),
        (
            lambda: noise_weights(np.ones(1), np.inf),
            "p is inf; give a finite number of at least 0 (0 ignores the noise level)",
        ),
        (
            lambda: noise_weights(np.ones(1), 1.0, -1.0),
            "eps is -1.0; give a small number of at least 0",
        ),
        (
            lambda: noise_weights(np.ones(1), 1.0, np.inf),
            "eps is inf; give a small number of at least 0",
        ),
        (
            lambda: gradient_step(np.ones(2), -1.0),
            "lam is -1.0; give a finite number of at least 0 (0 ignores the gradient)",
        ),
        (
            lambda: gradient_step(np.ones(2), np.inf),
            "lam is inf; give a finite number of at least 0 (0 ignores the gradient)",
        ),
        *[
            (
                lambda g=g: gradient_step(np.array(g), 1.0),
                "g is not all finite, non-negative, some positive; calibrate again",
            )
            for g in ([np.nan, 1.0], [-1.0, 2.0], [0.0, 0.0], [np.inf, 1.0])
        ],
        (
            lambda: step_sizes(np.ones(1), np.ones(1), "free"),
            "reading is free; use one of intent, density, literal",
        ),
        *[
            (
                lambda k=k: allocate(np.ones(3), k),
                f"num_inference_steps is {k!r}; give a whole number, 1 to 3",
            )
            for k in (0, 4, 2.5, -1)
        ],
        *[
            (
                lambda h=h: allocate(np.array(h), 1),
                "h is not all finite and positive; give a step size for every timestep",
            )
            for h in ([np.nan, 1.0], [-1.0, 1.0], [np.inf, 1.0])
        ],
        (
            lambda: timesteps(SD, 5, allocation="noise", p=0.0),
            "p is 0.0; give a positive number, or use allocation uniform or gradient",
        ),
    ],
)
def test_every_refusal_names_the_argument_its_value_and_what_to_do(call, message):
    with pytest.raises(WrongUse, match=f"^{re.escape(message)}$"):
        call()
