"""The estimators of Eq 8 against the exact Jacobian of a mixture."""

import copy

import numpy as np
import pytest
import torch

from asddim_lib.calibration import record
from asddim_lib.sensitivity import COST, gradient_norm
from experiments.mixtures import GaussianMixture
from tests.refusals import refuses
from tests.tiny import sd

DATA = GaussianMixture(
    2 * torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    [0.3, 0.5, 0.8],
    [0.2, 0.5, 0.3],
)
Z99 = 2.5758
ALL = [{"estimator": e} for e in COST["frobenius"]] + [{"norm": "spectral"}]


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
        0,
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
        0,
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


@pytest.mark.parametrize("how", ALL)
def test_a_network_that_fails_is_named_with_its_timestep(how):
    with refuses("eps"):
        gradient_norm(lambda y, t: y * float("nan"), torch.ones(1, 2), torch.tensor(7), **how)


@pytest.fixture(scope="module")
def places():
    """A network with fused attention, its text, and samples at high and low noise of its path."""
    prompts = ["a red boot on a white ground", "two blue bags on a tan ground"]
    pipe, _ = sd()
    size = {"height": 32, "width": 32}
    recorded = record(pipe, prompts, num_steps=12, guidance_scale=1.0, **size)
    text = pipe.encode_prompt(prompts, "cpu", 1, False)[0]
    samples = recorded.samples.reshape(len(recorded), -1, 4, 16, 16)
    processor = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor
    assert type(processor).__name__ == "AttnProcessor2_0"
    return pipe.unet, text, [(samples[k], torch.tensor(recorded.timesteps[k])) for k in (1, 11)]


@pytest.mark.parametrize("how", ALL, ids=lambda how: next(iter(how.values())))
def test_half_precision_and_fused_attention_agree_with_float32(places, how):
    network, text, samples = places

    def measure(kind, x, t):
        cast = copy.deepcopy(network).to(kind)
        eps = lambda y, times: cast(y, times, text.to(kind)).sample  # noqa: E731
        generator = torch.Generator().manual_seed(0)
        return gradient_norm(eps, x.to(kind), t, probes=3, generator=generator, **how)[0]

    for x, t in samples:
        exact = measure(torch.float32, x, t)
        for kind in (torch.bfloat16, torch.float16):
            torch.testing.assert_close(measure(kind, x, t), exact, rtol=0.03, atol=0)


def test_attention_kernels_are_restored():
    def kernels():
        cuda = torch.backends.cuda
        return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()

    before = kernels()
    attention = torch.nn.functional.scaled_dot_product_attention
    x = torch.randn(1, 1, 3, 4)
    gradient_norm(lambda y, t: attention(y, y, y), x, 0, norm="spectral", probes=2)
    assert kernels() == before


@pytest.mark.parametrize("number", [300, 300.0, np.int64(300), np.float64(300), np.array(300)])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_number_is_a_timestep(number, batch_size):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    times = []

    def eps(y, t):
        times.append(t)
        return y * t.reshape(-1, 1)

    value, _ = gradient_norm(eps, x, number, batch_size=batch_size)
    torch.testing.assert_close(value, torch.full((5,), 300 * 6**0.5, dtype=torch.float64))
    assert all(isinstance(t, torch.Tensor) and t.dtype != torch.float64 for t in times)


@pytest.mark.parametrize("times", [[1, 2], torch.arange(3), torch.zeros(5, 1)])
def test_timesteps_that_fit_no_sample_are_named(times):
    with refuses("t"):
        gradient_norm(lambda y, t: y, torch.ones(5, 2), times)


@pytest.mark.parametrize("how", ALL, ids=lambda how: next(iter(how.values())))
def test_inference_mode_changes_no_number(how):
    """The samples, the timesteps, the text and the weights may all be inference tensors."""

    def measure():
        network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6))
        generator = torch.Generator().manual_seed(0)
        weights = {
            name: torch.randn(value.shape, generator=generator)
            for name, value in network.state_dict().items()
        }
        network.load_state_dict(weights)
        x, text = (torch.randn(4, 6, generator=generator) for _ in range(2))
        t = torch.tensor(2.0)
        eps = lambda y, times: network(y + times * text) * text.cos()  # noqa: E731
        return gradient_norm(eps, x, t, generator=torch.Generator().manual_seed(1), **how)

    expected = measure()
    with torch.inference_mode():
        result = measure()
    for value, right in zip(result, expected, strict=True):
        assert torch.equal(value, right)


@pytest.mark.parametrize("how", [{"estimator": "vjp"}, {"norm": "spectral"}])
def test_text_from_inference_mode_is_refused_outside_of_it(how):
    with torch.inference_mode():
        text = torch.ones(2)
    with refuses("estimator"):
        gradient_norm(lambda y, t: (y * text).sin() * text, torch.ones(1, 2), 7, **how)
    value, _ = gradient_norm(
        lambda y, t: y * text, torch.ones(1, 2), 7, estimator="difference", probes=4
    )
    torch.testing.assert_close(
        value, torch.tensor([2**0.5], dtype=torch.float64), rtol=1e-4, atol=0
    )
