"""Grids from formulas: functions of the model's levels and the number of steps alone.

A curve gives K falling numbers. A rule gives K falling timesteps of a model (indices of its
levels): those nearest to a curve in σ, or in s on a flow model where diffusers and ComfyUI apply
the curve there. σ of a flow model has no upper end: even steps in a power of σ would nearly all be
pure noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from asddim_lib.errors import check, check_whole
from asddim_lib.levels import Levels, sigma_of
from asddim_lib.paper import distinct

#: From the highest σ (or s), the lowest, and K, to K falling numbers.
Curve = Callable[[float, float, int], np.ndarray]
#: From a model's levels and K to K falling timesteps.
Rule = Callable[[Levels, int], list[int]]
#: diffusers' `timestep_spacing`.
SPACINGS = ("leading", "trailing", "linspace")
#: Ideogram 4's mean and spread, by number of steps.
IDEOGRAM = {48: (0.0, 1.5), 20: (0.0, 1.75), 12: (0.5, 1.75)}


def uniform(
    spacing: str, num_train_timesteps: int, num_inference_steps: int, steps_offset: int = 0
) -> list[int]:
    """K timesteps of one of diffusers' `SPACINGS`.

    `leading` counts from 0 up and adds the offset, `trailing` counts from T down, `linspace`
    includes both ends. Raises WrongUse for another spacing, for K outside 1 … T, and for an offset
    that moves the first step beyond T − 1.
    """
    size, steps = num_train_timesteps, num_inference_steps
    check_whole("num_inference_steps", steps, 1, size)
    check(spacing in SPACINGS, "timestep_spacing", spacing, f"use one of {', '.join(SPACINGS)}")
    if spacing == "linspace":
        grid = np.linspace(0, size - 1, steps).round()[::-1]
    elif spacing == "leading":
        grid = np.arange(0.0, steps)[::-1] * (size // steps) + steps_offset
        beyond = f"{steps} leading steps would begin at {grid[0]:g}, beyond {size - 1}"
        remedy = f"{beyond}: use trailing, or no offset"
        check(grid[0] < size, "steps_offset", steps_offset, remedy)
    else:
        # For K of 61, 103, … diffusers has one more entry, −1, by rounding; it is cut off here.
        grid = np.arange(size, 0, -size / steps)[:steps].round() - 1
    return [int(t) for t in grid]


def karras(high: float, low: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Evenly spaced in σ^(1/ρ) (Karras et al. 2022, Eq 5)."""
    return np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho


def exponential(high: float, low: float, steps: int) -> np.ndarray:
    """Evenly spaced in log σ, minus half the log-SNR: also DPM-Solver's `logsnr`."""
    return np.geomspace(high, low, steps)


def arctan(high: float, low: float, steps: int, std: float = 1.0) -> np.ndarray:
    """Evenly spaced in arctan(σ / c), optimal for Gaussian data of standard deviation c.

    Sabour et al. 2024, Theorem 3.1.
    """
    return std * np.tan(np.linspace(np.arctan(high / std), np.arctan(low / std), steps))


def log_linear(values: Sequence[float] | np.ndarray, steps: int) -> np.ndarray:
    """K numbers from a published list of another length, with both ends (Sabour et al. 2024).

    At evenly spaced places of the list, log-linear between its entries.
    """
    places = np.linspace(0, 1, len(values))
    return np.exp(np.interp(np.linspace(0, 1, steps), places, np.log(values)))


def linear_quadratic(steps: int, threshold: float = 0.025) -> np.ndarray:
    """Mochi's K fractions from 1 down: half fall by `threshold` in all, evenly; the rest to 0.

    The second half is a parabola with the first one's slope at its start, which meets 0 after the
    last step.
    """
    if steps < 2:
        return np.ones(steps)
    half, k = steps // 2, np.arange(steps)
    slope = threshold / half
    bend = (1 - slope * steps) * (np.maximum(k - half, 0) / (steps - half)) ** 2
    return 1 - slope * k - bend


def bong_tangent(high: float, low: float, steps: int) -> np.ndarray:
    """RES4LYF's two arctan curves: from 1 to 1/2 over three fifths of the steps, then to 0.

    They are steepest where they meet. They start at 1 whatever the model, or at `high` if lower.
    """
    top = min(1.0, high)
    if steps == 1:  # RES4LYF would divide by 0
        return np.array([top])
    count = steps + 2
    first = int((count * 0.6 + count * 0.6) / 2)
    rise = _arctan_fall(np.arange(first) - first, 8 / count, top, 0.5)
    fall = _arctan_fall(np.arange(count - first), 8 / count, 0.5, 0.0)
    return np.concatenate([rise[:-1], fall])[:steps]


def ideogram(steps: int) -> np.ndarray:
    """Ideogram 4's K shares of noise: logit-normal quantiles, for pictures of 512 × 512 pixels.

    Their mean and spread are those published for 48, 20 or 12 steps, whichever is nearest to K.
    """
    from scipy.special import expit, ndtri

    mean, spread = IDEOGRAM[min(IDEOGRAM, key=lambda count: abs(count - steps))]
    quantiles = mean + spread * ndtri(1 - np.arange(steps) / steps)
    return expit(np.clip(quantiles, -7.5, 9.0))  # its least and greatest log-SNR, halved


def _arctan_fall(places: np.ndarray, slope: float, high: float, low: float) -> np.ndarray:
    """−arctan(slope × place), scaled to fall from `high` to `low`."""
    curve = -np.arctan(slope * places)
    return low + (high - low) * (curve - curve[-1]) / (curve[0] - curve[-1])


def in_sigma(curve: Curve) -> Rule:
    """The rule of a curve in σ."""

    def rule(levels: Levels, steps: int) -> list[int]:
        sigmas = levels.finite_sigmas
        return levels.nearest(curve(float(sigmas[-1]), float(sigmas[0]), steps))

    return rule


def in_share(curve: Curve) -> Rule:
    """The rule of a curve in s on a flow model, and in σ on any other."""

    def rule(levels: Levels, steps: int) -> list[int]:
        if levels.kind != "flow":
            return in_sigma(curve)(levels, steps)
        shares = levels.shares
        curved = curve(float(shares[-1]), float(shares[0]), steps)
        return levels.nearest(sigma_of(np.minimum(curved, 1.0)))

    return rule


def quadratic(levels: Levels, steps: int) -> list[int]:
    """τ_k = T (1 − k/K)², denser at low noise (Song et al. 2021)."""
    return distinct(len(levels) * (1 - np.arange(steps) / steps) ** 2 - 1)


def beta(levels: Levels, steps: int, a: float = 0.6, b: float = 0.6) -> list[int]:
    """Quantiles of a Beta distribution over timesteps, dense at both ends (Lee et al. 2024).

    ComfyUI's `beta`.
    """
    from scipy.stats import beta as distribution

    return distinct(len(levels) * distribution.ppf(1 - np.arange(steps) / steps, a, b) - 1)


def beta57(levels: Levels, steps: int) -> list[int]:
    """RES4LYF's beta57: quantiles of Beta(0.5, 0.7) over timesteps 0 … T − 1."""
    from scipy.stats import beta as distribution

    places = distribution.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.5, 0.7)
    return distinct(np.rint(places * (len(levels) - 1)))
