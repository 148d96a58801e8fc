"""The verdict on a tuned grid: what is accepted, how often wrongly, and on how many prompts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from asddim_lib.tuning.goals import Distribution, Embedding
from asddim_lib.tuning.verify import accept, confirm, least_pairs, prompts_needed


def losses(rng, count, mean=1.0):
    """Losses of one grid, skewed as distances are."""
    return torch.from_numpy(rng.lognormal(math.log(mean), 0.5, count))


def test_a_planted_win_is_accepted_and_a_planted_loss_is_not():
    rng = np.random.default_rng(0)
    peers = {"weak": losses(rng, 40, 2.0), "strong": losses(rng, 40)}
    better, worse = (factor * peers["strong"] for factor in (0.8, 1.25))
    won, lost = accept(better, peers), accept(worse, peers)
    assert (won.accepted, won.best) == (True, "strong")
    assert (lost.accepted, lost.best) == (False, "strong")
    assert [one.verdict for one in won.comparisons] == ["win", "win"]
    assert lost.comparisons[1].verdict == "loss"
    same = accept(peers["strong"], peers)
    assert not same.accepted
    assert same.comparisons[1].needed is None
    with pytest.raises(ValueError, match="peers is none; give at least one"):
        accept(better, {})


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 30), peers=st.integers(1, 6))
def test_what_is_accepted_has_the_least_mean_of_all(seed, count, peers):
    rng = np.random.default_rng(seed)
    given_, candidate = {str(n): losses(rng, count) for n in range(peers)}, losses(rng, count, 0.7)
    found = accept(candidate, given_)
    least = min(given_, key=lambda name: given_[name].mean())
    assert found.best == least
    if found.accepted:
        assert candidate.mean() < given_[least].mean()
        assert count >= least_pairs(peers)


@pytest.mark.parametrize("spread", ["normal", "skewed"])
def test_a_grid_that_is_no_better_is_accepted_in_at_most_five_percent(spread):
    """The worst case: one peer is as good, and the others are so bad that they cost nothing."""
    rng, wrong, tries = np.random.default_rng(3), 0, 800
    for _ in range(tries):
        noise = rng.standard_normal((3, 24)) if spread == "normal" else rng.lognormal(0, 1, (3, 24))
        shared = rng.standard_normal(24)
        candidate, equal, bad = (torch.from_numpy(shared + row) for row in noise)
        wrong += accept(candidate, {"equal": equal, "bad": bad + 9}).accepted
    assert 0.002 < wrong / tries < 0.05  # nominally half of 5 %, as only wins are accepted


@pytest.mark.parametrize("peers", range(1, 12))
def test_the_least_number_of_pairs_is_sharp(peers):
    """As many pairs, all better, are a win over every peer; one pair fewer never is."""
    for count, accepted in ((least_pairs(peers), True), (least_pairs(peers) - 1, False)):
        base = torch.arange(1.0, count + 1, dtype=torch.float64)
        rivals = {str(n): 100 + base for n in range(peers)}
        assert accept(100 - 0.01 * base, rivals).accepted == accepted


@pytest.mark.parametrize("effect", [0.2, 0.35, 0.6, 1.0])
@pytest.mark.parametrize("comparisons", [1, 9])
def test_the_prompts_that_are_said_to_be_needed_give_four_finds_in_five(effect, comparisons):
    """By the noncentral t distribution, of which `prompts_needed` uses only an approximation."""
    change = np.array([-1.0, 1.0] * 50)
    change = change / change.std(ddof=1) + effect
    count = prompts_needed(change, comparisons)
    limit = stats.t.ppf(1 - 0.05 / comparisons / 2, count - 1)
    power = stats.nct.sf(limit, count - 1, effect * count**0.5)
    assert 0.78 < power < 0.85
    assert prompts_needed(np.zeros(5)) is None
    assert prompts_needed(np.ones(1)) is None
    assert prompts_needed(np.ones(5)) == 2


def test_a_second_encoder_may_object_but_not_speak_for_a_candidate():
    rng = np.random.default_rng(1)
    base, noise = losses(rng, 40), torch.from_numpy(rng.standard_normal(40))
    won, tied = accept(0.8 * base, {"peer": base}), accept(base + 0.01 * noise, {"peer": base})
    assert won.accepted
    assert not tied.accepted
    other = losses(rng, 40)
    for second, verdict in ((1.3 * other, "loss"), (other + 0.01 * noise, "tie")):
        found = confirm(won, second, other)
        assert found.check.verdict == verdict
        assert found.accepted == (verdict == "tie")
    assert not confirm(tied, 0.5 * other, other).accepted


def test_a_goal_of_a_whole_set_is_compared_by_its_mean():
    """A few pictures make the mean: Wilcoxon's test, which ranks, would not see them."""
    rng = np.random.default_rng(0)
    peer = torch.from_numpy(rng.normal(size=200))
    gain = torch.from_numpy(np.where(np.arange(200) % 5 == 0, -10.0, 1.0) + rng.normal(size=200))
    assert Distribution.test == "t"
    assert accept(peer + gain, {"peer": peer}, Distribution.test).accepted
    assert not accept(peer + gain, {"peer": peer}, Embedding.test).accepted
