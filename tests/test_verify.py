"""Which sampler is returned: how often wrongly, with which power, and on how many prompts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from asddim_lib.metrics.intervals import ALPHA, prompts_needed
from asddim_lib.tuning.verify import CANDIDATE, CURRENT, by_text, compared, decide
from tests.refusals import refuses
from tests.simulate_tune import (
    BETTER,
    COUNTS,
    NOBODY,
    RUNS,
    rate,
    replaced,
    replaced_before,
    wilcoxon,
)

SAMPLERS = ("a", "b", CANDIDATE)


def losses(rng, count, shift=(0.0, 0.0, 0.0, 0.0)):
    """Losses of the current sampler, two baselines and a candidate."""
    shared = rng.standard_normal(count)
    rows = [m + shared + 0.3 * rng.standard_normal(count) for m in shift]
    return dict(zip((CURRENT, *SAMPLERS), map(torch.from_numpy, rows), strict=True))


# which one is returned


@pytest.mark.parametrize(
    ("shift", "returned"),
    [
        ((0, 0, 0, -1), CANDIDATE),
        ((0, -1, 0, -1), "a"),  # as good as the candidate
        ((0, -1, 0, -2), CANDIDATE),
        ((0, -2, -1, 0), "a"),
        ((0, -2, -1, -1), "a"),
        ((-1, 0, 0, 0), CURRENT),
        ((0, -1, -1, -1), CURRENT),  # as good as each other
        ((-1, 0, 0, -1), CURRENT),
        ((-1, -2, 0, -2.5), CANDIDATE),
    ],
)
def test_only_what_wins_over_the_current_sampler_and_every_baseline_is_returned(shift, returned):
    given_ = losses(np.random.default_rng(0), 60, shift)
    found = decide(given_)
    assert found.returned == returned
    for one in found.comparisons:
        change = given_[one.first].numpy() - given_[one.second].numpy()
        low, high = stats.ttest_1samp(change, 0).confidence_interval(0.95)
        assert (one.difference - one.half, one.difference + one.half) == pytest.approx((low, high))
        wanted = "win" if high < 0 else "loss" if low > 0 else "tie"
        assert (one.verdict, one.loss) == (wanted, pytest.approx(given_[one.second].mean()))
    pairs = {(one.first, one.second) for one in found.comparisons}
    assert {(CANDIDATE, CURRENT), (CANDIDATE, "a"), (CANDIDATE, "b")} <= pairs
    assert {("a", CURRENT), ("b", CURRENT)} <= pairs
    assert [one.second for one in found.of(CANDIDATE)] == [CURRENT, "a", "b"]


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 30), gain=st.floats(0, 0.6))
def test_the_simulation_s_rule_is_the_library_s(seed, count, gain):
    given_ = losses(np.random.default_rng(seed), count, (0, -gain / 2, 0, -gain))
    found = decide(given_).returned != CURRENT
    assert replaced({name: values.numpy()[None] for name, values in given_.items()})[0] == found


def test_the_rule_before_is_computed_as_it_was():
    change = np.random.default_rng(0).standard_normal((6, 24)) - 0.4
    expected = [stats.wilcoxon(row).pvalue for row in change]
    np.testing.assert_allclose(wilcoxon(change), expected, rtol=1e-9)


def test_without_a_current_sampler_there_is_nothing_to_decide():
    with refuses("losses"):
        decide({"a": torch.zeros(3)})


def test_pairs_of_equal_pictures_are_a_tie_and_one_pair_says_nothing():
    same = torch.arange(5.0)
    found = decide({CURRENT: same, CANDIDATE: same})
    assert found.returned == CURRENT
    assert found.comparisons[0].verdict == "tie"
    assert found.comparisons[0].needed is None
    one = decide({CURRENT: torch.ones(1), CANDIDATE: torch.zeros(1)})
    assert one.returned == CURRENT


@pytest.mark.parametrize(
    ("second", "returned"), [(1.0, CURRENT), (0.0, CANDIDATE), (-1, CANDIDATE)]
)
@pytest.mark.parametrize("against", [CURRENT, "a", "b"])
def test_a_second_encoder_may_object_for_every_baseline_but_not_speak_for_one(
    second, returned, against
):
    rng = np.random.default_rng(1)
    won, checked = losses(rng, 40, (0, 0, 0, -1)), losses(rng, 40)
    checked[against] = (
        checked[CANDIDATE] - second + 0.01 * torch.from_numpy(rng.standard_normal(40))
    )
    for name in {CURRENT, "a", "b"} - {against}:
        checked[name] = checked[CANDIDATE]
    found = decide(won, checked)
    assert found.returned == returned
    assert [one.second for one in found.objections] == ([against] if second > 0 else [])
    tied = losses(rng, 40)
    better = {**checked, CANDIDATE: checked[CANDIDATE] - 9}
    assert decide(tied, better).returned == CURRENT


# how often


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("scenario", NOBODY, ids=lambda s: s.name)
def test_where_nothing_is_better_the_sampler_is_replaced_in_at_most_five_percent(scenario, count):
    share, low, _ = rate(scenario, count, RUNS)
    assert low < ALPHA
    assert share <= ALPHA


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("scenario", [s for s in BETTER if not s.copies], ids=lambda s: s.name)
def test_where_the_candidate_is_better_the_power_is_that_of_the_rule_before(scenario, count):
    now, low, high = rate(scenario, count, 400)
    before, *_ = rate(scenario, count, 400, replaced_before)
    assert high >= before, (now, low)


def test_the_rule_before_took_a_near_copy_s_win_for_its_candidate_s():
    (copy,) = (s for s in NOBODY if s.name == "copy")
    assert rate(copy, 24, 500, replaced_before)[0] > 0.3


# prompts


def test_pictures_of_one_text_count_once():
    texts = ["a", "b", "a", "c", "a"]
    values = by_text(torch.tensor([1.0, 5.0, 2.0, 7.0, 6.0]), texts)
    assert values.tolist() == [3.0, 5.0, 7.0]
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(400):  # 4 pictures of each of 8 texts, whose noise is mostly the text's
        noise = np.repeat(rng.standard_normal(8), 4) + 0.1 * rng.standard_normal(32)
        given_ = {CURRENT: torch.zeros(32), CANDIDATE: torch.from_numpy(noise)}
        texts = [str(n) for n in np.repeat(np.arange(8), 4)]
        wrong += (
            compared(CANDIDATE, CURRENT, {n: by_text(v, texts) for n, v in given_.items()}).verdict
            == "win"
        )
    assert wrong / 400 < 0.05


@pytest.mark.parametrize("effect", [0.2, 0.35, 0.6, 1.0])
def test_the_prompts_that_are_said_to_be_needed_give_four_wins_in_five(effect):
    """By the noncentral t distribution, of which `prompts_needed` uses only an approximation."""
    change = np.array([-1.0, 1.0] * 50)
    change = change / change.std(ddof=1) + effect
    count = prompts_needed(change)
    power = stats.nct.sf(stats.t.ppf(0.975, count - 1), count - 1, effect * count**0.5)
    assert 0.78 < power < 0.85
    assert prompts_needed(np.zeros(5)) is None
    assert prompts_needed(np.ones(1)) is None
    assert prompts_needed(np.ones(5)) == 2
