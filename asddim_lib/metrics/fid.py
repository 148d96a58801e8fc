"""Fréchet distance between two sets of features (FID, Eq 14)."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from asddim_lib.errors import check
from asddim_lib.metrics.intervals import Z95


class _Given(nn.Module):
    """A feature network for features that are already there."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def fid(features: Tensor, reference: Tensor, rank_deficient: bool = False) -> float:
    """Fréchet distance between two sets of features, each n × d (Eq 14), by torchmetrics in float64.

    Raises ValueError where a set has too few images for a covariance of full rank: the figure would be mostly bias. Who wants it
    all the same, to set beside another of as many images, as the paper's thousand of 2,048 features, says `rank_deficient`.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    for name, values in (("features", features), ("reference", reference)):
        check(
            rank_deficient or len(values) > values.shape[1],
            name,
            f"{len(values)} × {values.shape[1]}",
            "FID needs more images than feature dimensions",
        )
    metric = FrechetInceptionDistance(feature=_Given(features.shape[1])).set_dtype(torch.float64)
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    return float(metric.compute())


def fid_interval(
    features: Tensor,
    reference: Tensor,
    resamples: int = 40,
    seed: int = 0,
    rank_deficient: bool = False,
) -> tuple[float, float]:
    """FID and the half-width of its 95 % interval, from the spread of FID over bootstrap resamples of the images.

    The interval speaks of the spread that another draw of images would show. The bias of a finite sample is not in it.
    """
    draw, moments, x = np.random.default_rng(seed), _moments(reference), features.double()
    values = [_frechet(x[draw.integers(0, len(x), len(x))], *moments) for _ in range(resamples)]
    return fid(features, reference, rank_deficient), Z95 * float(np.std(values, ddof=1))


def fid_infinity(
    features: Tensor, reference: Tensor, sizes: int = 8, repeats: int = 5, seed: int = 0
) -> float:
    """FID as it would be of endlessly many images: a line through FIDs of fewer of them, against 1/n, where 1/n is 0 (Chong and Forsyth 2020).

    The reference's own bias, of its size, stays. The line goes from half of the images to all; it needs as many in the half as FID itself.
    Raises ValueError with fewer.
    """
    x, moments, draw = features.double(), _moments(reference), np.random.default_rng(seed)
    check(
        len(x) >= 2 * (x.shape[1] + 1),
        "features",
        f"{len(x)} × {x.shape[1]}",
        "the extrapolation needs more than twice as many images as feature dimensions",
    )
    counts = np.round(1 / np.linspace(1 / len(x), 2 / len(x), sizes)).astype(int)
    values = [
        np.mean(
            [
                _frechet(x[draw.permutation(len(x))[:count]], *moments)
                for _ in range(repeats if count < len(x) else 1)
            ]
        )
        for count in counts
    ]
    return float(np.polyfit(1 / counts, values, 1)[1])


def _frechet(x: Tensor, mean: Tensor, root: Tensor) -> float:
    """FID to a reference of that mean and root of a covariance: tr √(RS) is tr √(√R S √R), whose matrix is symmetric: ten times faster than torchmetrics' way."""
    covariance = x.T.cov()
    crossed = torch.linalg.eigvalsh(root @ covariance @ root).clamp(min=0).sqrt().sum()
    return float(
        (x.mean(0) - mean).square().sum() + covariance.trace() + root.square().sum() - 2 * crossed
    )


@cache
def _moments(reference: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the symmetric square root of the covariance."""
    values, vectors = torch.linalg.eigh(reference.double().T.cov())
    return reference.double().mean(0), vectors * values.clamp(min=0).sqrt() @ vectors.T
