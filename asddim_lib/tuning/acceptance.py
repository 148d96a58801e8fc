"""Which recipe is returned, by several measures: the current one, unless another is proven better.

One recipe beats another if it wins by a measure, corrected over the measures (Holm), and no
measure's interval lies on the wrong side. A proposal has to beat the current setting and every
baseline: an intersection of tests, which needs no correction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from asddim_lib.metrics.intervals import ALPHA, holm, paired_difference, verdict
from asddim_lib.tuning.verify import CANDIDATE, CURRENT

#: The losses (n) of each recipe, by measure.
Losses = Mapping[str, Mapping[str, Tensor]]
#: The verdicts of `not_worse`.
NOT_WORSE, NOT_SHOWN = "not worse", "not shown"


@dataclass(frozen=True)
class Pair:
    """One recipe against another by one measure: the paired difference of losses, and a verdict.

    Below 0 the first is better. `p_adjusted` is corrected over the pair's measures (Holm). The
    verdict is "win", "tie" or "loss", or of `not_worse`.
    """

    first: str
    second: str
    measure: str
    difference: float
    half: float
    p_adjusted: float
    verdict: str


def pairs_of(first: str, second: str, losses: Losses) -> list[Pair]:
    """One recipe's losses (n) against another's, by each measure."""
    one, other = losses[first], losses[second]
    tests = {name: paired_difference(one[name], other[name]) for name in one}
    adjusted = holm([test.p_value for test in tests.values()])
    return [
        Pair(
            *(first, second, name, test.difference, test.half, float(p)),
            verdict(test.difference, test.half, float(p), "lower"),
        )
        for (name, test), p in zip(tests.items(), adjusted, strict=True)
    ]


def not_worse(first: str, second: str, losses: Losses, margin: float) -> list[Pair]:
    """Whether one recipe's losses (n) are not worse than another's, by each measure.

    They are if the interval of the mean difference lies below `margin` standard deviations of the
    second's losses. All measures have to pass, which needs no correction.
    """
    return [
        replace(
            pair,
            verdict=NOT_WORSE
            if pair.difference + pair.half < margin * float(losses[second][pair.measure].std())
            else NOT_SHOWN,
        )
        for pair in pairs_of(first, second, losses)
    ]


def beats(pairs: Sequence[Pair]) -> float:
    """The p-value of "better by a measure, worse by none" of one recipe against another.

    It is 1 where the interval of a measure lies on the wrong side, corrected or not.
    """
    worse = any(pair.difference > pair.half for pair in pairs)
    better = [pair.p_adjusted for pair in pairs if pair.difference < 0]
    return 1.0 if worse or not better else min(better)


def accept(losses: Losses, chosen: str) -> tuple[str, list[Pair]]:
    """Which recipe is returned, and the comparisons behind that.

    `losses` are by recipe and measure; none of these prompts served a choice. CANDIDATE is returned
    if it beats CURRENT and every baseline. Otherwise the baseline `chosen` beforehand is, if it
    beats CURRENT. Of both tests, Holm's correction is taken. Else CURRENT stays.
    """
    baselines = [name for name in losses if name != CANDIDATE]
    pairs = {
        (first, second): pairs_of(first, second, losses)
        for first in dict.fromkeys((CANDIDATE, chosen))
        for second in baselines
        if first in losses and first != second
    }
    tests = {}
    if CANDIDATE in losses:
        tests[CANDIDATE] = max(beats(pairs[CANDIDATE, other]) for other in baselines)
    if chosen != CURRENT:
        tests[chosen] = beats(pairs[chosen, CURRENT])
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True)) if tests else {}
    shown = [pair for some in pairs.values() for pair in some]
    return next((name for name, p in adjusted.items() if p < ALPHA), CURRENT), shown
