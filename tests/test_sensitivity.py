"""Estimators of Eq 8 against the exact Jacobian of a mixture."""

import copy

import pytest
import torch

from asddim_lib import load_pipeline
from asddim_lib.core.sensitivity import COST, gradient_norm
from asddim_lib.measure.calibrate import record
from asddim_lib.testing.mixtures import GaussianMixture

DATA = GaussianMixture(
    2 * torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    [0.3, 0.5, 0.8],
    [0.2, 0.5, 0.3],
)
Z99 = 2.5758


def points(alpha, count, seed):
    generator = torch.Generator().manual_seed(seed)
    clean = DATA.sample(count, generator)
    return alpha**0.5 * clean + (1 - alpha) ** 0.5 * torch.randn(
        clean.shape, generator=generator, dtype=torch.float64
    )


@pytest.mark.parametrize("estimator", COST["frobenius"])
@pytest.mark.parametrize("alpha", [0.99, 0.5, 0.1, 0.005])
def test_intervals_cover_the_exact_norm(estimator, alpha):
    x = points(alpha, 100, 1)  # a hundred trials, each at a point of its own
    exact = torch.linalg.matrix_norm(DATA.jacobian(x, alpha))
    value, error = gradient_norm(
        lambda y, t: DATA.eps(y, alpha),
        x,
        torch.tensor(0),
        estimator=estimator,
        probes=400,
        generator=torch.Generator().manual_seed(2),
    )
    assert ((value - exact).abs() <= Z99 * error + 1e-6 * exact).sum() >= 97
    assert (error < 0.1 * exact).all()


@pytest.mark.parametrize("alpha", [0.99, 0.5, 0.1, 0.005])
def test_power_iteration_finds_the_spectral_norm(alpha):
    x = points(alpha, 100, 3)
    exact = torch.linalg.matrix_norm(DATA.jacobian(x, alpha), ord=2)
    value, error = gradient_norm(
        lambda y, t: DATA.eps(y, alpha),
        x,
        torch.tensor(0),
        norm="spectral",
        probes=30,
        generator=torch.Generator().manual_seed(4),
    )
    assert ((value / exact - 1).abs() < 0.01).all()
    assert (error < 0.01 * exact).all()


def test_chunks_do_not_change_a_deterministic_answer_and_stay_small():
    x, t, seen = points(0.5, 10, 5), torch.arange(10), []

    def eps(y, times):
        seen.append(len(y))
        return y * times.reshape(-1, 1)

    value, _ = gradient_norm(eps, x, t, probes=3, batch_size=4)
    torch.testing.assert_close(value, t.double() * 6**0.5)  # J = t·I of six dimensions
    assert max(seen) <= 4


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"norm": "nuclear"}, "norm is nuclear"),
        ({"estimator": "power"}, "estimator is power"),
        ({"norm": "spectral", "estimator": "vjp"}, "estimator is vjp"),
        ({"probes": 0}, "probes is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_choices_are_named(how, message):
    with pytest.raises(ValueError, match=message):
        gradient_norm(lambda y, t: y, torch.ones(1, 2), torch.tensor(0), **how)


@pytest.mark.parametrize(
    "how", [{"estimator": e} for e in COST["frobenius"]] + [{"norm": "spectral"}]
)
def test_a_network_that_fails_is_named_with_its_timestep(how):
    with pytest.raises(ValueError, match="timestep 7"):
        gradient_norm(lambda y, t: y * float("nan"), torch.ones(1, 2), torch.tensor(7), **how)


@pytest.fixture(scope="module")
def path():
    """A network with fused attention, its text, and samples at high and low noise of its own path."""
    pipe, prompts = (
        load_pipeline(),
        ["a red boot on a white ground", "two blue bags on a tan ground"],
    )
    made = record(pipe, prompts, num_steps=12, guidance_scale=1.0)
    text = pipe.encode_prompt(prompts, "cpu", 1, False)[0]
    return (
        pipe.unet,
        text,
        [
            (made.samples[k].reshape(-1, 4, 16, 16), torch.tensor(made.timesteps[k]))
            for k in (1, 11)
        ],
    )


@pytest.mark.parametrize(
    "how",
    [{"estimator": e} for e in COST["frobenius"]] + [{"norm": "spectral"}],
    ids=lambda how: next(iter(how.values())),
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_fused_attention_agree_with_float32(path, how, dtype):
    network, text, places = path
    assert (
        type(network.mid_block.attentions[0].transformer_blocks[0].attn1.processor).__name__
        == "AttnProcessor2_0"
    )
    for x, t in places:
        found = []
        for kind in (torch.float32, dtype):
            cast = copy.deepcopy(network).to(kind)
            eps = lambda y, times, cast=cast, kind=kind: cast(y, times, text.to(kind)).sample  # noqa: E731
            found.append(
                gradient_norm(
                    eps, x.to(kind), t, probes=3, generator=torch.Generator().manual_seed(0), **how
                )[0]
            )
        torch.testing.assert_close(found[1], found[0], rtol=0.03, atol=0)


def test_attention_kernels_are_restored():
    before = (
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
    )
    gradient_norm(
        lambda y, t: torch.nn.functional.scaled_dot_product_attention(y, y, y),
        torch.randn(1, 1, 3, 4),
        torch.tensor(0),
        norm="spectral",
        probes=2,
    )
    assert (
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
    ) == before
