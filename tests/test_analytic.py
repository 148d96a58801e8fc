"""The exact models against automatic differentiation, closed forms and a diffusers pipeline."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler

from asddim_lib.errors import WrongUse
from asddim_lib.levels import Levels
from asddim_lib.paper import ddim_step
from experiments.mixtures import AnalyticUNet, GaussianMixture
from experiments.trial import trial

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}
SCHEDULE = Levels.from_diffusers(SD)


def mixture(d=4, m=3):
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(m, d, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, [0.3, 0.5, 0.8][:m], [0.2, 0.5, 0.3] if m == 3 else None)


@pytest.mark.parametrize("alpha", [0.999, 0.7, 0.05, 0.005])
def test_eps_is_the_score_and_the_jacobian_its_derivative(alpha):
    data = mixture()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    identity = torch.eye(4, dtype=torch.float64)
    logarithms = []
    for mean, std, weight in zip(data.means, data.stds, data.weights, strict=True):
        variance = alpha * std**2 + 1 - alpha
        normal = torch.distributions.MultivariateNormal(alpha**0.5 * mean, variance * identity)
        logarithms.append(normal.log_prob(x) + weight.log())
    log_p = torch.stack(logarithms).logsumexp(0)
    expected = -((1 - alpha) ** 0.5) * torch.autograd.grad(log_p.sum(), x)[0]
    torch.testing.assert_close(data.eps(x, alpha), expected, rtol=1e-9, atol=1e-11)
    rows = [
        torch.autograd.functional.jacobian(lambda row: data.eps(row[None], alpha)[0], row)
        for row in x.detach()
    ]
    jacobian = data.jacobian(x.detach(), alpha)
    torch.testing.assert_close(jacobian, torch.stack(rows), rtol=1e-9, atol=1e-11)


def test_scipy_and_the_closed_form_agree():
    one = GaussianMixture(torch.ones(1, 3), 0.5)
    twice = GaussianMixture(torch.ones(2, 3), 0.5)  # as a mixture, it is solved by SciPy
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = one.solve(x, 0.005, 0.999)
    torch.testing.assert_close(twice.solve(x, 0.005, 0.999), exact, rtol=1e-10, atol=1e-10)


def test_ddim_converges_at_first_order():
    data, steps = mixture(), (64, 128, 256, 512)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    errors, ends = [], np.log(SCHEDULE.sigmas[[-1, 0]])
    for count in steps:
        # A grid in log σ, finer than whole timesteps allow: this tests the update alone.
        sigmas = np.exp(np.linspace(*ends, count + 1))
        alphas = 1 / (1 + sigmas**2)
        y = x
        for a, b in itertools.pairwise(alphas):
            y, _ = ddim_step(y, data.eps(y, float(a)), torch.tensor(a), torch.tensor(b))
        exact = data.solve(x, float(alphas[0]), float(alphas[-1]))
        errors.append(float((y - exact).abs().mean()))
    slope = np.polyfit(np.log(steps[1:]), np.log(errors[1:]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.05)


def test_a_pipeline_draws_what_the_ode_says():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 16, generator=generator, dtype=torch.float64) / 4
    data = GaussianMixture(means, 0.1)
    scheduler = DDIMScheduler(**SD, timestep_spacing="trailing")
    pipe = DDIMPipeline(AnalyticUNet(data, SCHEDULE), scheduler)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    how = {"batch_size": 4, "num_inference_steps": 1000, "output_type": "np"}
    images = pipe(**how, generator=generator).images
    start = torch.randn(
        4, 1, 4, 4, generator=generator.manual_seed(0), dtype=torch.float64
    ).flatten(1)
    exact = data.solve(start, float(SCHEDULE.alphas_cumprod[-1]), 1.0).reshape(4, 4, 4, 1)
    exact = (exact / 2 + 0.5).clamp(0, 1).numpy()  # in a range of 1, as the images
    np.testing.assert_allclose(images, exact, atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((torch.ones(3), 0.5), "means"),
        ((torch.ones(2, 3), [0.5, 0.0]), "stds"),
        ((torch.ones(2, 3), [0.5, 0.1, 0.2]), "stds"),
        ((torch.ones(2, 3), 0.5, [1.0]), "weights"),
        ((torch.ones(2, 3), 0.5, [1.0, 0.0]), "weights"),
        ((torch.ones(2, 3), 0.5, [0.5, 0.6]), "weights"),
    ],
)
def test_a_wrong_mixture_is_refused(arguments, name):
    with pytest.raises(WrongUse, match=name):
        GaussianMixture(*arguments)


def test_a_trial_finds_the_gaussian_s_optimum():
    """Steps even in arctan(σ / c) are optimal for a Gaussian of standard deviation c.

    `dual-weighted` measures its grid, and does not know c.
    """
    data = GaussianMixture(torch.full((1, 4), 0.5, dtype=torch.float64), 1.0)
    others = ["trailing", "karras", "arctan", "equidistributed"]
    distance = trial(data, SD, 10, [*others, "dual-weighted"], count=32)
    ours = distance["dual-weighted"]
    # As a rival, arctan spends its last evaluation at timestep 0.
    assert ours == pytest.approx(distance["arctan"], rel=0.1)
    assert all(ours < distance[name] for name in others)
