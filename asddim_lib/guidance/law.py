"""The longest stable step: how a sampling step multiplies a deviation, and the scale that it bears.

In y = x / signal and σ = noise / signal every diffusion or flow model follows dy/dσ = ε(y, σ).
A small deviation of y in a direction where σ ∂ε/∂y has the eigenvalue κ follows dy/dσ = κ y / σ,
so the exact solution multiplies it by r^κ in a step from σ to σ' = rσ. Without guidance κ ≤ 1.
Guidance with scale w raises κ up to w, in the directions that the prompt decides.

A solver multiplies it by something else. DDIM and Euler by 1 − κ(1 − r), which lies below −1, and
so enlarges every deviation, where κ > 2 / (1 − r). A multistep solver's step is a matrix; its
largest eigenvalue counts. (Heun's step is also unstable for some κ < 1 where r < 7 − 4√3 ≈ 0.07.)
With r = σ'/σ, the previous step's ratio r₀, and ρ = ln r / ln r₀ (the
length of this step over that of the last one):

| solver | κ at which a step ceases to be stable |
| --- | --- |
| `euler` (DDIM) | 1 + (1 + r) / (1 − r) = 2 / (1 − r) |
| `ancestral` (Euler) | 2 / (1 − r²), since its deterministic part leads to r²σ |
| `dpm++` (2M) | 1 + (1 + r) / (1 − r) / (1 + ρ), at equal steps half the way above 1 |
| `unipc` (order 2) | 1 + (1 + r) / (1 − r) / (1 + ρ + ρr + 2r(c₁ − ρc₀)), less than 2M's |
| `heun` | (1 + r) / (1 − r), one less than Euler's for twice the work |
"""

from __future__ import annotations

import math

import numpy as np

from asddim_lib.errors import check

#: The solvers whose law is known. DDIM is Euler's method in these variables; flow matching has the
#: same laws, since σ and y are the same quantities there.
SOLVERS = ("euler", "ancestral", "dpm++", "unipc", "heun")


def propagation(
    ratio: float, kappa: float, solver: str = "euler", previous: float | None = None
) -> np.ndarray:
    """The matrix by which a step from σ to `ratio` · σ multiplies a deviation.

    The state of `euler`, `ancestral` and `heun` is y, so that the matrix is 1 × 1; that of `dpm++`
    is (y, y one step ago); that of `unipc` (y corrected, y predicted, y predicted one step ago).
    `previous` is the last step's ratio of a multistep solver, by default the same. Raises WrongUse
    for a ratio outside [0, 1), and for an unknown solver.
    """
    _check(ratio, solver)
    step = 1 - ratio
    if solver == "euler":
        return np.array([[1 - kappa * step]])
    if solver == "ancestral":
        return np.array([[1 - kappa * (1 - ratio**2)]])
    if solver == "heun":
        check(ratio > 0, "ratio", ratio, "Heun's last step is Euler's: use euler")
        return np.array([[1 - kappa * step / 2 * (1 + (1 - kappa * step) / ratio)]])
    clean = step * (1 - kappa)  # what a step adds per unit of predicted clean data
    length = _relative_length(ratio, previous)
    predicted = np.array([ratio, clean * (1 + length / 2), -clean * length / 2])
    if solver == "dpm++":
        return np.array([[ratio + predicted[1], predicted[2]], [1, 0]])
    older, newer = corrector(ratio, previous)
    older *= length
    corrected = np.array([ratio, clean * (1 + older - newer), -clean * older])
    return np.array([corrected + clean * newer * predicted, predicted, [0, 1, 0]])


def growth(
    ratio: float, kappa: float, solver: str = "euler", previous: float | None = None
) -> float:
    """How much a step multiplies a deviation in the long run: the size of its largest eigenvalue.

    At most 1 is stable. Arguments and errors are those of `propagation`.
    """
    values = np.linalg.eigvals(propagation(ratio, kappa, solver, previous))
    return float(np.abs(values).max())


def largest_scale(ratio: float, solver: str = "euler", previous: float | None = None) -> float:
    """The largest κ from 1 on for which a step from σ to `ratio` · σ is stable.

    As `propagation` has it; the formulas are those of the module's table. At `ratio` 0, a step from
    pure noise or to clean data, multistep solvers are of first order, and it is 2.
    """
    _check(ratio, solver)
    if ratio == 0:
        return 2.0
    if solver == "ancestral":
        return 2 / (1 - ratio**2)
    above = (1 + ratio) / (1 - ratio)
    if solver == "heun":
        return above
    if solver == "dpm++":
        above /= 1 + _relative_length(ratio, previous)
    elif solver == "unipc":
        length = _relative_length(ratio, previous)
        older, newer = corrector(ratio, previous)
        above /= 1 + length + length * ratio + 2 * ratio * (newer - older * length)
    return 1 + above


def largest_kappa(
    ratio: float, c: float = 2.0, solver: str = "euler", previous: float | None = None
) -> float:
    """The κ that a step bears; `c` = 2 is the limit of stability.

    For Euler's method it is c / (1 − r): with c = 1 a step removes a deviation, with c = 2 it
    reverses it. For other solvers it lies as far between 1 and their limit as Euler's lies between
    1 and its own. Raises WrongUse unless 0 < c ≤ 2.
    """
    check(0 < c <= 2, "c", c, "give a number above 0 and at most 2, where a step is barely stable")
    part = (c - 1 + ratio) / (1 + ratio)  # 0 at κ = 1, 1 at the limit
    return 1 + (largest_scale(ratio, solver, previous) - 1) * part


def capped_scale(
    ratio: float, c: float = 2.0, solver: str = "euler", previous: float | None = None
) -> float:
    """The guidance scale that a step bears where κ is the scale: `largest_kappa`, at least 1."""
    return max(1.0, largest_kappa(ratio, c, solver, previous))


def steps_needed(
    scale: float, sigma_max: float, sigma_min: float, solver: str = "euler", c: float = 2.0
) -> int:
    """The least K for which equal steps of log σ from σ_max to σ_min bear a guidance scale.

    For Euler's method it is ln(σ_max / σ_min) / −ln(1 − c / w). Raises WrongUse for no range, and
    for a scale that no number of steps bears.
    """
    check(sigma_max > sigma_min > 0, "sigma_max", sigma_max, f"give more than {sigma_min}")
    log_range = math.log(sigma_max / sigma_min)
    for count in range(1, 10_001):
        if capped_scale(math.exp(-log_range / count), c, solver) >= scale:
            return count
    check(False, "guidance_scale", scale, "more than 10,000 steps are needed: lower it")
    raise AssertionError


def corrector(ratio: float, previous: float | None = None) -> tuple[float, float]:
    """The weights of UniPC's corrector of order 2, with B(h) = eʰ − 1 (`bh2`).

    The first is that of the difference between the last two predictions of clean data, per length
    of a step; the second that of the new prediction (Zhao et al. 2023, Eq 13).
    """
    minus = math.log(ratio)  # −h
    first = math.expm1(minus)
    second = first / minus - 1
    third = second / minus - 0.5
    both, slope = second / first, 2 * third / first
    length = _relative_length(ratio, previous)
    older = (both - slope) * length / (1 + length)
    return older, both - older


def _relative_length(ratio: float, previous: float | None) -> float:
    """A step's length in log σ over the last one's, ρ."""
    if previous is None:
        return 1.0
    return math.log(ratio) / math.log(previous) if previous > 0 else 0.0


def _check(ratio: float, solver: str) -> None:
    check(solver in SOLVERS, "solver", solver, f"use one of {', '.join(SOLVERS)}")
    check(0 <= ratio < 1, "ratio", ratio, "give σ after the step over σ before it, 0 to below 1")
