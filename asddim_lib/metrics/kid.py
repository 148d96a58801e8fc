"""Kernel distance between two sets of features (KID, Bińkowski et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.metrics.intervals import Clusters, mean_interval

#: Rows of a kernel matrix that are in memory at once.
ROWS = 1000


def kid(features: Tensor, reference: Tensor, clusters: Clusters = None) -> tuple[float, float]:
    """KID of features (n × d) from a reference (m × d), and the half-width of its 95 % interval.

    The value is unbiased and over all pairs: for n = m, torchmetrics' over one subset of all
    images. torchmetrics otherwise averages random subsets, whose value depends on its seed. The
    interval is that of the mean of `kid_shares`, with the reference taken as fixed.
    """
    return mean_interval(kid_shares(features, reference), clusters)


def kid_shares(
    features: Tensor,
    reference: Tensor,
    reference_kernel: Tensor | None = None,
    skip: Tensor | None = None,
) -> Tensor:
    """Each image's share in the KID of features (n × d) from a reference (m × d): (n,), float64.

    Their mean is the KID, and their spread that of the images' influence on it (Hoeffding's first
    projection), so that two methods can be compared image by image. With the kernel k, image i's
    share is 2 mean_j k(xᵢ, xⱼ) − 2 mean_j k(xᵢ, yⱼ) − mean k(x, x') + mean k(y, y').
    `reference_kernel` is the last term, `mean_kernel(reference)`, if it is known. `skip` (n × m,
    bool) leaves pairs out of the second, such as those of one prompt: k(xᵢ, xⱼ) has none of them.
    Raises WrongUse for fewer than 2 images on either side.
    """
    x, y = features.double(), reference.double()
    for name, values in (("features", x), ("reference", y)):
        check(len(values) > 1, name, f"{len(values)} images", "give at least 2")
    among = _among(x)
    used = torch.ones(len(x), len(y), dtype=torch.float64) if skip is None else (~skip).double()
    parts = zip(x.split(ROWS), used.split(ROWS), strict=True)
    cross = torch.cat([(_kernel(part, y) * w).sum(1) / w.sum(1) for part, w in parts])
    within = mean_kernel(y) if reference_kernel is None else reference_kernel
    return 2 * among - among.mean() - 2 * cross + within


def mean_kernel(features: Tensor) -> Tensor:
    """The mean kernel of two different rows of features (n × d): a scalar, float64."""
    return _among(features.double()).mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _among(x: Tensor) -> Tensor:
    """The mean kernel of each row of x (n × d) with the other rows: shape (n,)."""
    sums = torch.cat([_kernel(part, x).sum(1) for part in x.split(ROWS)])
    return (sums - (x.square().mean(1) + 1) ** 3) / (len(x) - 1)
