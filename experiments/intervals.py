"""Statistics that only the experiments need. All intervals have a level of 95 %.

`clusters` are as in `asddim_lib.metrics.intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import stats

from asddim_lib.errors import check
from asddim_lib.metrics.intervals import LEVEL, Clusters, standard_error


def proportion_interval(hits: float, total: float) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a proportion, within [0, 1].

    Of clustered pictures, `total` is their `effective_size` and `hits` the proportion times that.
    Raises WrongUse unless 0 ≤ hits ≤ total and total > 0.
    """
    check(total > 0, "total", total, "give at least 1")
    check(0 <= hits <= total, "hits", hits, f"give 0 to {total}")
    share, z = hits / total, float(stats.norm.ppf((1 + LEVEL) / 2))
    middle = share + z**2 / (2 * total)
    width = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    low, high = ((middle + sign * width) / (1 + z**2 / total) for sign in (-1, 1))
    return (0.0 if hits == 0 else low), (1.0 if hits == total else high)


def proportion_half_width(hits: float, total: float) -> float:
    """The distance from the proportion to the farther end of Wilson's interval; never 0."""
    low, high = proportion_interval(hits, total)
    return max(hits / total - low, high - hits / total)


def effective_size(hits: np.ndarray, clusters: Clusters = None) -> float:
    """How many independent values would give the clustered `hits` (n,) their standard error.

    From 1 to n, and n if all labels differ. If all hits are alike, their dependence cannot be
    seen, and the size is the number of clusters; it is 1 of a single cluster, too.
    """
    array = np.asarray(hits, np.float64)
    if array.std() == 0:
        return float(len(array) if clusters is None else len(pd.unique(np.asarray(clusters))))
    plain, clustered = (standard_error(array, labels)[0] for labels in (None, clusters))
    if clustered <= plain:
        return float(len(array))
    return max(1.0, len(array) * (plain / clustered) ** 2)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    count: int,
    resamples: int = 40,
    seed: int = 0,
    clusters: Clusters = None,
) -> float:
    """The half-width of a Student-t interval whose standard error comes from the bootstrap.

    For a figure of a set that is not a mean, such as FID. `statistic` takes the indices of a
    resample of `count` rows. Whole clusters are drawn, with replacement. A few dozen resamples
    give the standard error; percentile intervals would need thousands. The bias of a finite set
    is not covered. Infinite for one cluster. Raises WrongUse for fewer than 2 resamples or no rows.
    """
    check(resamples >= 2, "resamples", resamples, "give at least 2")
    check(count >= 1, "count", count, "give at least 1 row")
    labels = np.arange(count) if clusters is None else pd.factorize(np.asarray(clusters))[0]
    rows = np.split(np.argsort(labels, kind="stable"), np.bincount(labels).cumsum()[:-1])
    if len(rows) == 1:
        return math.inf
    draw = np.random.default_rng(seed)
    values = [
        statistic(np.concatenate([rows[i] for i in draw.integers(0, len(rows), len(rows))]))
        for _ in range(resamples)
    ]
    return float(stats.t.ppf((1 + LEVEL) / 2, resamples - 1)) * float(np.std(values, ddof=1))
