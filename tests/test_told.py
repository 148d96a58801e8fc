"""Decoupled time: what the network is told, and what is drawn, against loops in closed form."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from asddim_lib import ASDDIMScheduler, ASFlowScheduler, UniPCGridScheduler, timesteps
from asddim_lib.grids.table import METHODS
from asddim_lib.levels import noise_schedule
from experiments.mixtures import GaussianMixture

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PLAIN = {**SD, "clip_sample": False, "set_alpha_to_one": True}
SIGMAS = noise_schedule(SD).sigmas
DATA = GaussianMixture(torch.tensor([[0.5, -1.0, 0.2]]), 0.6)
SHARES = st.floats(-1, 1)
#: The methods of the table that a scheduler lays from nothing but its config.
GRIDS = [name for name, m in METHODS.items() if m.needs == "nothing"]


@st.composite
def grids(draw, most=12):
    found = st.lists(st.integers(0, 999), min_size=1, max_size=most, unique=True)
    return sorted(draw(found), reverse=True)


def told(sigmas, share, lowest, highest):
    """σ as the network is told it, step by step."""
    ends, begins = [*sigmas[1:], lowest], [highest, *sigmas[:-1]]
    found = []
    for here, end, begin in zip(sigmas, ends, begins, strict=True):
        other = end if share > 0 else begin
        found.append(here ** (1 - abs(share)) * other ** abs(share))
    return found


def sigma_at(t):
    """σ at a timestep of Stable Diffusion's noise schedule, also between two of them."""
    return math.exp(np.interp(float(t), np.arange(1000), np.log(SIGMAS)))


def noise():
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(sigmas, at, x):
    """dy/dσ = ε by Euler, y = x √(1 + σ²), down to 0; each ε is the one at the σ in `at`."""
    y = x * (1 + sigmas[0] ** 2) ** 0.5
    for here, following, lie in zip(sigmas, [*sigmas[1:], 0.0], at, strict=True):
        y = y + (following - here) * DATA.eps(y / (1 + here**2) ** 0.5, 1 / (1 + lie**2))
    return y


def drawn(scheduler, network, x):
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t).to(x.dtype), t, x).prev_sample
    return x


def eps(x, t):
    """The exact network of Stable Diffusion's noise schedule."""
    return DATA.eps(x, 1 / (1 + sigma_at(t) ** 2))


def velocity(x, t):
    """The exact network of flow matching, told T s. Its samples are √((1 − s)² + s²) longer."""
    s = min(float(t) / 1000, 1 - 2.0**-24)
    bar = (1 - s) ** 2 / ((1 - s) ** 2 + s**2)
    epsilon = DATA.eps(x / math.hypot(1 - s, s), bar)
    return epsilon - (x - s * epsilon) / (1 - s)


# what is told


@settings(max_examples=150, deadline=None)
@given(grid=grids(), share=SHARES)
def test_the_told_times_lie_that_share_of_each_step_ahead(grid, share):
    for kind in (ASDDIMScheduler, UniPCGridScheduler):
        scheduler = kind(**SD, look_ahead=share)
        scheduler.set_timesteps(timesteps=grid)
        if share == 0:
            assert scheduler.timesteps.dtype == torch.int64
            assert scheduler.timesteps.tolist() == grid
            continue
        assert scheduler.timesteps.dtype == torch.float32
        times = scheduler.timesteps.tolist()
        assert all(a > b for a, b in itertools.pairwise(times))  # each names its step
        meant = told(SIGMAS[grid].tolist(), share, SIGMAS[0], SIGMAS[-1])
        found = np.interp(np.log(meant), np.log(SIGMAS), np.arange(1000))
        np.testing.assert_allclose(times, found, atol=1e-3 * (len(grid) + 1))


@settings(max_examples=150, deadline=None)
@given(
    grid=grids(),
    share=SHARES.filter(bool),
    shift=st.floats(0.3, 9),
    mu=st.none() | st.floats(0.1, 3),
)
def test_flow_matching_is_told_its_share_of_noise(grid, share, shift, mu):
    levels = [(n + 1) / 1000 for n in grid]
    ours = ASFlowScheduler(shift=shift, use_dynamic_shifting=mu is not None, look_ahead=share)
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    theirs = UniPCGridScheduler(**flow, use_dynamic_shifting=mu is not None, look_ahead=share)
    shift = shift if mu is None else math.exp(mu)
    low = shift / 1000 / (1 + (shift - 1) / 1000)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(sigmas=levels, mu=mu)
        s = np.minimum(scheduler.sigmas[:-1].double().numpy(), 1)  # float32 may round up
        assert scheduler.timesteps.dtype == torch.float32
        times = scheduler.timesteps.tolist()
        assert all(a > b for a, b in itertools.pairwise(times))
        assert 0 < times[-1] < times[0] + 1e-9 < 1000
        with np.errstate(divide="ignore"):
            sigmas = np.minimum(s / (1 - s), 4096)
        sigma = np.array(told(sigmas.tolist(), share, low / (1 - low), 4096.0))
        np.testing.assert_allclose(times, 1000 * sigma / (1 + sigma), atol=1e-3 * (len(grid) + 1))


@pytest.mark.parametrize("share", [-1.0, -0.3, 0.3, 1.0])
@pytest.mark.parametrize("flags", [{}, {"rescale_betas_zero_snr": True}])
def test_every_timestep_can_be_a_step(share, flags):
    scheduler = ASDDIMScheduler(
        **SD, **flags, prediction_type="v_prediction", look_ahead=share, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(1000)
    assert scheduler.timesteps.diff().max() < 0
    x = torch.ones(1000, 1)
    levels = scheduler._levels(scheduler._number(scheduler.timesteps, x.device), x)[0]
    assert torch.equal(levels.flatten(), scheduler.alphas_cumprod.flip(0))


@pytest.mark.parametrize("flag", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_unipc_s_own_levels_are_told_ahead_as_well(flag):
    scheduler, own = (UniPCGridScheduler(**SD, **{flag: True}, look_ahead=a) for a in (0.25, 0.0))
    for each in (scheduler, own):
        each.set_timesteps(7)
    assert torch.equal(scheduler.sigmas, own.sigmas)
    meant = told(scheduler.sigmas[:-1].tolist(), 0.25, SIGMAS[0], SIGMAS[-1])
    found = [sigma_at(t) for t in scheduler.timesteps]
    np.testing.assert_allclose(found, meant, rtol=1e-4)


@pytest.mark.parametrize("share", [-1.0, -0.5, 0.5, 1.0])
def test_a_time_stays_on_its_side_of_a_boundary(share):
    """Wan 2.2's pipeline asks one network at the boundary and above, and another one below."""
    scheduler = ASFlowScheduler(boundary=0.875, look_ahead=share, shift=3.0)
    for steps in range(2, 12):
        scheduler.set_timesteps(steps)
        high = scheduler.sigmas[:-1] >= 0.875
        assert torch.equal(scheduler.timesteps >= 875.0, high)
        assert high.any()
        assert not high.all()


# what is drawn


@pytest.mark.parametrize("share", [-0.4, 0.4])
@pytest.mark.parametrize("allocation", GRIDS)
def test_ddim_on_a_gaussian_is_a_loop_that_lies(allocation, share):
    scheduler = ASDDIMScheduler(**PLAIN, allocation=allocation, look_ahead=share)
    steps = 2 if allocation == "dmn" else 7  # its search takes seconds
    scheduler.set_timesteps(steps)
    grid = timesteps(PLAIN, steps, allocation=allocation)
    assert scheduler.numbers == grid
    sigmas = SIGMAS[grid].tolist()
    meant = by_hand(sigmas, told(sigmas, share, SIGMAS[0], SIGMAS[-1]), noise())
    torch.testing.assert_close(drawn(scheduler, eps, noise()), meant, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [-0.4, 0.4, 1.0])
def test_flow_matching_on_a_gaussian_is_a_loop_that_lies(share):
    levels = [0.95, 0.7, 0.4, 0.1]
    scheduler = ASFlowScheduler(grid=levels, look_ahead=share)
    scheduler.set_timesteps(4)
    sigmas = [s / (1 - s) for s in levels]
    x, low = noise(), 0.001 / 0.999
    at = [s / (1 + s) for s in told(sigmas, share, low, 4096.0)]
    for s, following, lie in zip(levels, [*levels[1:], 0.0], at, strict=True):
        x = x + (following - s) * velocity(x, 1000 * lie)
    found = drawn(scheduler, velocity, noise().float())
    torch.testing.assert_close(found.double(), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("share", [-0.4, 0.4])
def test_unipc_takes_its_own_steps_with_what_is_answered_to_other_times(share, flow):
    how = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if flow else SD
    ours, own = UniPCGridScheduler(**how, look_ahead=share), UniPCMultistepScheduler(**how)
    for scheduler in (ours, own):
        scheduler.set_timesteps(6)
    assert torch.equal(ours.sigmas, own.sigmas)
    network, x = velocity if flow else eps, noise()
    end = drawn(ours, network, x)
    plain = UniPCGridScheduler(**how)
    plain.set_timesteps(6)
    assert not torch.allclose(end, drawn(plain, network, x), rtol=1e-2)
    for t, lie in zip(own.timesteps, ours.timesteps, strict=True):
        x = own.step(network(x, lie), t, x).prev_sample
    assert torch.equal(end, x)


@pytest.mark.parametrize("share", [-0.5, 0.5, 1.0])
@pytest.mark.parametrize("kind", [ASFlowScheduler, UniPCGridScheduler])
def test_the_error_falls_with_the_step_whatever_is_told(kind, share):
    """Half the step, half the error. That is Euler's own order, and UniPC's falls to it."""
    errors, counts = [], (32, 64, 128)
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    for steps in counts:
        sigmas = np.geomspace(9, 0.05, steps + 1)
        scheduler = kind(look_ahead=share, **(flow if kind is UniPCGridScheduler else {}))
        scheduler.set_timesteps(sigmas=(sigmas / (1 + sigmas)).tolist())
        x = noise().float()
        for t in scheduler.timesteps[:-1]:  # the last step leads from σ = 0.05 to 0
            x = scheduler.step(velocity(x.double(), t).float(), t, x).prev_sample
        start, end = (math.hypot(1, sigma) / (1 + sigma) for sigma in sigmas[[0, -1]])
        exact = end * DATA.solve(noise() / start, *(1 / (1 + sigmas[[0, -1]] ** 2)))
        errors.append(float((x - exact).norm()))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)
