"""Noise, blur and fine detail of pictures, without a network, and a distance between two sets.

Image encoders are trained to overlook noise and blur, which few steps cost first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from asddim_lib.errors import check

#: Pictures are also looked at when they are shrunk by these factors.
SHRUNK = (1, 2, 4)
#: An energy that no eye sees, about half a grey level of 255 squared: its logarithm is finite.
SMALLEST = 1e-5


def fine_detail(pictures: Tensor) -> Tensor:
    """Log energies (n × 18, float64) of pictures (n × 3 × h × w, uint8), at least 12 × 12.

    They are those of first and second differences between neighbouring pixels, for each channel,
    in the picture and in copies of a half and a quarter of its size. Noise raises them, blur lowers
    them.
    """
    energies = []
    for factor in SHRUNK:
        scaled = avg_pool2d(pictures.double() / 127.5 - 1, factor)
        down, across = scaled.diff(dim=2), scaled.diff(dim=3)
        for one, other in ((down, across), (down.diff(dim=2), across.diff(dim=3))):
            energies.append(one.square().mean((2, 3)) + other.square().mean((2, 3)))
    return torch.cat(energies, 1).add(SMALLEST).log()


def energy_shares(features: Tensor, reference: Tensor, skip: Tensor | None = None) -> Tensor:
    """Each row's share (n, float64) in the energy distance of features (n × d) from a reference.

    The distance is 2 E|x − y| − E|x − x'| − E|y − y'| (Székely & Rizzo 2013): 0 for two samples of
    one distribution, on average, and above 0 for others. Outliers count less than in KID. Shares
    average to it, as those of `kid_shares` do. `skip` (n × m, bool) leaves pairs out of the first
    term. Both are scaled by the reference's spread in each of the d dimensions. Raises WrongUse for
    fewer than 2 rows on either side.
    """
    for name, values in (("features", features), ("reference", reference)):
        check(len(values) > 1, name, f"{len(values)} images", "give at least 2")
    spread = reference.double().std(0)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    x, y = features.double() / spread, reference.double() / spread
    used = torch.ones(len(x), len(y), dtype=torch.float64) if skip is None else (~skip).double()
    cross = (torch.cdist(x, y) * used).sum(1) / used.sum(1)
    among = torch.cdist(x, x).sum(1) / (len(x) - 1)
    within = torch.cdist(y, y).sum() / (len(y) * (len(y) - 1))
    return 2 * cross - 2 * among + among.mean() - within
