"""Kernel distance between two sets of features (KID)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.metrics.fid import _Given
from asddim_lib.metrics.intervals import Z95


def kid(
    features: Tensor, reference: Tensor, subsets: int = 10, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance between two sets of features, by torchmetrics, and the half-width of its 95 % interval. Unbiased at any size.

    Every image counts in each of the `subsets`, against as many of the reference. The interval is the U-statistic's own, from the spread of
    the images' influence on it (Hoeffding's first projection), with the reference taken as fixed, as `fid_interval` takes it.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = features.double(), reference.double()
    n = len(x)
    check(
        1 < n <= len(y),
        "features",
        f"{n} images against {len(y)} of the reference",
        "KID needs two images or more, and no more than the reference has",
    )
    metric = KernelInceptionDistance(
        feature=_Given(x.shape[1]), subsets=subsets, subset_size=n
    ).set_dtype(torch.float64)
    metric.update(y, real=True)
    metric.update(x, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = float(metric.compute()[0])
    own, cross = (x @ x.T / x.shape[1] + 1) ** 3, (x @ y.T / x.shape[1] + 1) ** 3
    influence = (own.sum(1) - own.diagonal()) / (n - 1) - cross.mean(1)
    return value, Z95 * 2 * float(influence.std()) / math.sqrt(n)
