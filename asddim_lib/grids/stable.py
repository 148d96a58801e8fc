"""The grid on which a guided sampler is as stable as K steps allow.

A step of DDIM or Euler from σ to σ' multiplies a deviation by 1 − κ (1 − σ'/σ), in the direction in
which σ ∂ε/∂y has its largest eigenvalue κ (`guidance.law`). The worst step is the one with the
largest κ (1 − σ'/σ), where κ is the largest on the way from σ to σ'. It is stable up to 2.

For a bound c, a step from σ may go down to the σ' at which this is c; where κ is constant, to
σ' = σ (1 − c/κ). A step that begins lower may end lower, so that steps which all go as far as c
allows reach a level in the fewest. The least c for which K steps suffice thus gives the grid whose
worst step is least. All its steps but the last, to clean data, then have the same κ (1 − σ'/σ).
The density of steps in ln σ is 1 / −ln(1 − c/κ); for a constant κ the steps are equal in ln σ.

κ is close to 1 in pure noise and, on real networks, where no guidance amplifies. It counts as at
least 1, so that no step is longer than there. A grid with c above 2 has unstable steps whatever its
levels: take more steps, or the cap of `guidance.plan`, or both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Levels, even in log σ, between which a step's end is interpolated.
FINENESS = 1024
LEAST_KAPPA = 1.0


def stable(
    high: float, low: float, steps: int, sigmas: Sequence[float], kappas: Sequence[float]
) -> np.ndarray:
    """K falling σ from `high` to `low`, for κ at falling `sigmas`: linear in log σ between them.

    Beyond them the nearest κ counts.
    """
    if steps < 3 or low >= high:
        return np.geomspace(high, low, steps)
    levels = np.linspace(np.log(high), np.log(low), FINENESS)  # falling
    known = np.interp(levels, np.log(sigmas[::-1]), kappas[::-1])
    kappa = np.maximum(known, LEAST_KAPPA)

    def grid(c: float) -> np.ndarray:
        """The starts of K steps, each as long as c allows."""
        starts = [levels[0]]
        for _ in range(steps - 1):
            starts.append(_end(starts[-1], levels, kappa, c))
        return np.array(starts)

    stays, reaches = 0.0, float(kappa.max())
    for _ in range(40):
        c = (stays + reaches) / 2
        stays, reaches = (stays, c) if grid(c)[-1] <= levels[-1] else (c, reaches)
    return np.exp(np.clip(grid(reaches), levels[-1], levels[0]))


def _end(start: float, levels: np.ndarray, kappa: np.ndarray, c: float) -> float:
    """The log σ where a step from `start` ends whose κ (1 − σ'/σ) is c; the last level or lower."""
    first = int(np.searchsorted(-levels, -start, side="right"))
    at_start = np.interp(-start, -levels, kappa)
    ends = np.append(start, levels[first:])
    largest = np.maximum.accumulate(np.append(at_start, kappa[first:]))
    bounds = -largest * np.expm1(ends - start)
    if bounds[-1] <= c:
        return float(levels[-1])
    return float(np.interp(c, bounds, ends))
