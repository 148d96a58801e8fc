"""Kernel distance between two sets of features (KID, Bińkowski et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.metrics.fid import _Given
from asddim_lib.metrics.intervals import mean_interval

#: Rows of a kernel's matrix that are in memory at once.
ROWS = 1000


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
    shares = kid_shares(x, y, own=torch.zeros(()))  # which shifts all of them alike
    return value, mean_interval(shares)[1]


def kid_shares(features: Tensor, reference: Tensor, own: Tensor | None = None) -> Tensor:
    """Each image's share in the KID of features (n × d) from a reference (m × d): (n,), float64.

    Their mean is the unbiased KID over all pairs, and their spread that of the images' influence on
    it, so that two methods can be compared image by image, on the same prompts. With the kernel k,
    image i's share is 2 mean_j k(xᵢ, xⱼ) − 2 mean_j k(xᵢ, yⱼ) − mean k(x, x') + mean k(y, y').
    `own` is the last, `own_kernel(reference)`, for callers that compare with one reference often.
    Raises WrongUse for fewer than 2 images on either side.
    """
    x, y = features.double(), reference.double()
    for name, values in (("features", x), ("reference", y)):
        check(len(values) > 1, name, f"{len(values)} images", "give at least 2")
    among = _among(x)
    cross = torch.cat([_kernel(part, y).mean(1) for part in x.split(ROWS)])
    return 2 * among - among.mean() - 2 * cross + (own_kernel(y) if own is None else own)


def own_kernel(features: Tensor) -> Tensor:
    """The mean kernel of two different rows of features (n × d): a scalar, float64."""
    return _among(features.double()).mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """KID's polynomial kernel."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _among(x: Tensor) -> Tensor:
    """The mean kernel of each row of x (n × d) with the other rows: shape (n,)."""
    sums = torch.cat([_kernel(part, x).sum(1) for part in x.split(ROWS)])
    return (sums - (x.square().mean(1) + 1) ** 3) / (len(x) - 1)
