"""Noise schedules and allocations against independent implementations and closed forms."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from asddim_lib import sigmas, timesteps
from asddim_lib.levels import noise_schedule
from asddim_lib.paper import (
    NoiseSchedule,
    allocate,
    gradient_step,
    noise_weights,
    normalize,
    step_sizes,
    steps_per_timestep,
)
from asddim_lib.sensitivity import gradient_norm
from tests.refusals import refuses
from tests.tiny import SD

SCHEDULE = noise_schedule(SD)
READINGS = st.sampled_from(["intent", "density", "literal"])


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("rescale", [False, True])
def test_schedule_equals_diffusers(name, rescale):
    reference = DDIMScheduler(beta_schedule=name, rescale_betas_zero_snr=rescale)
    schedule = noise_schedule(reference)
    np.testing.assert_allclose(
        schedule.alphas_cumprod, reference.alphas_cumprod.double().numpy(), rtol=2e-3, atol=2e-6
    )


def test_schedule_known_values():  # Eq 4
    schedule = NoiseSchedule(np.array([0.1, 0.5, 1.0]))
    low, middle = 1 / 3, (0.55 / 0.45) ** 0.5
    np.testing.assert_allclose(schedule.alphas_cumprod, [0.9, 0.45, 0.0], atol=1e-15)
    np.testing.assert_allclose(schedule.variance, [0.1, 0.55, 1.0])
    np.testing.assert_allclose(schedule.sigmas[:2], [low, middle])
    assert schedule.sigmas[2] == np.inf
    np.testing.assert_allclose(schedule.snr, [9.0, 0.45 / 0.55, 0.0])
    assert len(schedule) == 3


@pytest.mark.parametrize("betas", [[], [[0.1]], [0.0, 0.1], [0.1, 1.1], [0.1, float("nan")]])
def test_wrong_betas_are_refused(betas):
    with refuses("betas"):
        NoiseSchedule(np.array(betas))


def test_forward_steps_compose_to_the_closed_form():  # Eq 1
    mean, variance = torch.tensor(1.0, dtype=torch.float64), 0.0
    for t in range(500):
        mean, beta = SCHEDULE.forward_step(mean, t)
        variance = (1 - beta) * variance + beta
    assert mean.item() == pytest.approx(SCHEDULE.alphas_cumprod[499] ** 0.5, rel=1e-12)
    assert variance == pytest.approx(SCHEDULE.variance[499], rel=1e-12)


@pytest.mark.parametrize(("kind", "theirs"), [("small", "fixed_small"), ("large", "fixed_large")])
def test_reverse_step_equals_ddpm(kind, theirs):  # Eq 2
    config = {key: SD[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    reference = DDPMScheduler(**config, clip_sample=False, variance_type=theirs)
    x, noise = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0))
    mean, _ = SCHEDULE.reverse_step(x, noise, 0)
    expected = reference.step(noise, 0, x).prev_sample
    torch.testing.assert_close(expected, mean, rtol=1e-4, atol=1e-5)
    variance = SCHEDULE.reverse_step(x, noise, 600, kind)[1]
    assert float(reference._get_variance(600)) == pytest.approx(variance, rel=1e-3)


@st.composite
def problems(draw):
    """A step count K that T allows, noise weights, and a factor of the gradient."""
    size = draw(st.integers(1, 1500))
    steps = draw(st.integers(1, size))
    name = draw(st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]))
    config = {"num_train_timesteps": size, "beta_schedule": name}
    schedule = noise_schedule({**config, "beta_start": 0.0001, "beta_end": 0.02})
    g = np.random.default_rng(draw(st.integers(0, 99))).normal(size=size)
    g = np.exp(draw(st.floats(0, 4)) * g)
    p, eps = draw(st.floats(0, 8)), draw(st.sampled_from([0.0, 1e-8, 1e-3, 1.0]))
    factor = gradient_step(g, draw(st.floats(0, 50)), normalized=draw(st.booleans()))
    return steps, noise_weights(schedule.variance, p, eps), factor


@given(problem=problems(), reading=READINGS)
@settings(max_examples=200)
def test_every_grid_is_strict_and_has_its_ends(problem, reading):  # Eqs 11–13
    steps, weights, factor = problem
    grid = allocate(step_sizes(weights, factor, reading), steps)
    assert len(grid) == steps
    assert grid[0] == len(weights) - 1
    assert grid[-1] >= 0
    assert all(a > b for a, b in itertools.pairwise(grid))


@given(
    steps=st.integers(1, 100),
    lam=st.floats(0, 20),
    first=st.integers(0, 899),
    width=st.integers(10, 100),
    rise=st.floats(1, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=100)
def test_more_g_somewhere_never_thins_the_grid_there(steps, lam, first, width, rise, seed):
    g = np.random.default_rng(seed).lognormal(size=1000)
    higher = g.copy()
    higher[first : first + width] *= rise

    def count(g, slack):
        sizes = step_sizes(noise_weights(SCHEDULE.variance, 0.5), gradient_step(g, lam), "intent")
        return sum(first - slack <= t < first + width + slack for t in allocate(sizes, steps))

    # A timestep may round to the other side of a border.
    assert count(higher, slack=1) >= count(g, slack=0)


@given(low=st.floats(0, 3), more=st.floats(0, 3), steps=st.integers(1, 200))
@settings(max_examples=50)
def test_more_p_never_moves_a_timestep_up_in_noise(low, more, steps):
    a, b = (allocate(1 / noise_weights(SCHEDULE.variance, p), steps) for p in (low, low + more))
    assert all(y <= x for x, y in zip(a, b, strict=True))


@given(
    scale=st.floats(1e-6, 1e6),
    steps=st.integers(1, 200),
    reading=READINGS,
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40)
def test_units_of_g_and_of_the_noise_weight_do_not_matter(scale, steps, reading, seed):  # Eqs 6, 9
    g = np.random.default_rng(seed).lognormal(size=1000)
    weights = noise_weights(SCHEDULE.variance, 0.5)
    one, other = (
        allocate(step_sizes(w, gradient_step(f, 1.0), reading), steps)
        for w, f in ((weights, g), (scale * weights, scale * g))
    )
    assert np.abs(np.array(one) - other).max() <= 1  # rounding at a tie may fall either way


def test_weights_known_values():  # Eqs 5–7, 9
    assert noise_weights(np.array([0.25]), 2.0, 0.0)[0] == 4.0
    assert normalize(np.arange(5.0)).sum() == pytest.approx(1)
    assert steps_per_timestep(np.arange(5.0), 20).sum() == pytest.approx(20)
    np.testing.assert_allclose(gradient_step(np.array([1.0, 3.0]), 2.0), [1 / 2, 1 / 4])
    trailing = timesteps(SD | {"timestep_spacing": "trailing"}, 7, allocation="uniform")
    assert trailing == allocate(np.ones(1000), 7)
    assert sigmas(SD, 7)[-1] == SCHEDULE.sigmas[0]  # set_alpha_to_one is off


@pytest.mark.parametrize("estimator", ["vjp", "difference"])
def test_gradient_norm_of_a_linear_map(estimator):  # Eq 8
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(16, 16, dtype=torch.float64, generator=generator)
    x = torch.randn(3, 16, dtype=torch.float64, generator=generator)
    how = {"estimator": estimator, "probes": 400, "generator": torch.Generator().manual_seed(2)}
    value, error = gradient_norm(lambda x, t: x @ matrix.T, x, torch.tensor(5), **how)
    assert torch.all((value - matrix.norm()).abs() < 4 * error)
    assert torch.all(error < 0.05 * value)
