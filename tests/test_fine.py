"""Pictures beside the model's own fine ones: shares of KID, distances, and what failed."""

import gc
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torchmetrics.image.kid import maximum_mean_discrepancy

from asddim_lib import metrics
from asddim_lib.metrics.kid import kid, kid_shares, mean_kernel
from experiments.contest import paired
from experiments.fid import fid_infinity, fid_interval
from experiments.fine import Observed, beside_fine, concatenated, own_kid_shares
from tests.refusals import refuses


def features(count, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator, dtype=torch.float64) + shift


def kernel(x, y):
    return (x @ y / len(x) + 1) ** 3


def test_the_shares_mean_is_the_unbiased_kid_over_all_pairs():
    x, y = features(7, 1), features(9, 2, 0.3)
    own = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    real = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    cross = np.mean([kernel(a, b) for a in x for b in y])
    assert float(kid_shares(x, y).mean()) == pytest.approx(own + real - 2 * cross)


def test_a_reference_is_neither_kept_nor_remembered():
    """It is compared with as it is now, and its memory is the caller's to free."""
    x, y = features(20, 1), features(30, 2)
    for measure in (kid_shares, kid, fid_interval, fid_infinity):
        goal = y.clone()
        measure(x, goal)
        goal.mul_(3)
        np.testing.assert_array_equal(measure(x, goal), measure(x, 3 * y))
        gone = weakref.ref(goal)
        del goal
        gc.collect()
        assert gone() is None, measure


def test_a_reference_s_own_part_may_be_given():
    x, y = features(20, 1), features(30, 2)
    shares = kid_shares(x, y, mean_kernel(y))
    assert torch.equal(shares, kid_shares(x, y))


def test_with_as_many_images_it_is_torchmetrics_own():
    x, y = features(8, 3), features(8, 4)
    kernels = [(a @ b.T / 6 + 1) ** 3 for a, b in ((x, x), (x, y), (y, y))]
    theirs = float(maximum_mean_discrepancy(*kernels))
    assert float(kid_shares(x, y).mean()) == pytest.approx(theirs)


def test_a_pair_of_sets_has_shares_and_a_single_image_has_none():
    with refuses("features"):
        kid_shares(features(1, 1), features(9, 2))
    with refuses("reference"):
        kid_shares(features(9, 1), features(1, 2))


def test_own_kid_is_the_mean_of_two_kids_each_of_one_half_from_the_other_s_fine_pictures():
    x, fine = features(10, 5), features(10, 6)
    shares = own_kid_shares(x, fine)
    for half in (0, 1):
        whole = kid(x[half::2], fine[1 - half :: 2])[0]
        assert shares[half::2].mean() == pytest.approx(whole)


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("change", [False, True], ids=["one method", "the difference of two"])
def test_the_interval_of_own_kid_covers(change, shift):
    """With the fine pictures as fixed, a method that is near to them is covered 80 times in 100.

    There the influences nearly vanish, and the interval is wider than it need be, up to √2 times.
    """
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(400):
        fine, one, two = torch.randn(3, 200, 6, generator=generator, dtype=torch.float64)
        shares = [own_kid_shares(fine + 0.3 * part + shift, fine) for part in (one, two)]
        found.append(metrics.mean_interval(shares[0] - shares[1] if change else shares[0]))
    values, halves = np.array(found).T
    assert (abs(values - values.mean()) < halves).mean() > 0.92
    assert 0.9 < halves.mean() / (1.96 * values.std()) < (1.1 if shift else 1.5)


def test_the_fine_pictures_themselves_have_distance_0_and_an_own_kid_about_0():
    fine = Observed(features(400, 7).reshape(400, 2, 3), features(400, 8), features(400, 9))
    table = beside_fine(fine, fine)
    assert (table[["distance", "embedding", "looks"]] == 0).all(axis=None)
    mean, half = metrics.mean_interval(table["own_kid_share"].to_numpy())
    assert abs(mean) < half
    far = beside_fine(fine._replace(features=fine.features + 1), fine)["own_kid_share"]
    assert far.mean() > 10 * half, "another distribution would pass for the same"


def test_a_failed_picture_is_left_out_and_the_others_keep_their_places():
    fine = Observed(features(6, 1), features(6, 2), features(6, 3))
    part = Observed(features(6, 4), features(6, 5), features(6, 6))
    for values in part:
        values[2] = torch.nan
    table = beside_fine(part, fine)
    assert table.loc[2].isna().all()
    assert table.drop(index=2).notna().all(axis=None)


def test_a_batch_of_which_all_failed_has_rows_without_figures():
    known = Observed(features(3, 1), features(3, 2), features(3, 3))
    lost = Observed(features(2, 1) * torch.nan, torch.empty(2, 0), torch.empty(2, 0))
    both = concatenated([known, lost])
    assert [len(values) for values in both] == [5, 5, 5]
    assert both.embeddings.shape == (5, 6)
    assert both.embeddings[3:].isnan().all()


def test_of_pictures_that_nothing_can_read_only_latents_are_compared():
    blind = Observed(features(4, 1), torch.empty(4, 0), torch.empty(4, 0))
    assert list(beside_fine(blind, blind)) == ["distance"]


def test_a_share_is_compared_by_its_mean_and_a_distance_by_ratio():
    """One estimand: the mean that the interval is of, and the test of that mean."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=200)
    gain = np.where(np.arange(200) % 5 == 0, -10.0, 1.0) + rng.normal(size=200)
    rows = {"index": np.tile(np.arange(200), 2), "method": ["a"] * 200 + ["b"] * 200}
    where = {"guidance_scale": 3.0, "steps": 5, "solver": "ddim"}
    table = pd.DataFrame({**rows, **where, "kid_share": np.concatenate([base, base + gain])})
    table["embedding"] = np.exp(table["kid_share"])
    row = paired(table, "a", "kid_share").iloc[0]
    assert row["p_value"] == pytest.approx(stats.ttest_rel(base + gain, base).pvalue)
    assert row["verdict"] == "win"
    ratio = paired(table, "a", "embedding", ratio=True).iloc[0]
    for name in ("difference", "half", "p_value", "verdict"):
        assert ratio[name] == (row[name] if name == "verdict" else pytest.approx(row[name]))
