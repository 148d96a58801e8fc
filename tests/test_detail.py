"""The measure of noise, blur and fine detail."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d

from asddim_lib.metrics.detail import SMALLEST, energy_shares, fine_detail
from tests.refusals import refuses


def pictures(seed, count=4, edge=24):
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, edge // 4, edge // 4, generator=draw)
    fine = torch.nn.functional.interpolate(coarse, (edge, edge), mode="bilinear")
    return (40 + 160 * fine).to(torch.uint8)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), strength=st.integers(20, 40))
def test_noise_raises_every_energy_and_blur_lowers_it(seed, strength):
    plain = pictures(seed)
    draw = torch.Generator().manual_seed(seed + 1)
    noise = strength * torch.randn(plain.shape, generator=draw)
    noisy = (plain + noise).clamp(0, 255).to(torch.uint8)
    blurred = avg_pool2d(noisy.float(), 3, stride=1, padding=1, count_include_pad=False)
    full = fine_detail(noisy)[:, :6]  # at full size, of three channels
    assert (full > fine_detail(plain)[:, :6]).all()
    assert (fine_detail(blurred.to(torch.uint8))[:, :6] < full).all()


def test_energies_are_those_of_differences_between_neighbours():
    edge = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    edge[:, 0, :, 8:] = 255
    found = fine_detail(edge)
    assert found.shape == (1, 18)
    first = 4 / 15  # one of 15 differences along a row is 2
    second = 2 * 4 / 14  # and two of 14 second ones
    assert found[0, 0].exp() == pytest.approx(first + SMALLEST)
    assert found[0, 3].exp() == pytest.approx(second + SMALLEST)
    assert found[0, 1].exp() == pytest.approx(SMALLEST)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(2, 6), m=st.integers(2, 6), seed=st.integers(0, 1000))
def test_shares_average_to_the_energy_distance_of_all_pairs(n, m, seed):
    draw = np.random.default_rng(seed)
    x, y = draw.standard_normal((n, 3)), draw.standard_normal((m, 3))
    scale = y.std(0, ddof=1)
    gap = lambda a, b: float(np.linalg.norm((a - b) / scale))  # noqa: E731
    between = np.mean([gap(a, b) for a in x for b in y])
    among = [
        np.mean([gap(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j])
        for s in (x, y)
    ]
    found = energy_shares(torch.tensor(x), torch.tensor(y)).mean()
    assert float(found) == pytest.approx(2 * between - sum(among))


def test_the_distance_is_zero_on_average_for_one_distribution_and_grows_with_the_gap():
    draw = torch.Generator().manual_seed(0)
    mean = {}
    for gap in (0.0, 0.5, 1.0):
        values = [
            float(
                energy_shares(
                    gap + torch.randn(20, 4, generator=draw), torch.randn(30, 4, generator=draw)
                ).mean()
            )
            for _ in range(60)
        ]
        mean[gap] = np.mean(values)
        spread = np.std(values) / 60**0.5
        assert gap or abs(mean[gap]) < 3 * spread
    assert mean[0.0] < mean[0.5] < mean[1.0]


def test_pairs_that_are_skipped_are_not_compared():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 3, generator=draw), torch.randn(6, 3, generator=draw)
    skip = torch.zeros(4, 6, dtype=torch.bool)
    assert torch.equal(energy_shares(x, y, skip), energy_shares(x, y))
    skip[0] = torch.tensor([False] * 5 + [True])
    changed = energy_shares(x, y, skip) - energy_shares(x, y)
    assert changed[0] != 0
    assert not changed[1:].any()


@pytest.mark.parametrize(("name", "sizes"), [("features", (1, 4)), ("reference", (4, 1))])
def test_a_single_picture_has_no_distance(name, sizes):
    with refuses(name):
        energy_shares(*(torch.zeros(count, 18) for count in sizes))
