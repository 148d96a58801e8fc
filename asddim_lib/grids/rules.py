"""Grids proposed by others, each a function of the noise schedule and the number of steps alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from asddim_lib.errors import check
from asddim_lib.grids.native import Table
from asddim_lib.paper import NoiseSchedule, distinct

#: Points and weights of the rule that integrates over a step: exact to machine precision there.
LEGENDRE = np.polynomial.legendre.leggauss(8)

Levels = Callable[[float, float, int], np.ndarray]
Grid = Callable[[NoiseSchedule, int], list[int]]

# Grids in σ: K noise levels σ = √((1 − ᾱ)/ᾱ) from the largest, `high`, to the smallest, `low`.
# Clean data, σ = 0, follows. Those of `IN_OWN_NUMBERS` are laid in a flow model's share of noise s,
# as diffusers and ComfyUI lay them there.


def karras(high: float, low: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Evenly spaced in σ^(1/ρ) (Karras et al. 2022, Eq 5)."""
    return np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho


def exponential(high: float, low: float, steps: int) -> np.ndarray:
    """Evenly spaced in log σ.

    log σ is minus half the log-SNR, so this is also DPM-Solver's `logsnr` grid.
    """
    return np.geomspace(high, low, steps)


def beta_sigmas(high: float, low: float, steps: int, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """Quantiles of a Beta distribution over σ (Lee et al. 2024).

    This is the reading of `use_beta_sigmas` in diffusers.
    """
    from scipy.stats import beta as distribution

    return low + distribution.ppf(np.linspace(1, 0, steps), a, b) * (high - low)


def arctan(high: float, low: float, steps: int, std: float = 1.0) -> np.ndarray:
    """Evenly spaced in arctan(σ / c) (Sabour et al. 2024, Theorem 3.1).

    The optimal grid for Gaussian data of standard deviation c.
    """
    return std * np.tan(np.linspace(np.arctan(high / std), np.arctan(low / std), steps))


def align_your_steps(name: str) -> list[float]:
    """The ten noise levels that Sabour et al. 2024 publish for a model.

    `DeepFloydSigmas` are from their appendix, all others from diffusers' `AysSchedules`.
    """
    if name == "DeepFloydSigmas":
        return [160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030]
    from diffusers.schedulers import AysSchedules

    return AysSchedules[name][:-1]  # the last is 0, clean data


def log_linear(levels: Sequence[float] | np.ndarray, steps: int) -> np.ndarray:
    """K levels from a published list of another length, with both its ends (Sabour et al. 2024).

    Evenly spaced places of the list, log-linear between its levels.
    """
    places = np.linspace(0, 1, len(levels))
    return np.exp(np.interp(np.linspace(0, 1, steps), places, np.log(levels)))


def _align_your_steps(name: str) -> Levels:
    def levels(high: float, low: float, steps: int) -> np.ndarray:
        return log_linear(align_your_steps(name), steps)

    levels.__doc__ = (
        f"Align Your Steps' published `{name}`, log-linear between its ten levels "
        "(Sabour et al. 2024)."
    )
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
    "ays-svd": _align_your_steps("StableDiffusionVideoSigmas"),
}


#: What diffusers' flags (`use_karras_sigmas`, …) and ComfyUI lay in s on a flow model. Its σ has no
#: upper end: in σ these grids would spend most of their steps on what is pure noise.
IN_OWN_NUMBERS = ("karras", "exponential", "beta-sigmas")


def nearest(schedule: NoiseSchedule, wanted: np.ndarray) -> list[int]:
    """The timesteps of K falling noise levels σ on a schedule; a level may be infinite.

    Interpolates log-linearly, as diffusers does, and rounds to distinct timesteps.
    """
    sigmas = schedule.finite_sigmas
    return distinct(np.interp(np.log(wanted), np.log(sigmas), np.arange(len(sigmas))))


def _by_level(levels: Levels, in_own_numbers: bool) -> Grid:
    def grid(schedule: NoiseSchedule, steps: int) -> list[int]:
        if in_own_numbers:
            table = Table.of(schedule)
            own = levels(float(table.levels[-1]), float(table.levels[0]), steps)
            return nearest(schedule, table.sigmas(own))
        sigmas = schedule.finite_sigmas
        return nearest(schedule, levels(float(sigmas[-1]), float(sigmas[0]), steps))

    return grid


# Grids in timesteps.


def quadratic(schedule: NoiseSchedule, steps: int) -> list[int]:
    """τ_k = T (1 − k/K)², denser at low noise (Song et al. 2021).

    Laid from T down, as `trailing` is.
    """
    return distinct(len(schedule) * (1 - np.arange(steps) / steps) ** 2 - 1)


def beta(schedule: NoiseSchedule, steps: int, a: float = 0.6, b: float = 0.6) -> list[int]:
    """Quantiles of a Beta distribution over timesteps, dense at both ends (Lee et al. 2024).

    ComfyUI calls this grid `beta`.
    """
    from scipy.stats import beta as distribution

    return distinct(len(schedule) * distribution.ppf(1 - np.arange(steps) / steps, a, b) - 1)


def dmn(schedule: NoiseSchedule, steps: int) -> list[int]:
    """DMN (Xue et al. 2024): minimizes a bound on the effect of the network's errors.

    The bound is that of a multistep solver of order 3, and needs no model. The search starts at
    uniform timesteps, as its authors advise for latent models. The bound has many minima, and
    rounding decides between them: another machine may return another grid, with a bound a few
    per cent higher or lower. Raises WrongUse beyond 64 steps, where the search takes minutes.
    """
    remedy = "give at most 64 for dmn, whose search grows with their cube"
    check(steps <= 64, "num_inference_steps", steps, remedy)
    levels = schedule.finite_sigmas
    places = np.linspace(len(levels) - 1, 0, steps + 1)
    start = np.interp(places, np.arange(len(levels)), -np.log(levels))
    # The last node is timestep 0, where the last step ends: as good as clean data.
    nodes = np.array(_least_dmn_bound(tuple(start.tolist()))[:-1])
    return distinct(np.interp(-nodes, np.log(levels), np.arange(len(levels))))


@cache
def _least_dmn_bound(start: tuple[float, ...]) -> tuple[float, ...]:
    from scipy.optimize import LinearConstraint, minimize

    steps = len(start) - 1
    if steps == 1:
        return start
    # Each row is the difference of two neighbouring nodes, which must not fall; the ends are fixed.
    rising = np.eye(steps, steps - 1) - np.eye(steps, steps - 1, -1)
    least = np.concatenate([[start[0]], np.zeros(steps - 2), [-start[-1]]])

    def bound(inner: np.ndarray) -> np.ndarray:
        ends = [(0, 0)] * (inner.ndim - 1) + [(1, 1)]
        return _dmn_bound(np.pad(inner, ends, constant_values=[(start[0], start[-1])]))

    def slope(inner: np.ndarray) -> np.ndarray:
        """Forward differences, all in one call of the bound."""
        moves = np.sqrt(np.finfo(float).eps) * np.where(inner < 0, -1, 1) * np.fmax(1, abs(inner))
        moved = inner + np.diag(moves)
        return (bound(moved) - bound(inner)) / (moved - inner).diagonal()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the quasi-Newton update of a flat stretch
        result = minimize(
            lambda inner: float(bound(inner)),
            start[1:-1],
            jac=slope,
            method="trust-constr",
            constraints=[LinearConstraint(rising, least, np.inf)],
        )
    return (start[0], *result.x.tolist(), start[-1])


def _dmn_bound(nodes: np.ndarray) -> np.ndarray:
    """The bound that `dmn` minimizes, at half-log-SNRs λ_0 … λ_K (… × K + 1), for each row.

    Step s integrates e^λ times the polynomial through the last min(s + 1, 3, K − s) values of
    x̂_0, whose errors are taken to be σ_t²/√ᾱ_t. As in the authors' code, the first three steps
    count separately, the others by the summed weight of each value.
    """
    steps = nodes.shape[-1] - 1
    error = 1 / (np.sqrt(1 + np.exp(2 * nodes)) * np.exp(nodes))
    order = np.minimum(np.minimum(np.arange(steps) + 1, 3), steps - np.arange(steps))
    total, summed = np.zeros(nodes.shape[:-1]), np.zeros((steps, *nodes.shape[:-1]))
    for number in (1, 2, 3):
        of_order = np.flatnonzero(order == number)
        past, weights = _dmn_weights(nodes, of_order, number)
        share = weights * error[..., past]
        separate = of_order < 3
        total += np.sqrt((share[..., separate, :] ** 2).sum(-1)).sum(-1)
        np.add.at(summed, past[~separate], np.moveaxis(share[..., ~separate, :], (-2, -1), (0, 1)))
    return total + np.abs(summed).sum(0)


def _dmn_weights(nodes: np.ndarray, of_order: np.ndarray, number: int) -> tuple:
    """The past values of x̂_0 that the steps use (steps × number), and their weights (… × both).

    A weight is the integral over the step of e^λ times the value's Lagrange basis polynomial.
    """
    points, weights = LEGENDRE
    past = of_order[:, None] + np.arange(1 - number, 1)
    half = (nodes[..., of_order + 1] - nodes[..., of_order])[..., None] / 2
    at = nodes[..., of_order][..., None] + half * (1 + points)
    integrals = np.zeros((*nodes.shape[:-1], *past.shape))
    for j in range(number):
        basis = np.exp(at) * half
        for m in set(range(number)) - {j}:
            width = (nodes[..., past[:, j]] - nodes[..., past[:, m]])[..., None]
            basis = basis * (at - nodes[..., past[:, m], None]) / width
        integrals[..., j] = basis @ weights
    return past, integrals


RIVALS: dict[str, Grid] = {
    "quadratic": quadratic,
    "beta": beta,
    "dmn": dmn,
    **{name: _by_level(levels, name in IN_OWN_NUMBERS) for name, levels in LEVELS.items()},
}
