"""Intervals and paired differences, with correction for many comparisons."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

Z95 = 1.959964


def mean_interval(values: Tensor | np.ndarray) -> tuple[float, float]:
    """Mean and the half-width of its 95 % interval."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), Z95 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(
        values
    ) > 1 else math.inf


def proportion_interval(hits: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    share, z2 = hits / total, Z95**2
    centre, spread = (
        share + z2 / (2 * total),
        Z95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)),
    )
    return (centre - spread) / (1 + z2 / total), (centre + spread) / (1 + z2 / total)
