"""Whether a grid that was tuned is handed out: only if it wins on prompts that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.metrics.intervals import ALPHA, Verdict, holm, paired_difference, verdict

#: The chance with which an effect as large as the one seen should be found.
POWER = 0.8


@dataclass(frozen=True)
class Comparison:
    """A candidate against one peer: the paired difference of their losses, and the verdict.

    `p_value` is corrected for all peers that were compared. `needed` is how many prompts would find
    a difference as large as this one in four of five tries.
    """

    peer: str
    loss: float
    difference: float
    half: float
    p_value: float
    verdict: Verdict
    needed: float


@dataclass(frozen=True)
class Acceptance:
    """What is handed out: `accepted` says whether it is the candidate, `best` is the best peer."""

    accepted: bool
    best: str
    comparisons: list[Comparison]


def accept(candidate: Tensor, peers: Mapping[str, Tensor]) -> Acceptance:
    """Whether a candidate's losses (n) win over the best peer's, and lose to no peer's.

    The same pictures' losses are compared in pairs, on prompts that served no choice of the
    candidate. The best peer is the one with the least mean loss on those very prompts, which
    favours it. Holm's correction is for all peers. Raises WrongUse without a peer.
    """
    check(len(peers) > 0, "peers", "none", "give at least one grid to compare with")
    pairs = {name: paired_difference(candidate, losses) for name, losses in peers.items()}
    adjusted = holm([pair.p_value for pair in pairs.values()])
    found = []
    for (name, pair), p_value in zip(pairs.items(), adjusted, strict=True):
        change = np.asarray(candidate - peers[name], np.float64)
        said = verdict(pair.difference, pair.half, float(p_value), "lower")
        loss = float(peers[name].mean())
        row = (pair.difference, pair.half, float(p_value), said, prompts_needed(change))
        found.append(Comparison(name, loss, *row))
    best = min(found, key=lambda one: one.loss)
    lost = any(one.verdict == "loss" for one in found)
    return Acceptance(best.verdict == "win" and not lost, best.peer, found)


def prompts_needed(change: np.ndarray) -> float:
    """How many pairs would show a mean change as large as that of `change` (n), by a t test.

    The level is 5 %, the power 80 %. Infinite where the mean is 0 or the spread is unknown.
    """
    if len(change) < 2 or change.mean() == 0:
        return math.inf
    effect = abs(change.mean()) / change.std(ddof=1) if change.std(ddof=1) > 0 else math.inf
    sure, found = stats.norm.ppf(1 - ALPHA / 2), stats.norm.ppf(POWER)
    return max(2.0, math.ceil(((sure + found) / effect) ** 2 + sure**2 / 2))


def least_pairs(peers: int) -> int:
    """The fewest pairs with which Wilcoxon's test can say anything after Holm's correction."""
    return math.ceil(1 + math.log2(peers / ALPHA))
