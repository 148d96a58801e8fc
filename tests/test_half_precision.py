"""Half precision: coefficients take their roots in float32, and only products are rounded."""

import copy
import itertools

import pytest
import torch

from asddim_lib import ASDDIMScheduler
from experiments.quick import quicken
from tests.zoo.entry import entry


def make(**changes):
    return ASDDIMScheduler(**{"allocation": "noise", "clip_sample": False, **changes})


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact_step(x, output, a, b, prediction_type, eta, noise):
    """Eq 3 in float64, and the sum of its terms' magnitudes, which bounds what rounding does."""
    s, n = a**0.5, (1 - a) ** 0.5
    sigma = eta * ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5
    direction = (1 - b - sigma**2).clamp(min=0) ** 0.5
    weights = {  # of x and the output in x̂_0, then in ε
        "epsilon": (1 / s, -n / s, 0 * s, 1 + 0 * s),
        "sample": (0 * s, 1 + 0 * s, 1 / n, -s / n),
        "v_prediction": (s, -n, n, s),
    }
    c, d, e, f = weights[prediction_type]
    terms = [b**0.5 * c * x, b**0.5 * d * output, direction * e * x, direction * f * output]
    terms.append(sigma * noise)
    return sum(terms), sum(term.abs() for term in terms)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("form", ["number", "tensor", "per sample"])
def test_half_precision_rounds_and_no_more(dtype, prediction_type, eta, form):
    """The error is at most 8 roundings of the terms' magnitudes, at every noise level."""
    scheduler = make(prediction_type=prediction_type)
    grid = [999, 700, 300, 40, 1, 0]
    scheduler.set_timesteps(timesteps=grid)
    shape, bars = (3, 4, 8, 8), scheduler.alphas_cumprod.double()
    x, output, noise = (normal(*shape, seed=seed, dtype=dtype) for seed in range(3))
    for t, below in itertools.zip_longest(grid, grid[1:]):
        given = {"number": t, "tensor": torch.tensor(t), "per sample": torch.tensor([t] * 3)}
        result = scheduler.step(output, given[form], x, eta, variance_noise=noise).prev_sample
        assert result.dtype == dtype
        a, b = bars[t], bars[below] if below is not None else torch.tensor(1.0).double()
        halves = (x.double(), output.double(), a, b, prediction_type, eta, noise.double())
        exact, magnitude = exact_step(*halves)
        bound = 8 * torch.finfo(dtype).eps / 2 * magnitude + torch.finfo(dtype).smallest_normal
        assert ((result.double() - exact).abs() <= bound).all(), t


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("t", [0, 1, 40, 500, 999])
def test_added_noise_is_not_rounded_away(dtype, t):
    """√(1 − ᾱ₀) is 0.01; from a rounded ᾱ₀ it would be 0."""
    scheduler, x, noise = make(), normal(2, 4, dtype=dtype), normal(2, 4, seed=1, dtype=dtype)
    bar, times = scheduler.alphas_cumprod[t].double(), torch.tensor([t, t])
    s, n = bar**0.5, (1 - bar) ** 0.5
    for result, terms in [
        (scheduler.add_noise(x, noise, times), (s * x.double(), n * noise.double())),
        (scheduler.get_velocity(x, noise, times), (s * noise.double(), -n * x.double())),
    ]:
        bound = 4 * torch.finfo(dtype).eps / 2 * (terms[0].abs() + terms[1].abs())
        assert result.dtype == dtype
        assert ((result.double() - sum(terms)).abs() <= bound).all()


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sdxl-controlnet", "sd15-pag", "animatediff"])
def test_a_quick_network_takes_whatever_its_pipeline_gives_it(name):
    one = entry(name)
    run = one.run().prepared_with(one.scheduler)
    plain, own = run.ends([300, 100]), one.pipe.unet
    one.pipe.unet = copy.deepcopy(own)
    try:
        quicken(one.pipe)
        assert (run.ends([300, 100]) - plain).norm() < 0.05 * plain.norm()
    finally:
        one.pipe.unet = own


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_type_is_kept(dtype):
    scheduler, x = make(), normal(2, 4, 8, 8, dtype=dtype)
    scheduler.set_timesteps(5)
    t = scheduler.timesteps[2]
    for form, eta in itertools.product((t, t.repeat(2), int(t)), (0.0, 1.0)):
        output = scheduler.step(x, form, x, eta)
        assert {value.dtype for value in output.values()} == {dtype}
