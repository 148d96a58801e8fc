"""Intervals cover what they promise; verdicts keep their error rate; metrics refuse wrong input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from asddim_lib import metrics
from asddim_lib.metrics.intervals import holm
from asddim_lib.metrics.kid import kid
from experiments.intervals import (
    bootstrap_interval,
    effective_size,
    proportion_half_width,
    proportion_interval,
)
from tests.refusals import refuses

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)
FINITE = st.floats(-1e6, 1e6)


def shares(total):
    """All shares of `total`, with Wilson's bounds, our half-widths, and the chance of each at p."""
    hits = np.arange(total + 1)
    bounds = np.array([proportion_interval(k, total) for k in hits])
    halves = np.array([proportion_half_width(k, total) for k in hits])
    return hits / total, bounds, halves, lambda p: stats.binom.pmf(hits, total, p)


# means


def test_a_mean_of_five_is_covered_95_times_in_100_and_1_96_standard_errors_cover_fewer():
    draws = np.random.default_rng(0).normal(3, 2, (4000, 5))
    means, halves = np.array([metrics.mean_interval(draw) for draw in draws]).T
    away, error = abs(means - 3), draws.std(1, ddof=1) / math.sqrt(5)
    assert np.mean(away < halves) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))
    assert np.mean(away < 1.96 * error) < 0.9


@given(arrays(np.float64, st.integers(2, 30), elements=FINITE))
def test_a_mean_s_interval_is_that_of_scipy_s_t_test(values):
    mean, half = metrics.mean_interval(torch.from_numpy(values))
    assert mean == pytest.approx(values.mean())
    wide = half > 1e-8 * max(1, abs(mean))  # of equal values, SciPy's test has no interval
    if wide:
        theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (mean - half, mean + half) == pytest.approx(tuple(theirs), rel=1e-6, abs=1e-6)


def test_one_value_shows_no_spread():
    assert metrics.mean_interval(np.array([3.0])) == (3.0, math.inf)
    mean, half = metrics.mean_interval(np.array([]))
    assert math.isnan(mean)
    assert half == math.inf


# shares


@pytest.mark.parametrize("low", [0.001, 0.95])
def test_a_share_near_an_end_is_covered_by_wilson_s_interval_where_wald_s_fails(low):
    """Exactly, by summing the chances of all counts, over 100 shares of a range beside 0 or 1."""
    share, bounds, halves, chance = shares(200)
    wald = 1.96 * np.sqrt(share * (1 - share) / 200)
    covered = {"wilson": [], "half": [], "wald": []}
    for p in np.linspace(low, low + 0.049, 100):
        covered["wilson"].append(chance(p)[(bounds[:, 0] <= p) & (p <= bounds[:, 1])].sum())
        covered["half"].append(chance(p)[abs(share - p) <= halves].sum())
        covered["wald"].append(chance(p)[abs(share - p) <= wald].sum())
    assert np.mean(covered["wilson"]) == pytest.approx(0.95, abs=0.01)
    assert min(covered["wilson"]) > 0.88
    assert min(covered["half"]) > 0.95
    assert np.mean(covered["wald"]) < 0.9
    assert min(covered["wald"]) < 0.3


def test_wilson_s_interval_is_where_the_score_test_rejects():
    """Its ends p solve |share − p| = z √(p (1 − p) / n)."""
    z = stats.norm.ppf(0.975)
    for hits, total in ((1, 5), (7, 9), (106, 1000)):
        for p in proportion_interval(hits, total):
            assert abs(hits / total - p) == pytest.approx(z * math.sqrt(p * (1 - p) / total))


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_share_lies_within_its_interval_which_has_a_width_and_lies_within_0_and_1(counts):
    hits, total = counts
    low, high = proportion_interval(hits, total)
    half = proportion_half_width(hits, total)
    assert 0 <= low <= hits / total <= high <= 1
    assert low < high
    assert 0 < half <= 1
    assert hits / total - half <= low + 1e-12
    assert hits / total + half >= high - 1e-12
    mirrored = proportion_interval(total - hits, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(
    ("counts", "message"), [((0, 0), "total is 0; "), ((3, 2), "hits is 3; "), ((-1, 2), "hits is")]
)
def test_a_share_of_nothing_is_refused(counts, message):
    for interval in (proportion_interval, proportion_half_width):
        with pytest.raises(ValueError, match=message):
            interval(*counts)


# figures of a set


def test_the_bootstrap_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).exponential(size=400)
    half = bootstrap_interval(lambda index: values[index].mean(), 400, 4000)
    assert half == pytest.approx(1.96 * values.std() / 20, rel=0.05)
    assert half == bootstrap_interval(lambda index: values[index].mean(), 400, 4000)
    few = [
        bootstrap_interval(lambda index: values[index].mean(), 400, 5, seed) for seed in range(400)
    ]
    wide = stats.t.ppf(0.975, 4) * values.std() / 20  # of five resamples, t has 4 degrees
    assert np.mean(np.square(few)) ** 0.5 == pytest.approx(wide, rel=0.05)
    assert bootstrap_interval(lambda index: 1.0, 1) == math.inf
    with refuses("resamples"):
        bootstrap_interval(lambda index: 1.0, 9, 1)


def test_kid_s_interval_is_the_jackknife_s():
    """Leaving out one image at a time shows the same spread, by another route."""
    draw = torch.Generator().manual_seed(0)
    x = 1.1 * torch.randn(120, 8, generator=draw, dtype=torch.float64) + 0.2
    y = torch.randn(2000, 8, generator=draw, dtype=torch.float64)

    def plain(part):
        own, cross = (part @ part.T / 8 + 1) ** 3, (part @ y.T / 8 + 1) ** 3
        n = len(part)
        return float((own.sum() - own.trace()) / (n * (n - 1)) - 2 * cross.mean())

    without = np.array([plain(torch.cat([x[:i], x[i + 1 :]])) for i in range(120)])
    error = math.sqrt(119 / 120 * ((without - without.mean()) ** 2).sum())
    assert kid(x, y)[1] == pytest.approx(stats.t.ppf(0.975, 119) * error, rel=0.02)


# pairs


def test_a_pair_is_measured_by_its_differences():
    draw = np.random.default_rng(1)
    prompt, gain = draw.normal(0, 10, 40), draw.normal(0.5, 0.1, 40)
    result = metrics.paired_difference(prompt + gain, prompt)
    theirs = stats.ttest_rel(prompt + gain, prompt)
    assert result.difference == pytest.approx(gain.mean())
    low, high = theirs.confidence_interval(0.95)
    assert result.half == pytest.approx((high - low) / 2)
    assert result.p_value == pytest.approx(theirs.pvalue)
    assert metrics.mean_interval(prompt + gain)[1] > 50 * result.half


def test_pairs_without_evidence_have_p_1_and_one_pair_an_endless_interval():
    same = metrics.paired_difference(np.ones(5), np.ones(5))
    assert same == (0, 0, 1)
    assert metrics.paired_difference(np.array([2.0]), np.array([1.0])) == (1, math.inf, 1)
    assert metrics.paired_difference(np.array([]), np.array([])).p_value == 1
    with refuses("values"):
        metrics.paired_difference(np.array([math.nan]), np.ones(1))
    with refuses("values"):
        metrics.paired_difference(np.ones(2), np.ones(1))


# many comparisons


def stepped_down(p_values, level):
    """Holm's procedure as he states it: reject the smallest p-values, until one is too large."""
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected.add(index)
    return rejected


@given(P_VALUES, st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, level):
    adjusted = holm(p_values)
    sure = abs(adjusted - level) > 1e-9  # at the level itself, rounding decides
    wanted = stepped_down(p_values, level)
    assert [i for i in np.flatnonzero(sure & (adjusted < level)) if i not in wanted] == []
    assert [i for i in wanted if sure[i] and adjusted[i] > level] == []


@given(P_VALUES, st.randoms())
def test_holm_lies_between_the_plain_p_and_bonferroni_s_in_the_same_order(p_values, shuffler):
    adjusted, plain = holm(p_values), np.array(p_values)
    assert (adjusted >= plain).all()
    assert (adjusted <= np.minimum(1, len(plain) * plain)).all()
    assert (np.diff(adjusted[plain.argsort()]) >= 0).all()
    order = list(range(len(plain)))
    shuffler.shuffle(order)
    np.testing.assert_array_equal(holm(plain[order]), adjusted[order])


@pytest.mark.parametrize("shared", [0.0, 0.8])
@pytest.mark.parametrize("real", [0, 10])
def test_holm_holds_the_chance_of_one_false_win_among_twenty(shared, real):
    """With independent and with correlated tests, with and without true findings among them."""
    draw = np.random.default_rng(2)
    z = math.sqrt(1 - shared**2) * draw.normal(size=(4000, 20)) + shared * draw.normal(
        size=(4000, 1)
    )
    z[:, :real] += 6
    p_values = 2 * stats.norm.sf(abs(z))
    false = np.array([holm(row)[real:].min() < 0.05 for row in p_values])
    assert false.mean() < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)
    assert (p_values[:, real:].min(1) < 0.05).mean() > 0.2  # without correction


def test_p_values_outside_0_and_1_are_refused():
    for wrong in ([0.5, 1.1], [-0.1], [math.nan]):
        with refuses("p_values"):
            holm(wrong)
    assert holm([]).shape == (0,)


# verdicts


@given(FINITE, st.floats(0, 1e6) | st.just(math.inf) | st.just(math.nan), st.floats(0, 1))
def test_a_win_one_way_is_a_loss_the_other_and_needs_both_kinds_of_evidence(difference, half, p):
    lower, higher = (metrics.verdict(difference, half, p, way) for way in ("lower", "higher"))
    flipped = {"win": "loss", "loss": "win", "tie": "tie"}
    assert higher == flipped[lower]
    assert metrics.verdict(-difference, half, p, "lower") == flipped[lower]
    excludes = difference - half > 0 or difference + half < 0
    assert (lower != "tie") == (excludes and p < 0.05)
    if lower == "win":
        assert difference < 0


def test_a_verdict_needs_a_direction():
    with refuses("better"):
        metrics.verdict(1, 0.5, 0.01, "less")


# clusters


def clustered(draw, clusters=40, size=5, within=1.0):
    """Values of clusters with a common part each, their labels, and a mean of 0."""
    labels = np.repeat(np.arange(clusters), size)
    return draw.normal(size=clusters)[labels] + within * draw.normal(size=labels.size), labels


def test_values_of_a_cluster_are_covered_95_times_in_100_and_by_the_plain_interval_far_fewer():
    draw = np.random.default_rng(3)
    found = {True: [], False: []}
    for _ in range(1500):
        values, labels = clustered(draw)
        for known, hits in found.items():
            mean, half = metrics.mean_interval(values, labels if known else None)
            hits.append(abs(mean) < half)
    assert np.mean(found[True]) == pytest.approx(0.95, abs=0.02)
    assert np.mean(found[False]) < 0.75


def test_the_p_value_of_clusters_keeps_its_level_and_agrees_with_the_interval():
    draw, false = np.random.default_rng(4), 0
    for _ in range(1500):
        values, labels = clustered(draw, clusters=30, size=3)
        order = draw.permutation(labels.size)
        pair = metrics.paired_difference(values[order], 0 * values, labels[order])
        assert (pair.p_value < 0.05) == (abs(pair.difference) > pair.half)
        false += pair.p_value < 0.05
    assert false / 1500 == pytest.approx(0.05, abs=0.02)


@given(arrays(np.float64, st.integers(2, 30), elements=st.floats(-1e3, 1e3)), st.randoms())
def test_labels_that_all_differ_change_nothing(values, shuffler):
    labels = [f"text {i}" for i in range(len(values))]
    shuffler.shuffle(labels)
    for one, two in zip(
        metrics.mean_interval(values, labels), metrics.mean_interval(values), strict=True
    ):
        assert one == pytest.approx(two, rel=1e-9, abs=1e-9)
    base = np.zeros(len(values))
    if values.std() > 1e-6:
        pair = metrics.paired_difference(values, base, labels)
        assert pair.p_value == pytest.approx(stats.ttest_rel(values, base).pvalue, rel=1e-6)

    def mean(rows):
        return values[rows].mean()

    plain = bootstrap_interval(mean, len(values), 9)
    assert bootstrap_interval(mean, len(values), 9, clusters=labels) == pytest.approx(plain)
    assert effective_size(values > 0, labels) == pytest.approx(len(values))


def test_a_cluster_of_equal_values_counts_as_one_value():
    """Four pictures of each text that are all alike tell no more than one."""
    few = np.random.default_rng(5).normal(size=25)
    many, labels = np.repeat(few, 4), np.repeat(np.arange(25), 4)
    assert metrics.mean_interval(many, labels) == pytest.approx(metrics.mean_interval(few))
    pair = metrics.paired_difference(many, 0 * many, labels)
    assert pair.p_value == pytest.approx(stats.ttest_1samp(few, 0).pvalue)
    assert effective_size(many > 0, labels) == pytest.approx(25, rel=0.05)
    assert effective_size(np.ones(100), labels) == 25

    def mean(values):
        return lambda rows: values[rows].mean()

    assert bootstrap_interval(mean(many), 100, 9, clusters=labels) == pytest.approx(
        bootstrap_interval(mean(few), 25, 9)
    )
    assert metrics.mean_interval(np.ones(3), ["a"] * 3) == (1.0, math.inf)


def test_the_share_of_clustered_hits_is_covered():
    draw, covered, plain = np.random.default_rng(6), 0, 0
    for _ in range(1500):
        chance = np.repeat(draw.beta(2, 2, 60), 5)  # mean ½, differs by cluster
        hits = draw.uniform(size=300) < chance
        size = effective_size(hits, np.repeat(np.arange(60), 5))
        for total, name in ((size, "known"), (300, "plain")):
            low, high = proportion_interval(hits.mean() * total, total)
            covered += name == "known" and low < 0.5 < high
            plain += name == "plain" and low < 0.5 < high
    assert covered / 1500 == pytest.approx(0.95, abs=0.02)
    assert plain / 1500 < 0.88


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
def test_whatever_the_clusters_a_share_has_an_interval(rows):
    """One text of several pictures, clusters of unequal sizes, and hits that are all alike."""
    labels, hits = (np.array(column) for column in zip(*rows, strict=True))
    size = effective_size(hits, labels)
    assert 1 <= size <= len(hits)
    low, high = proportion_interval(hits.mean() * size, size)
    assert 0 <= low <= hits.mean() <= high <= 1
    assert high > low


def test_labels_of_another_number_are_refused():
    with refuses("clusters"):
        metrics.mean_interval(np.ones(3), ["a"])
    with refuses("clusters"):
        metrics.paired_difference(np.ones(2), np.zeros(2), ["a"])
