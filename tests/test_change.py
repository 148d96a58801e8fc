"""Steps of equal change: of a path's rotation against curves whose rotation is known, of a feature.

The paths are made, not drawn, except for one of the flow pipeline and one of the bundled model.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asddim_lib import sigmas, timesteps
from asddim_lib.evidence.path import Trajectory
from asddim_lib.grids.searched import tors, total_rotation
from asddim_lib.levels import Levels
from asddim_lib.pipeline.run import Run
from experiments.mixtures import GaussianMixture, follow
from experiments.searches import constant_rate, feature_changes, paired
from tests.refusals import refuses
from tests.tiny import SD, easy, sd3

SCHEDULE = Levels.from_diffusers(SD)
FLOW = Levels.from_diffusers(
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 1000}
)
EVERY = [*range(999, 0, -9), 0]


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def path_along(curve, schedule=SCHEDULE, points=EVERY):
    """A path whose samples, in the scale of flow matching, are `curve` (N + 1 points × n × d).

    The last of them is the path's end: clean data.
    """
    sigma = torch.tensor([*schedule.finite_sigmas[points], 0.0]).reshape(-1, 1, 1)
    samples = curve * (1 + sigma) / (1 + sigma**2).sqrt()
    return Trajectory(points, samples[:-1], torch.zeros_like(samples[:-1]), samples[-1])


def bowed(times, turns=2.0):
    """The angle at each timestep and at the end, one below 0: slow at first, then fast."""
    done = (999 - np.array([*times, -1])) / 1000
    return math.pi * turns * (done + done**2)


@pytest.mark.parametrize("schedule", [SCHEDULE, FLOW])
@pytest.mark.parametrize("pitch", [0.0, 0.3, 2.0])
def test_a_helix_turns_by_its_angle(schedule, pitch):
    """√(κ² + τ²) of a helix is 1 / √(a² + b²), its length √(a² + b²) φ: it turns by φ."""
    angle = torch.tensor(bowed(EVERY))
    spread = torch.linalg.qr(normal(3, 40, seed=0).T)[0].T  # three directions in 40 dimensions
    curve = torch.stack([2 * angle.cos(), 2 * angle.sin(), pitch * angle], 1) @ spread
    both = torch.stack([curve, 3 * curve + normal(1, 40, seed=1)], 1)
    found = total_rotation(path_along(both, schedule), schedule)
    # The second sample is three times as long and bends a third as much. The means of both do not
    # multiply to the mean turn: twice the length, two thirds of the bend.
    np.testing.assert_allclose(found, angle * 4 / 3, rtol=0.02, atol=0.06)
    alone = total_rotation(path_along(both[:, :1], schedule), schedule)
    np.testing.assert_allclose(alone, angle, rtol=0.02, atol=0.06)
    grid = np.array(tors(path_along(both, schedule), schedule, 8))
    wanted = 2 * math.pi * 2 * np.arange(8) / 8
    np.testing.assert_allclose(
        np.interp(grid, EVERY[::-1], angle.numpy()[-2::-1]), wanted, atol=0.1
    )


def test_a_planar_curve_that_bends_both_ways_has_no_torsion():
    """A sine wave: it turns there and back, by twice the arctan of its slope in a quarter wave."""
    along = torch.linspace(0, 4 * math.pi, len(EVERY) + 1, dtype=torch.float64)
    curve = torch.stack([along, along.sin()], 1)[:, None]
    found = total_rotation(path_along(curve), SCHEDULE)
    assert found[-1] == pytest.approx(8 * math.atan(1), rel=0.02)


@settings(max_examples=25)
@given(seed=st.integers(0, 100), steps=st.integers(1, 40), size=st.integers(2, 6))
def test_each_step_of_tors_turns_alike(seed, steps, size):
    """Up to the rounding to whole timesteps, of which each turns by less than a bound."""
    wave = torch.linspace(0, 3, len(EVERY) + 1, dtype=torch.float64).reshape(-1, 1, 1)
    curve = (wave * normal(3, size, seed=seed) + normal(3, size, seed=seed + 1)).sin()
    path = path_along(curve)
    turned = total_rotation(path, SCHEDULE)
    grid = tors(path, SCHEDULE, steps)
    assert grid[0] == 999
    assert all(a > b for a, b in itertools.pairwise(grid))
    per_timestep = np.max(np.diff(turned) / np.array([9.0] * 110 + [9.0, 1.0])[-len(turned) + 1 :])
    at = np.interp(grid, [-1, *EVERY[::-1]], turned[::-1])
    assert np.abs(np.diff([*at, turned[-1]]) - turned[-1] / steps).max() <= per_timestep + 1e-9


def test_rotation_knows_neither_scale_nor_direction_nor_rotation_of_the_latents():
    wave = torch.linspace(0, 3, len(EVERY) + 1, dtype=torch.float64).reshape(-1, 1, 1)
    curve = (wave * normal(2, 12, seed=3) + normal(2, 12, seed=4)).sin()
    turn = torch.linalg.qr(normal(12, 12, seed=5))[0]
    first = total_rotation(path_along(curve), SCHEDULE)
    np.testing.assert_allclose(total_rotation(path_along(7 * curve @ turn), SCHEDULE), first)


def test_a_path_that_cannot_be_cut_is_refused():
    short = follow(lambda y, t: y, normal(2, 2, seed=0), SCHEDULE, [999])
    with refuses("path"):
        tors(short, SCHEDULE, 1)
    along = torch.linspace(0, 1, len(EVERY) + 1, dtype=torch.float64).reshape(-1, 1, 1) ** 2
    straight = path_along(normal(2, 5, seed=1) + along * normal(2, 5, seed=2))
    with refuses("path"):
        tors(straight, SCHEDULE, 4)
    still = path_along(torch.ones(len(EVERY) + 1, 2, 3, dtype=torch.float64))
    with refuses("path"):
        tors(still, SCHEDULE, 4)
    with refuses("path"):
        constant_rate(follow(lambda y, t: 0 * y, 0 * still.end, SCHEDULE, EVERY), SCHEDULE, 4)


@pytest.fixture(scope="module")
def gaussian():
    """The exact path of normal data of standard deviation ½, whose angle is arctan(σ / ½)."""
    data, bars = GaussianMixture(torch.zeros(1, 4), 0.5), SCHEDULE.alphas_cumprod
    x, every = normal(6, 4, seed=0), list(range(999, -1, -1))
    samples = torch.stack([data.solve(x, float(bars[-1]), float(bars[t])) for t in every])
    noises = torch.stack([data.eps(y, float(bars[t])) for t, y in zip(every, samples, strict=True)])
    path = Trajectory(every, samples, noises, data.solve(x, float(bars[-1]), 1.0))
    return path, np.arctan(SCHEDULE.sigmas / 0.5)


def test_predictions_of_a_gaussian_move_as_the_cosine_and_its_noise_as_the_sine(gaussian):
    """x̂₀ = x₀ cos θ and ε = 2 x₀ sin θ: so are the cuts, of each in its own measure."""
    path, angle = gaussian
    steps, first = 8, angle[-1]
    cuts = np.arange(steps) / steps
    clean = np.arccos(np.cos(first) + (1 - np.cos(first)) * cuts)
    noise = np.arcsin(np.sin(first) + (np.sin(angle[0]) - np.sin(first)) * cuts)
    for read, wanted in (("clean", clean), ("noise", noise)):
        grid = constant_rate(path, SCHEDULE, steps, read=read)
        expected = np.interp(wanted, angle, np.arange(1000))
        assert np.abs(np.array(grid) - expected).max() <= 1


def test_the_power_lies_on_the_rate_in_alpha(gaussian):
    """dα/dt ∝ v^−ξ: at ξ = 0 the grid is even in α = √ᾱ, whatever changes."""
    path, _ = gaussian
    alpha = np.sqrt(SCHEDULE.alphas_cumprod)
    even = constant_rate(path, SCHEDULE, 10, exponent=0.0)
    wanted = np.interp(alpha[-1] + (1 - alpha[-1]) * np.arange(10) / 10, alpha[::-1], range(1000))
    assert np.abs(999 - wanted - np.array(even)).max() <= 1
    # Between them, dt = v^ξ dα over each interval.
    half = constant_rate(path, SCHEDULE, 10, exponent=0.5)
    rates = feature_changes(path, SCHEDULE) / np.diff([*alpha[::-1], 1.0])
    spent = np.cumsum([0.0, *(rates**0.5 * np.diff([*alpha[::-1], 1.0]))])
    ideal = np.interp(spent[-1] * np.arange(10) / 10, spent, [*range(999, -1, -1), -1])
    assert np.abs(np.array(half) - ideal).max() <= 1


@settings(max_examples=25)
@given(
    seed=st.integers(0, 100), steps=st.integers(1, 30), read=st.sampled_from(["clean", "sample"])
)
def test_each_step_changes_the_features_alike(seed, steps, read):
    """In any feature space; up to the rounding to whole timesteps."""
    data = GaussianMixture(normal(3, 5, seed=seed), 0.3)
    eps = lambda y, t: data.eps(y, float(SCHEDULE.alphas_cumprod[t]))  # noqa: E731
    path = follow(eps, normal(4, 5, seed=seed + 1), SCHEDULE, EVERY)
    matrix = normal(5, 7, seed=seed + 2).float()
    features = lambda x: (x @ matrix).tanh()  # noqa: E731
    changes = feature_changes(path, SCHEDULE, features, read=read)
    grid = constant_rate(path, SCHEDULE, steps, features, read=read)
    moved = np.cumsum([0.0, *changes])
    times = [*EVERY, -1]
    most = np.max(changes / -np.diff(times))
    at = np.interp(grid, times[::-1], moved[::-1])
    assert np.abs(np.diff([*at, moved[-1]]) - moved[-1] / steps).max() <= most + 1e-9


def test_features_and_discrepancy_are_the_caller_s():
    """Features see n × d in float32, and their discrepancy replaces the paired distance."""
    seen = []

    def features(x):
        seen.append(x)
        return x[:, :1]

    path = path_along(normal(len(EVERY) + 1, 3, 4, seed=8))
    mean = lambda a, b: float((a.mean() - b.mean()).abs())  # noqa: E731
    changes = feature_changes(path, SCHEDULE, features, mean, read="sample")
    assert all(one.shape == (3, 4) and one.dtype == torch.float32 for one in seen)
    ends = torch.cat([path.samples, path.end[None]])[:, :, 0].mean(1)
    np.testing.assert_allclose(changes, ends.diff().abs(), rtol=1e-5)
    assert paired(torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]])) == pytest.approx(
        math.sqrt(12.5)
    )
    with refuses("discrepancy"):
        feature_changes(path, SCHEDULE, discrepancy=lambda a, b: -1.0)
    with refuses("read"):
        feature_changes(path, SCHEDULE, read="pixels")
    with refuses("exponent"):
        constant_rate(path, SCHEDULE, 4, exponent=-1)


@pytest.mark.parametrize("name", ["tors", "constant-rate"])
def test_the_table_lays_them_on_a_path_that_ends_at_timestep_0(name):
    """As `record` ends a diffusion model's path: the end is the last point again."""
    data = GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), 0.1)
    eps = lambda y, t: data.eps(y, float(SCHEDULE.alphas_cumprod[t]))  # noqa: E731
    path = follow(eps, normal(8, 2, seed=2), SCHEDULE, EVERY)
    last = float(SCHEDULE.alphas_cumprod[0])
    stopped = Trajectory(EVERY, path.samples, path.noises, path.samples[-1], last)
    for each in (path, stopped):
        for steps in (1, 7, 300):
            grid = timesteps(SD, steps, allocation=name, path=each)
            assert len(grid) == steps
            assert grid[0] == 999
            assert all(a > b for a, b in itertools.pairwise(grid))
            assert grid[-1] >= 0


@pytest.mark.parametrize("name", ["tors", "constant-rate"])
def test_pipelines_of_both_kinds_give_a_path_that_can_be_cut(name):
    """Recorded in the scale of a variance-preserving model; a flow model's grid is sigmas."""
    prompts = ["a red boot", "two blue bags"]
    small = {"height": 16, "width": 16}
    for pipe, how, laid in ((easy(), small, timesteps), (*sd3(), sigmas)):
        path = Run(pipe, prompts, guidance_scale=1.0, options=how).path(6)
        grid = laid(pipe.scheduler, 4, allocation=name, path=path)
        assert len(grid) == 4
        assert grid[0] == (999 if laid is timesteps else 1.0)
        assert all(a > b for a, b in itertools.pairwise(grid))
