"""The statistics of a comparison. All intervals have a level of 95 %.

Values whose `clusters` labels agree, such as pictures of one text, may depend on each other. Sums
over clusters then take the place of single values (a cluster-robust interval with clusters - 1
degrees of freedom). If all labels differ, the result is the plain one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from torch import Tensor

from asddim_lib.errors import check

LEVEL = 0.95
ALPHA = 0.05
#: The chance with which a difference as large as the one measured should be shown.
POWER = 0.8

Better = Literal["lower", "higher"]
Verdict = Literal["win", "tie", "loss"]
#: One label per value; None means that all differ.
Clusters = Sequence[Any] | np.ndarray | None


def mean_interval(values: Tensor | np.ndarray, clusters: Clusters = None) -> tuple[float, float]:
    """The mean of `values` (n,) and the half-width of its Student-t interval.

    The half-width is infinite for fewer than 2 clusters. The mean of no values is NaN.
    """
    array = np.asarray(values, np.float64)
    error, freedom = standard_error(array, clusters)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error if freedom else math.inf
    return float(array.mean()) if len(array) else math.nan, half


def standard_error(values: np.ndarray, clusters: Clusters) -> tuple[float, int]:
    """The standard error of the mean of `values` (n,), and its degrees of freedom."""
    labels = np.arange(len(values)) if clusters is None else pd.factorize(np.asarray(clusters))[0]
    check(len(labels) == len(values), "clusters", len(labels), f"give {len(values)} labels")
    count = len(np.unique(labels))
    if count < 2:
        return math.inf, 0
    sums = np.bincount(labels, values - values.mean())
    return math.sqrt(count / (count - 1) * float(sums @ sums)) / len(values), count - 1


class Paired(NamedTuple):
    """How one method differs from another on the same pictures.

    `half` is the half-width of the mean difference's t interval; `p_value` is two-sided and not
    corrected for other comparisons.
    """

    difference: float
    half: float
    p_value: float


def paired_difference(
    values: Tensor | np.ndarray,
    baseline: Tensor | np.ndarray,
    clusters: Clusters = None,
) -> Paired:
    """The mean of values − baseline, both (n,), from the same prompts and noise, by the t test.

    The p-value is below 0.05 exactly where the interval excludes 0, and 1 where nothing differs.
    Raises WrongUse for unequal shapes and for values that are not finite.
    """
    array, base = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    check(
        array.shape == base.shape, "values", array.shape, f"give the baseline's shape {base.shape}"
    )
    change = array - base
    check(bool(np.isfinite(change).all()), "values", "not finite", "leave such pairs out")
    mean, half = mean_interval(change, clusters)
    error, freedom = standard_error(change, clusters)
    if not freedom or not change.any():
        return Paired(mean, half, 1.0)
    ratio = abs(mean) / error if error else math.inf
    return Paired(mean, half, 2 * float(stats.t.sf(ratio, freedom)))


def verdict(difference: float, half: float, p_adjusted: float, better: Better) -> Verdict:
    """Whether a paired difference from a baseline is a "win", a "tie" or a "loss".

    A win or a loss needs both an interval that excludes 0 and a corrected p below 0.05. A tie is
    a difference that was not shown, not equality. `better` says which direction wins: "lower" or
    "higher". Raises WrongUse for another direction.
    """
    check(better in ("lower", "higher"), "better", better, "use lower or higher")
    if not (abs(difference) > half and p_adjusted < ALPHA):  # NaN compares false: a tie
        return "tie"
    return "win" if (difference < 0) == (better == "lower") else "loss"


def prompts_needed(change: np.ndarray) -> int | None:
    """How many pairs would show a mean change as large as that of `change` (n), by a t test.

    The power is 80 %, and the level 5 %. None where the mean is 0 or the spread is unknown. With z
    the normal quantiles it is (z_level + z_power)² / effect² + z_level² / 2, whose second part
    makes up for the t distribution's wider tails.
    """
    if len(change) < 2 or change.mean() == 0:
        return None
    spread = change.std(ddof=1) / abs(change.mean())
    level, power = stats.norm.ppf(1 - ALPHA / 2), stats.norm.ppf(POWER)
    return max(2, math.ceil(((level + power) * spread) ** 2 + level**2 / 2))


def holm(p_values: np.ndarray | list[float]) -> np.ndarray:
    """p-values (m,) adjusted by Holm's step-down procedure (1979): float64, in the order given.

    The chance of even one false finding among the m comparisons is at most the level, whatever
    their dependence. Raises WrongUse for values outside [0, 1].
    """
    array = np.asarray(p_values, np.float64)
    check(bool(((array >= 0) & (array <= 1)).all()), "p_values", array, "give values in [0, 1]")
    order = array.argsort()
    remaining = len(array) - np.arange(len(array))
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(np.maximum.accumulate(remaining * array[order]), 1)
    return adjusted
