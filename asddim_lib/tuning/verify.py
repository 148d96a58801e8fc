"""Whether a grid that was tuned is handed out: only if it wins on prompts that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.metrics.intervals import ALPHA, Test, Verdict, holm, paired_difference, verdict

#: The chance with which an effect as large as the one seen should be found.
POWER = 0.8


@dataclass(frozen=True)
class Comparison:
    """A candidate against one peer: the paired difference of their losses, and the verdict.

    `loss` is the peer's mean; `difference` is the candidate's less the peer's, ± `half`. All three
    are of logarithms where the goal's losses are `relative`. `p_value` is corrected for all peers
    that were compared. `needed` is how many prompts would find a difference as large as this one in
    four of five tries; None where there is none.
    """

    peer: str
    loss: float
    difference: float
    half: float
    p_value: float
    verdict: Verdict
    needed: int | None


@dataclass(frozen=True)
class Acceptance:
    """What is handed out: `accepted` says whether it is the candidate, `best` is the best peer.

    `check` is a second encoder's comparison with that peer, where there is one.
    """

    accepted: bool
    best: str
    comparisons: list[Comparison]
    check: Comparison | None = None


def accept(candidate: Tensor, peers: Mapping[str, Tensor], test: Test = "wilcoxon") -> Acceptance:
    """Whether a candidate's losses (n) win over the best peer's, and so lose to no peer's.

    The same pictures' losses are compared in pairs, on prompts that served no choice of the
    candidate. The best peer is the one with the least mean loss on those very prompts: a choice
    that favours the peer. A win is an interval without 0 and a p below 0.05 after Holm's
    correction for all peers; ties and losses are named in the answer, too. The `test` is the
    goal's. Raises WrongUse without a peer.
    """
    check(len(peers) > 0, "peers", "none", "give at least one grid to compare with")
    found = _compared(candidate, peers, test)
    best = min(found, key=lambda one: one.loss)
    return Acceptance(best.verdict == "win", best.peer, found)


def confirm(acceptance: Acceptance, candidate: Tensor, best: Tensor) -> Acceptance:
    """The same after a second encoder's losses (n) of candidate and best peer are compared.

    A candidate that loses there is not accepted. A tie is enough: the first encoder has seen a win.
    """
    (second,) = _compared(candidate, {acceptance.best: best})
    accepted = acceptance.accepted and second.verdict != "loss"
    return replace(acceptance, accepted=accepted, check=second)


def _compared(
    candidate: Tensor, peers: Mapping[str, Tensor], test: Test = "wilcoxon"
) -> list[Comparison]:
    """A candidate against each peer, with Holm's correction for all of them."""
    pairs = {name: paired_difference(candidate, rest, test) for name, rest in peers.items()}
    adjusted = holm([pair.p_value for pair in pairs.values()])
    found = []
    for (name, pair), p_value in zip(pairs.items(), adjusted, strict=True):
        change = np.asarray(candidate - peers[name], np.float64)
        said = verdict(pair.difference, pair.half, float(p_value), "lower")
        needed = prompts_needed(change, len(peers))
        row = (pair.difference, pair.half, float(p_value), said, needed)
        found.append(Comparison(name, float(peers[name].mean()), *row))
    return found


def prompts_needed(change: np.ndarray, comparisons: int = 1) -> int | None:
    """How many pairs would show a mean change as large as that of `change` (n), by a t test.

    The power is 80 %, and the level 5 % over the number of comparisons. None where the mean is 0 or
    the spread is unknown. With z the normal quantiles it is (z_level + z_power)² / effect² +
    z_level² / 2, whose second part makes up for the t distribution's wider tails.
    """
    if len(change) < 2 or change.mean() == 0:
        return None
    spread = change.std(ddof=1) / abs(change.mean())
    sure, found = stats.norm.ppf(1 - ALPHA / comparisons / 2), stats.norm.ppf(POWER)
    return max(2, math.ceil(((sure + found) * spread) ** 2 + sure**2 / 2))


def least_pairs(peers: int) -> int:
    """The fewest pairs of which Wilcoxon's test can call a difference significant at all.

    The least p of n pairs is 2 / 2ⁿ, which Holm's correction multiplies by the number of peers.
    """
    return math.ceil(1 + math.log2(peers / ALPHA))
