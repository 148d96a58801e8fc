"""The oracle itself, against automatic differentiation, closed forms and diffusers' pipeline."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler

from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.core.step import ddim_step
from asddim_lib.testing.mixtures import AnalyticUNet, GaussianMixture
from asddim_lib.testing.trial import trial

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}
SCHEDULE = NoiseSchedule.from_config(SD)


def mixture(d=4, m=3):
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(m, d, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, [0.3, 0.5, 0.8][:m], [0.2, 0.5, 0.3] if m == 3 else None)


@pytest.mark.parametrize("alpha", [0.999, 0.7, 0.05, 0.005])
def test_eps_is_the_score_and_the_jacobian_its_derivative(alpha):
    data = mixture()
    x = torch.randn(
        5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).requires_grad_()
    parts = [
        torch.distributions.MultivariateNormal(
            alpha**0.5 * mean, (alpha * std**2 + 1 - alpha) * torch.eye(4, dtype=torch.float64)
        )
        for mean, std in zip(data.means, data.stds, strict=True)
    ]
    log_p = torch.stack(
        [part.log_prob(x) + weight.log() for part, weight in zip(parts, data.weights, strict=True)]
    ).logsumexp(0)
    score = torch.autograd.grad(log_p.sum(), x)[0]
    torch.testing.assert_close(
        data.eps(x, alpha), -((1 - alpha) ** 0.5) * score, rtol=1e-9, atol=1e-11
    )
    exact = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda row: data.eps(row[None], alpha)[0], row)
            for row in x.detach()
        ]
    )
    torch.testing.assert_close(data.jacobian(x.detach(), alpha), exact, rtol=1e-9, atol=1e-11)


def test_scipy_and_the_closed_form_agree():
    one = GaussianMixture(torch.ones(1, 3), 0.5)
    twice = GaussianMixture(
        torch.ones(2, 3), 0.5
    )  # the same Gaussian, as a mixture: SciPy solves it
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(
        twice.solve(x, 0.005, 0.999), one.solve(x, 0.005, 0.999), rtol=1e-10, atol=1e-10
    )


def test_ddim_converges_at_first_order():
    data, steps = mixture(), (64, 128, 256, 512)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    errors = []
    for count in (
        steps
    ):  # a grid in half-log-SNR, finer than whole timesteps allow: the update alone is tried
        sigmas = np.exp(
            np.linspace(np.log(SCHEDULE.sigmas[-1]), np.log(SCHEDULE.sigmas[0]), count + 1)
        )
        alphas = 1 / (1 + sigmas**2)
        y = x
        for a, b in itertools.pairwise(alphas):
            y, _ = ddim_step(y, data.eps(y, float(a)), torch.tensor(a), torch.tensor(b))
        errors.append(float((y - data.solve(x, float(alphas[0]), float(alphas[-1]))).abs().mean()))
    slope = np.polyfit(np.log(steps[1:]), np.log(errors[1:]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.05)


def test_a_pipeline_draws_what_the_ode_says():
    data = GaussianMixture(
        torch.randn(3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 4, 0.1
    )
    scheduler = DDIMScheduler(**SD, timestep_spacing="trailing")
    pipe = DDIMPipeline(AnalyticUNet(data, SCHEDULE), scheduler)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        batch_size=4,
        num_inference_steps=1000,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    start = torch.randn(
        4, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).flatten(1)
    exact = data.solve(start, float(SCHEDULE.alphas_cumprod[-1]), 1.0).reshape(4, 4, 4, 1)
    np.testing.assert_allclose(
        made, (exact / 2 + 0.5).clamp(0, 1).numpy(), atol=0.01
    )  # of a range of 1


def test_a_trial_finds_the_gaussian_s_optimum():
    """Steps even in arctan(σ / c) are the best for a Gaussian of deviation c; ours is measured, and knows nothing of c."""
    data = GaussianMixture(torch.full((1, 4), 0.5, dtype=torch.float64), 1.0)
    found = trial(
        data, SD, 10, ["trailing", "karras", "arctan", "equidistributed", "dual-weighted"], count=32
    )
    assert found["dual-weighted"] == pytest.approx(
        found["arctan"], rel=0.1
    )  # as a rival, arctan spends its last evaluation at timestep 0
    assert all(
        found["dual-weighted"] < found[name]
        for name in ("trailing", "karras", "arctan", "equidistributed")
    )
