"""FID (Eq 14) with an interval, and extrapolated to infinitely many pictures."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.metrics.fid import fid
from asddim_lib.metrics.intervals import Clusters
from experiments.intervals import bootstrap_interval


def fid_interval(
    features: Tensor,
    reference: Tensor,
    resamples: int = 40,
    seed: int = 0,
    rank_deficient: bool = False,
    clusters: Clusters = None,
) -> tuple[float, float]:
    """FID and the half-width of its 95 % interval, by bootstrap resamples of the images.

    The interval does not cover the bias of a finite set, and takes the reference as fixed. Errors
    as `fid`.
    """
    moments, x = _moments(reference), features.double()

    def resampled(rows: np.ndarray) -> float:
        return _frechet(x[rows], *moments)

    half = bootstrap_interval(resampled, len(x), resamples, seed, clusters)
    return fid(features, reference, rank_deficient), half


def fid_infinity(
    features: Tensor, reference: Tensor, sizes: int = 8, repeats: int = 5, seed: int = 0
) -> float:
    """FID extrapolated to infinitely many images (Chong and Forsyth 2020).

    A line is fitted to FID against 1/n, for `sizes` subsets from half of the images to all, each
    the mean of `repeats` draws; its value at 1/n = 0 is returned. The bias from the reference's own
    size remains. Raises WrongUse unless half of the images suffice for `fid`.
    """
    x, moments, draw = features.double(), _moments(reference), np.random.default_rng(seed)
    check(
        len(x) >= 2 * (x.shape[1] + 1),
        "features",
        f"{len(x)} × {x.shape[1]}",
        "the extrapolation needs more than twice as many images as feature dimensions",
    )

    def mean_of_draws(count: int) -> float:
        draws = repeats if count < len(x) else 1
        subsets = (x[draw.permutation(len(x))[:count]] for _ in range(draws))
        return float(np.mean([_frechet(subset, *moments) for subset in subsets]))

    counts = np.round(1 / np.linspace(1 / len(x), 2 / len(x), sizes)).astype(int)
    values = [mean_of_draws(count) for count in counts]
    return float(np.polyfit(1 / counts, values, 1)[1])


def _frechet(x: Tensor, mean: Tensor, root: Tensor) -> float:
    """FID of x (n × d) from a reference with that mean (d,) and root of the covariance (d × d).

    tr √(RS) equals tr √(√R S √R), whose matrix is symmetric: ten times faster than torchmetrics.
    """
    covariance = x.T.cov()
    cross = torch.linalg.eigvalsh(root @ covariance @ root).clamp(min=0).sqrt().sum()
    return float(
        (x.mean(0) - mean).square().sum() + covariance.trace() + root.square().sum() - 2 * cross
    )


def _moments(reference: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (d,) and the symmetric square root of the covariance (d × d)."""
    values, vectors = torch.linalg.eigh(reference.double().T.cov())
    return reference.double().mean(0), vectors * values.clamp(min=0).sqrt() @ vectors.T
