"""The statistics of a comparison: intervals, paired differences and verdicts.

All intervals have a level of 95 %.

- `mean_interval`: a mean over pictures, by Student's t. At n = 5 it covers 95 %, where 1.96
  standard errors cover only 88 %.
- `proportion_interval` and `proportion_half_width`: a share of pictures, by Wilson's score
  interval. Wald's interval has no width at a share of 0 or 1.
- `bootstrap_interval`: a figure of a whole set that is no mean over pictures, such as FID.
- `paired_difference`: two methods on the same prompts and the same noise.
- `holm`: p-values of several comparisons that are reported together.
- `verdict`: whether one comparison is a win, a tie or a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats
from torch import Tensor

from asddim_lib.errors import check

LEVEL = 0.95
ALPHA = 0.05

Better = Literal["lower", "higher"]
Verdict = Literal["win", "tie", "loss"]
Test = Literal["wilcoxon", "t"]


def mean_interval(values: Tensor | np.ndarray) -> tuple[float, float]:
    """The mean of `values` (n,) and the half-width of its Student-t interval.

    The half-width is infinite for n < 2, since one value shows no spread. The mean of none is NaN.
    """
    array = np.asarray(values, np.float64)
    mean = float(array.mean()) if len(array) else math.nan
    if len(array) < 2:
        return mean, math.inf
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    return mean, float(stats.t.ppf((1 + LEVEL) / 2, len(array) - 1)) * error


def proportion_interval(hits: int, total: int) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a share, within [0, 1].

    Raises WrongUse unless 0 ≤ hits ≤ total and total ≥ 1.
    """
    check(total >= 1, "total", total, "give at least 1")
    check(0 <= hits <= total, "hits", hits, f"give 0 to {total}")
    interval = stats.binomtest(hits, total).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def proportion_half_width(hits: int, total: int) -> float:
    """The distance from the share to the farther end of Wilson's interval.

    Wilson's interval is not symmetric about the share. The farther end makes share ± half-width
    hold the whole interval, at the price of some width; it is never 0. Errors as
    `proportion_interval`.
    """
    low, high = proportion_interval(hits, total)
    share = hits / total
    return max(share - low, high - share)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], count: int, resamples: int = 40, seed: int = 0
) -> float:
    """The half-width of a Student-t interval whose standard error comes from the bootstrap.

    `statistic` takes the indices (count,) of one resample, drawn with replacement, and returns the
    figure of those rows. This form needs only the standard error, which a few dozen resamples give
    (t allows for their number); percentile intervals need thousands, too many for FID. The
    bootstrap shows the spread over draws of the set, not the bias of a finite one. Infinite for
    one row.

    Raises WrongUse for fewer than 2 resamples or no rows.
    """
    check(resamples >= 2, "resamples", resamples, "give at least 2")
    check(count >= 1, "count", count, "give at least 1 row")
    if count == 1:
        return math.inf
    result = stats.bootstrap(
        (np.arange(count),),
        statistic,
        n_resamples=resamples,
        vectorized=False,
        method="percentile",  # the cheapest: only the standard error is used
        random_state=np.random.default_rng(seed),
    )
    return float(stats.t.ppf((1 + LEVEL) / 2, resamples - 1) * result.standard_error)


class Paired(NamedTuple):
    """How one method differs from another on the same pictures.

    `half` is the half-width of the difference's t interval; `p_value` is two-sided and not
    corrected for other comparisons.
    """

    difference: float
    half: float
    p_value: float


def paired_difference(
    values: Tensor | np.ndarray, baseline: Tensor | np.ndarray, test: Test = "wilcoxon"
) -> Paired:
    """`values` (n,) less `baseline` (n,), entry by entry.

    The `test` is Wilcoxon's signed-rank test, which no single pair decides; or "t", for values that
    mean something by their mean alone, as an image's share in a KID does. Where no pair differs, or
    there is no pair, p is 1. Raises WrongUse for arrays of different shapes, or values that are not
    finite.
    """
    one, other = (np.asarray(array, np.float64) for array in (values, baseline))
    check(one.shape == other.shape, "values", one.shape, f"give the baseline's shape {other.shape}")
    change = one - other
    check(bool(np.isfinite(change).all()), "values", "not finite", "leave such pairs out")
    how = stats.wilcoxon if test == "wilcoxon" else partial(stats.ttest_1samp, popmean=0.0)
    p_value = float(how(change).pvalue) if change.any() else 1.0
    return Paired(*mean_interval(change), p_value)


def holm(p_values: np.ndarray | list[float]) -> np.ndarray:
    """p-values (m,) adjusted by Holm's step-down procedure: float64, in the order given.

    The chance of even one false finding among the m comparisons is at most the level, whatever
    their dependence (Holm 1979). Every win in a table is read as a claim of its own, so this is the
    right guard; `scipy.stats.false_discovery_control` bounds only the share of false findings, and
    suits a search for candidates. Raises WrongUse for values outside [0, 1].
    """
    array = np.asarray(p_values, np.float64)
    check(bool(((array >= 0) & (array <= 1)).all()), "p_values", array, "give values in [0, 1]")
    order = array.argsort()
    remaining = len(array) - np.arange(len(array))
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(np.maximum.accumulate(remaining * array[order]), 1)
    return adjusted


def verdict(difference: float, half: float, p_adjusted: float, better: Better) -> Verdict:
    """Whether a paired difference from a baseline is a "win", a "tie" or a "loss".

    A win or a loss needs both an interval that excludes 0 and a corrected p below 0.05. `better`
    says which direction wins: "lower" or "higher". Raises WrongUse for another direction.
    """
    check(better in ("lower", "higher"), "better", better, "use lower or higher")
    if not (abs(difference) > half and p_adjusted < ALPHA):  # NaN compares false: a tie
        return "tie"
    return "win" if (difference < 0) == (better == "lower") else "loss"
