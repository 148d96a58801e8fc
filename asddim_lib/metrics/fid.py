"""Fréchet distance between two sets of features (FID, Eq 14)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from asddim_lib.errors import check
from asddim_lib.metrics.intervals import Clusters, bootstrap_interval


class _Identity(nn.Module):
    """Returns its input: torchmetrics' feature network for features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def fid(features: Tensor, reference: Tensor, rank_deficient: bool = False) -> float:
    """FID of features (n × d) from a reference (m × d), by torchmetrics in float64 (Eq 14).

    Raises WrongUse where a set has no more images than dimensions: its covariance is singular, and
    the figure is mostly bias. `rank_deficient=True` computes it all the same, for comparison with
    a figure of as many images, such as the paper's 1,000 images of 2,048 features.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    for name, values in (("features", features), ("reference", reference)):
        check(
            rank_deficient or len(values) > values.shape[1],
            name,
            f"{len(values)} × {values.shape[1]}",
            "FID needs more images than feature dimensions",
        )
    metric = FrechetInceptionDistance(feature=_Identity(features.shape[1])).set_dtype(torch.float64)
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    return float(metric.compute())


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
