"""Kernel distance between two sets of features (KID, Bińkowski et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.metrics.fid import _Given
from asddim_lib.metrics.intervals import mean_interval


def kid(
    features: Tensor, reference: Tensor, subsets: int = 10, seed: int = 0
) -> tuple[float, float]:
    """KID of features (n × d) from a reference (m × d), and the half-width of its 95 % interval.

    The value is torchmetrics', in float64, and unbiased at any n. Each of the `subsets` holds every
    image, against n images drawn from the reference. The interval comes from the spread of the
    images' influence on the U-statistic (Hoeffding's first projection), by Student's t. It takes
    the reference as fixed, as `fid_interval` does.

    Raises WrongUse unless 2 ≤ n ≤ m.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = features.double(), reference.double()
    check(
        1 < len(x) <= len(y),
        "features",
        f"{len(x)} images against {len(y)} of the reference",
        "give at least 2 images, and no more than the reference has",
    )
    metric = KernelInceptionDistance(
        feature=_Given(x.shape[1]), subsets=subsets, subset_size=len(x)
    ).set_dtype(torch.float64)
    metric.update(y, real=True)
    metric.update(x, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = float(metric.compute()[0])
    return value, 2 * mean_interval(_influence(x, y))[1]  # an image enters each pair of the kernel


def _influence(x: Tensor, y: Tensor) -> Tensor:
    """Half of what each row of x (n × d) adds to the U-statistic, up to a constant: shape (n,)."""
    own, cross = (x @ x.T / x.shape[1] + 1) ** 3, (x @ y.T / x.shape[1] + 1) ** 3
    return (own.sum(1) - own.diagonal()) / (len(x) - 1) - cross.mean(1)
