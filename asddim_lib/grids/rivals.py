"""Grids that others propose, each a function of the noise schedule and the number of steps alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import numpy as np

from asddim_lib.core.allocation import distinct
from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.errors import check

Levels = Callable[[float, float, int], np.ndarray]
Grid = Callable[[NoiseSchedule, int], list[int]]

# K noise levels σ = √((1 − ᾱ)/ᾱ) from the largest, `high`, to the smallest, `low`; clean data follows.


def karras(high: float, low: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Evenly spaced in σ^(1/ρ) (Karras et al. 2022, Eq 5)."""
    return np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho


def exponential(high: float, low: float, steps: int) -> np.ndarray:
    """Evenly spaced in log σ; since log σ is minus half the log-SNR, DPM-Solver's `logsnr` is the same grid."""
    return np.geomspace(high, low, steps)


def beta_sigmas(high: float, low: float, steps: int, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """Quantiles of the Beta distribution between the ends of σ, as diffusers' `use_beta_sigmas` reads Lee et al. 2024."""
    from scipy.stats import beta as distribution

    return low + distribution.ppf(np.linspace(1, 0, steps), a, b) * (high - low)


def arctan(high: float, low: float, steps: int, std: float = 1.0) -> np.ndarray:
    """Evenly spaced in arctan(σ / c): optimal for Gaussian data of standard deviation c (Sabour et al. 2024, Theorem 3.1)."""
    return std * np.tan(np.linspace(np.arctan(high / std), np.arctan(low / std), steps))


def align_your_steps(name: str) -> list[float]:
    """The ten noise levels that Sabour et al. 2024 publish for a model: `DeepFloydSigmas` from their appendix, the others from diffusers."""
    if name == "DeepFloydSigmas":
        return [160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030]
    from diffusers.schedulers import AysSchedules

    return AysSchedules[name][:-1]  # the last is 0, clean data


def _align_your_steps(name: str) -> Levels:
    def levels(high: float, low: float, steps: int) -> np.ndarray:
        known = np.log(align_your_steps(name))
        return np.exp(np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(known)), known))

    levels.__doc__ = f"Align Your Steps' published `{name}`, log-linear between its ten levels (Sabour et al. 2024)."
    return levels


LEVELS: dict[str, Levels] = {
    "karras": karras,
    "exponential": exponential,
    "logsnr": exponential,
    "beta-sigmas": beta_sigmas,
    "arctan": arctan,
    "ays-sd15": _align_your_steps("StableDiffusionSigmas"),
    "ays-sdxl": _align_your_steps("StableDiffusionXLSigmas"),
    "ays-deepfloyd": _align_your_steps("DeepFloydSigmas"),
}


def _by_level(levels: Levels) -> Grid:
    """The timesteps of a rival's noise levels on a schedule, by diffusers' log-linear interpolation, rounded and kept distinct."""

    def grid(schedule: NoiseSchedule, steps: int) -> list[int]:
        known = schedule.finite_sigmas
        wanted = levels(float(known[-1]), float(known[0]), steps)
        return distinct(np.interp(np.log(wanted), np.log(known), np.arange(len(known))))

    return grid


# Timesteps.


def quadratic(schedule: NoiseSchedule, steps: int) -> list[int]:
    """Denser at low noise, τ_k = T (1 − k/K)² (Song et al. 2021), laid from T down as `trailing` is."""
    return distinct(len(schedule) * (1 - np.arange(steps) / steps) ** 2 - 1)


def beta(schedule: NoiseSchedule, steps: int, a: float = 0.6, b: float = 0.6) -> list[int]:
    """Quantiles of the Beta distribution over timesteps, dense at both ends (Lee et al. 2024; ComfyUI's `beta`)."""
    from scipy.stats import beta as distribution

    return distinct(len(schedule) * distribution.ppf(1 - np.arange(steps) / steps, a, b) - 1)


def dmn(schedule: NoiseSchedule, steps: int) -> list[int]:
    """DMN (Xue et al. 2024): the grid of the least bound on what a multistep solver of order 3 makes of the network's errors, model-free.

    The search begins at uniform timesteps, as its authors advise for latent models. The bound has many minima, and which one it ends in hangs on
    rounding: another machine may find another grid, whose bound is some per cent higher or lower. Raises ValueError beyond 64 steps, where it takes minutes.
    """
    check(
        steps <= 64,
        "num_inference_steps",
        steps,
        "give at most 64 for dmn, whose search grows with their cube",
    )
    levels = schedule.finite_sigmas
    start = np.interp(
        np.linspace(len(levels) - 1, 0, steps + 1), np.arange(len(levels)), -np.log(levels)
    )
    found = _least_dmn_bound(tuple(start.tolist()))[
        :-1
    ]  # the last step leads to timestep 0, which is as good as clean
    return distinct(np.interp(-np.array(found), np.log(levels), np.arange(len(levels))))


@cache
def _least_dmn_bound(start: tuple[float, ...]) -> tuple[float, ...]:
    from scipy.optimize import LinearConstraint, minimize

    steps = len(start) - 1
    if steps == 1:
        return start
    rising = np.eye(steps, steps - 1) - np.eye(
        steps, steps - 1, -1
    )  # each row is a difference of neighbours; the ends are known
    least = np.concatenate([[start[0]], np.zeros(steps - 2), [-start[-1]]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the quasi-Newton update of a flat stretch
        found = minimize(
            lambda inner: _dmn_bound(np.array([start[0], *inner, start[-1]])),
            start[1:-1],
            method="trust-constr",
            constraints=[LinearConstraint(rising, least, np.inf)],
        )
    return (start[0], *found.x.tolist(), start[-1])


def _dmn_bound(nodes: np.ndarray) -> float:
    """The bound that `dmn` makes least, at the half-log-SNRs λ of its steps' ends (K + 1).

    Step s is the integral of e^λ times the polynomial through the last min(s + 1, 3, K − s) values of x̂_0, whose errors are taken to be
    σ_t²/√ᾱ_t. The first three steps count alone, the others by each value's summed weight: so their code has it.
    """
    steps, error = len(nodes) - 1, 1 / (np.sqrt(1 + np.exp(2 * nodes)) * np.exp(nodes))
    order = np.minimum(np.minimum(np.arange(steps) + 1, 3), steps - np.arange(steps))
    points, weights = np.polynomial.legendre.leggauss(8)
    total, summed = 0.0, np.zeros(steps)
    for number in (1, 2, 3):
        chosen = np.flatnonzero(order == number)
        behind = chosen[:, None] + np.arange(
            1 - number, 1
        )  # the values of x̂_0 that the step uses: steps × number
        half = (nodes[chosen + 1] - nodes[chosen])[:, None] / 2
        at = nodes[chosen][:, None] + half * (1 + points)
        share = np.zeros(behind.shape)
        for j in range(number):
            basis = np.exp(at) * half
            for m in set(range(number)) - {j}:
                basis = (
                    basis
                    * (at - nodes[behind[:, m], None])
                    / (nodes[behind[:, j]] - nodes[behind[:, m]])[:, None]
                )
            share[:, j] = basis @ weights * error[behind[:, j]]
        alone = chosen < 3
        total += np.sqrt((share[alone] ** 2).sum(1)).sum()
        np.add.at(summed, behind[~alone], share[~alone])
    return total + np.abs(summed).sum()


RIVALS: dict[str, Grid] = {
    "quadratic": quadratic,
    "beta": beta,
    "dmn": dmn,
    **{name: _by_level(levels) for name, levels in LEVELS.items()},
}
