"""The paper's exponent p that comes nearest to a given grid."""

from __future__ import annotations

import numpy as np

from asddim_lib.paper import allocate, noise_weights


def fit_grid(variance: np.ndarray, grid: list[int]) -> tuple[float, float]:
    """The p of Eq 5, to 0.01, with the nearest grid of the same length, and its distance.

    The distance is the root mean square, in timesteps.
    """
    powers = np.arange(0, 4.005, 0.01)

    def distance(p: float) -> float:
        other = np.array(allocate(1 / noise_weights(variance, p), len(grid)))
        return float(np.sqrt(np.mean((other - grid) ** 2)))

    distances = [distance(p) for p in powers]
    nearest = int(np.argmin(distances))
    return float(powers[nearest]), distances[nearest]
