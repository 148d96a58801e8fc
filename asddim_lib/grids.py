"""Timestep grids behind one call: diffusers' uniform spacings, the paper's allocations and their rivals, for any scheduler."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from asddim_lib.allocation import allocate, distinct, gradient_step, noise_weights, step_sizes
from asddim_lib.errors import check
from asddim_lib.noise import NoiseSchedule, is_flow
from asddim_lib.path import Trajectory
from asddim_lib.search import SEARCHED
from asddim_lib.sensitivity import SensitivityProfile

SPACINGS = ("leading", "trailing", "linspace")
DEFAULTS: dict[str, Any] = {"allocation": "noise", "p": 0.5, "lam": 1.0, "eps": 1e-8, "reading": "intent", "profile": None}


def uniform(spacing: str, num_train_timesteps: int, num_inference_steps: int, steps_offset: int = 0) -> list[int]:
    """diffusers' uniform grids: `leading` (from 0 up, plus the offset), `trailing` (from T down), `linspace` (both ends)."""
    size, steps = num_train_timesteps, num_inference_steps
    check(spacing in SPACINGS, "timestep_spacing", spacing, f"use one of {', '.join(SPACINGS)}")
    if spacing == "linspace":
        grid = np.linspace(0, size - 1, steps).round()[::-1]
    elif spacing == "leading":
        grid = np.arange(0.0, steps)[::-1] * (size // steps) + steps_offset
        check(grid[0] < size, "steps_offset", steps_offset, f"{steps} leading steps would begin at {grid[0]:g}, beyond {size - 1}: use trailing, or no offset")
    else:
        grid = np.arange(size, 0, -size / steps)[:steps].round() - 1  # diffusers' has one more, −1, for K of 61, 103, … : a rounding slip
    return [int(t) for t in grid]


# Rivals: K noise levels σ = √((1 − ᾱ)/ᾱ) from the largest, `high`, to the smallest, `low`; clean data follows.


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


def _align_your_steps(name: str) -> Callable[[float, float, int], np.ndarray]:
    def levels(high: float, low: float, steps: int) -> np.ndarray:
        from diffusers.schedulers import AysSchedules

        known = np.log(AysSchedules[name][:-1])  # the last is 0, clean data
        return np.exp(np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(known)), known))

    levels.__doc__ = f"Align Your Steps' published `{name}`, log-linear between its ten levels (Sabour et al. 2024)."
    return levels


RIVALS: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "karras": karras, "exponential": exponential, "logsnr": exponential, "beta-sigmas": beta_sigmas, "arctan": arctan,
    "ays-sd15": _align_your_steps("StableDiffusionSigmas"), "ays-sdxl": _align_your_steps("StableDiffusionXLSigmas"),
}  # fmt: skip
#: What a scheduler lays by itself; `timesteps` also takes what was searched on a recorded path.
ALLOCATIONS = ("uniform", "noise", "gradient", "combined", "equidistributed", "dual-weighted", *SPACINGS, "quadratic", "beta", "dmn", *RIVALS)


def rival(name: str, schedule: NoiseSchedule, num_inference_steps: int) -> list[int]:
    """The timesteps of a rival's noise levels on this schedule, by diffusers' log-linear interpolation, rounded and kept distinct."""
    levels = schedule.finite_sigmas
    wanted = RIVALS[name](float(levels[-1]), float(levels[0]), num_inference_steps)
    return distinct(np.interp(np.log(wanted), np.log(levels), np.arange(len(levels))))


def quadratic(num_train_timesteps: int, num_inference_steps: int) -> list[int]:
    """Denser at low noise, τ_k = T (1 − k/K)² (Song et al. 2021), laid from T down as `trailing` is."""
    return distinct(num_train_timesteps * (1 - np.arange(num_inference_steps) / num_inference_steps) ** 2 - 1)


def beta(num_train_timesteps: int, num_inference_steps: int, a: float = 0.6, b: float = 0.6) -> list[int]:
    """Quantiles of the Beta distribution over timesteps, dense at both ends (Lee et al. 2024; ComfyUI's `beta`)."""
    from scipy.stats import beta as distribution

    return distinct(num_train_timesteps * distribution.ppf(1 - np.arange(num_inference_steps) / num_inference_steps, a, b) - 1)


def dmn(schedule: NoiseSchedule, num_inference_steps: int) -> list[int]:
    """DMN (Xue et al. 2024): the grid of the least bound on what a multistep solver of order 3 makes of the network's errors, model-free.

    The search begins at uniform timesteps, as its authors advise for latent models. Raises ValueError beyond 64 steps, where it takes minutes.
    """
    check(num_inference_steps <= 64, "num_inference_steps", num_inference_steps, "give at most 64 for dmn, whose search grows with their cube")
    levels = schedule.finite_sigmas
    start = np.interp(np.linspace(len(levels) - 1, 0, num_inference_steps + 1), np.arange(len(levels)), -np.log(levels))
    found = _least_dmn_bound(tuple(start.tolist()))[:-1]  # the last step leads to timestep 0, which is as good as clean
    return distinct(np.interp(-np.array(found), np.log(levels), np.arange(len(levels))))


@cache
def _least_dmn_bound(start: tuple[float, ...]) -> tuple[float, ...]:
    from scipy.optimize import LinearConstraint, minimize

    steps = len(start) - 1
    if steps == 1:
        return start
    rising = np.eye(steps, steps - 1) - np.eye(steps, steps - 1, -1)  # each row is a difference of neighbours; the ends are known
    least = np.concatenate([[start[0]], np.zeros(steps - 2), [-start[-1]]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the quasi-Newton update of a flat stretch
        found = minimize(
            lambda inner: _dmn_bound(np.array([start[0], *inner, start[-1]])), start[1:-1], method="trust-constr", constraints=[LinearConstraint(rising, least, np.inf)]
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
        behind = chosen[:, None] + np.arange(1 - number, 1)  # the values of x̂_0 that the step uses: steps × number
        half = (nodes[chosen + 1] - nodes[chosen])[:, None] / 2
        at = nodes[chosen][:, None] + half * (1 + points)
        share = np.zeros(behind.shape)
        for j in range(number):
            basis = np.exp(at) * half
            for m in set(range(number)) - {j}:
                basis = basis * (at - nodes[behind[:, m], None]) / (nodes[behind[:, j]] - nodes[behind[:, m]])[:, None]
            share[:, j] = basis @ weights * error[behind[:, j]]
        alone = chosen < 3
        total += np.sqrt((share[alone] ** 2).sum(1)).sum()
        np.add.at(summed, behind[~alone], share[~alone])
    return total + np.abs(summed).sum()


def timesteps(
    scheduler: Any,
    num_inference_steps: int,
    *,
    allocation: str | None = None,
    p: float | None = None,
    lam: float | None = None,
    reading: str | None = None,
    profile: SensitivityProfile | dict | None = None,
    path: Trajectory | None = None,
    order: int | None = None,
) -> list[int]:
    """K timesteps, strictly decreasing, for any diffusers scheduler or its config.

    What is not given comes from the scheduler's config if it is an `ASDDIMScheduler`'s, else from `DEFAULTS`. `allocation` is uniform,
    noise (Eqs 5–7), gradient (Eqs 8–9) or combined (Eqs 10–13); equidistributed, by the local error that was measured along the path, or
    dual-weighted, by what of it reaches the picture, for a solver of `order` 1 (the default), 2 or 3: all but noise need a `profile` from
    `calibrate`. Or a rival's: leading, trailing, linspace, quadratic, karras, exponential (or logsnr), beta, beta-sigmas, arctan, dmn,
    ays-sd15, ays-sdxl; or oracle or gits, which need a `path` from `calibration.record`.
    Raises ValueError for a value out of range, or for a profile made on another noise schedule.
    """
    config = getattr(scheduler, "config", scheduler)
    schedule = NoiseSchedule.from_config(config)
    check(not is_flow(config), "scheduler", "a flow-matching one", "its timesteps are no whole numbers: use sigmas(…) and set_timesteps(sigmas=…)")
    given = {"allocation": allocation, "p": p, "lam": lam, "reading": reading, "profile": profile, "path": path, "order": order}
    return _grid(config, schedule, num_inference_steps, given)


def _grid(config: Any, schedule: NoiseSchedule, num_inference_steps: int, given: dict[str, Any]) -> list[int]:
    foreign = set(given) - {*DEFAULTS, "path", "order"}
    check(not foreign, "arguments", ", ".join(sorted(foreign)), f"use some of {', '.join(DEFAULTS)}, path, order")
    chosen = DEFAULTS | {key: config[key] for key in DEFAULTS if key in config}
    chosen |= {key: value for key, value in given.items() if value is not None}
    kind, size = chosen["allocation"], len(schedule)
    check(kind in (*ALLOCATIONS, *SEARCHED), "allocation", kind, f"use one of {', '.join((*ALLOCATIONS, *SEARCHED))}")
    whole = isinstance(num_inference_steps, (int, np.integer)) and not isinstance(num_inference_steps, bool)
    check(whole and 1 <= num_inference_steps <= size, "num_inference_steps", num_inference_steps, f"give a whole number, 1 to {size}")
    if kind in SEARCHED:
        check(chosen.get("path") is not None, "path", None, f"allocation {kind!r} needs one: path=record(pipe, prompts)")
        return SEARCHED[kind](chosen["path"], schedule, num_inference_steps)
    if kind == "uniform" or kind in SPACINGS:
        return uniform(config.get("timestep_spacing", "leading") if kind == "uniform" else kind, size, num_inference_steps, config.get("steps_offset", 0))
    if kind == "quadratic":
        return quadratic(size, num_inference_steps)
    if kind == "beta":
        return beta(size, num_inference_steps)
    if kind == "dmn":
        return dmn(schedule, num_inference_steps)
    if kind in RIVALS:
        return rival(kind, schedule, num_inference_steps)
    made = chosen["profile"]
    if kind in ("gradient", "combined", "equidistributed", "dual-weighted"):
        check(made is not None, "profile", made, f"allocation {kind!r} needs one: profile=calibrate(pipe, prompts)")
        made = SensitivityProfile.from_dict(made) if isinstance(made, dict) else made
    if kind in ("equidistributed", "dual-weighted"):
        return allocate(1 / made.density(schedule, chosen.get("order") or 1, carried=kind == "dual-weighted"), num_inference_steps)
    check(kind == "gradient" or chosen["p"] > 0, "p", chosen["p"], "give a positive number, or use allocation uniform or gradient")
    noise_weight = noise_weights(schedule.variance, 0.0 if kind == "gradient" else chosen["p"], chosen["eps"])
    factor = np.ones(size) if kind == "noise" else gradient_step(made.at(schedule), chosen["lam"])
    return allocate(step_sizes(noise_weight, factor, chosen["reading"]), num_inference_steps)


def check_timesteps(timesteps: list[int], num_train_timesteps: int) -> list[int]:
    """A grid that somebody else gave, as whole numbers; raises ValueError unless it falls strictly within 0 … T − 1."""
    grid = [int(t) for t in timesteps]
    falling = all(a > b for a, b in itertools.pairwise(grid)) and all(a == b for a, b in zip(grid, timesteps, strict=True))
    check(bool(grid) and falling, "timesteps", timesteps, "give strictly decreasing whole timesteps")
    check(0 <= grid[-1] and grid[0] < num_train_timesteps, "timesteps", timesteps, f"keep them within 0 … {num_train_timesteps - 1}")
    return grid


def sigmas(scheduler: Any, num_inference_steps: int, **how: Any) -> list[float]:
    """The same grid as `timesteps`, as the scheduler's `set_timesteps(sigmas=…)` takes it.

    For Euler, DPM-Solver and their like: noise-to-signal ratios √((1 − ᾱ)/ᾱ), and 0 at the end. For flow matching: shares of noise in
    (0, 1] before the scheduler's own shift, which it puts on whatever it is given; it adds the 0 itself.
    """
    schedule, config = NoiseSchedule.from_config(scheduler), getattr(scheduler, "config", scheduler)
    grid = _grid(config, schedule, num_inference_steps, how)
    if not is_flow(config):
        return [float(schedule.finite_sigmas[t]) for t in grid] + [0.0]
    size = len(schedule)
    return [(t + 1) / size for t in grid]
