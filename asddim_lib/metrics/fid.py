"""Fréchet distance between two sets of features (FID, Eq 14)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asddim_lib.errors import check


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
