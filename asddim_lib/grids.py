"""Timestep grids behind one call: diffusers' uniform spacings, the paper's allocations and their rivals, for any scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from asddim_lib.allocation import allocate, distinct, gradient_step, noise_weights, step_sizes
from asddim_lib.errors import check
from asddim_lib.noise import NoiseSchedule, is_flow
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
    else:
        grid = np.round(size - np.arange(steps) * (size / steps)) - 1
    return [int(t) for t in grid]


# Rivals: K noise levels σ = √((1 − ᾱ)/ᾱ) from the largest, `high`, to the smallest, `low`; clean data follows.


def karras(high: float, low: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Evenly spaced in σ^(1/ρ) (Karras et al. 2022, Eq 5)."""
    return np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho


def exponential(high: float, low: float, steps: int) -> np.ndarray:
    """Evenly spaced in log σ, which is half the log-SNR (DPM-Solver)."""
    return np.geomspace(high, low, steps)


def beta(high: float, low: float, steps: int, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """Quantiles of the Beta distribution, between the ends (Lee et al. 2024, as diffusers reads it)."""
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
    "karras": karras, "exponential": exponential, "beta": beta, "arctan": arctan,
    "ays-sd15": _align_your_steps("StableDiffusionSigmas"), "ays-sdxl": _align_your_steps("StableDiffusionXLSigmas"),
}  # fmt: skip
ALLOCATIONS = ("uniform", "noise", "gradient", "combined", "quadratic", *RIVALS)


def rival(name: str, schedule: NoiseSchedule, num_inference_steps: int) -> list[int]:
    """The timesteps of a rival's noise levels on this schedule, by diffusers' log-linear interpolation, rounded and kept distinct."""
    bars = np.maximum(schedule.alphas_cumprod, 2.0**-24)  # as diffusers' Euler does where ᾱ ends in 0
    levels = np.sqrt((1 - bars) / bars)
    wanted = RIVALS[name](float(levels[-1]), float(levels[0]), num_inference_steps)
    return distinct(np.interp(np.log(wanted), np.log(levels), np.arange(len(levels))))


def quadratic(num_train_timesteps: int, num_inference_steps: int) -> list[int]:
    """Denser at low noise, τ_k = T (1 − k/K)² (Song et al. 2021), laid from T down as `trailing` is."""
    return distinct(num_train_timesteps * (1 - np.arange(num_inference_steps) / num_inference_steps) ** 2 - 1)


def timesteps(
    scheduler: Any,
    num_inference_steps: int,
    *,
    allocation: str | None = None,
    p: float | None = None,
    lam: float | None = None,
    reading: str | None = None,
    profile: SensitivityProfile | dict | None = None,
) -> list[int]:
    """K timesteps, strictly decreasing, for any diffusers scheduler or its config.

    What is not given comes from the scheduler's config if it is an `ASDDIMScheduler`'s, else from `DEFAULTS`. `allocation` is uniform,
    noise (Eqs 5–7), gradient (Eqs 8–9) or combined (Eqs 10–13), of which the last two need a `profile` from `calibrate`; or a rival's:
    quadratic, karras, exponential, beta, arctan, ays-sd15, ays-sdxl.
    Raises ValueError for a value out of range, or for a profile made on another noise schedule.
    """
    config = getattr(scheduler, "config", scheduler)
    schedule = NoiseSchedule.from_config(config)
    check(not is_flow(config), "scheduler", "a flow-matching one", "its timesteps are no whole numbers: use sigmas(…) and set_timesteps(sigmas=…)")
    given = {"allocation": allocation, "p": p, "lam": lam, "reading": reading, "profile": profile}
    return _grid(config, schedule, num_inference_steps, given)


def _grid(config: Any, schedule: NoiseSchedule, num_inference_steps: int, given: dict[str, Any]) -> list[int]:
    foreign = set(given) - set(DEFAULTS)
    check(not foreign, "arguments", ", ".join(sorted(foreign)), f"use some of {', '.join(DEFAULTS)}")
    chosen = DEFAULTS | {key: config[key] for key in DEFAULTS if key in config}
    chosen |= {key: value for key, value in given.items() if value is not None}
    kind, size = chosen["allocation"], len(schedule)
    check(kind in ALLOCATIONS, "allocation", kind, f"use one of {', '.join(ALLOCATIONS)}")
    whole = isinstance(num_inference_steps, (int, np.integer)) and not isinstance(num_inference_steps, bool)
    check(whole and 1 <= num_inference_steps <= size, "num_inference_steps", num_inference_steps, f"give a whole number, 1 to {size}")
    if kind == "uniform":
        return uniform(config.get("timestep_spacing", "leading"), size, num_inference_steps, config.get("steps_offset", 0))
    if kind == "quadratic":
        return quadratic(size, num_inference_steps)
    if kind in RIVALS:
        return rival(kind, schedule, num_inference_steps)
    noise_weight = noise_weights(schedule.variance, 0.0 if kind == "gradient" else chosen["p"], chosen["eps"])
    if kind == "noise":
        factor = np.ones(size)
    else:
        made = chosen["profile"]
        check(made is not None, "profile", made, f"allocation {kind!r} needs one: profile=calibrate(pipe, prompts)")
        made = SensitivityProfile.from_dict(made) if isinstance(made, dict) else made
        factor = gradient_step(made.at(schedule), chosen["lam"])
    return allocate(step_sizes(noise_weight, factor, chosen["reading"]), num_inference_steps)


def sigmas(scheduler: Any, num_inference_steps: int, **how: Any) -> list[float]:
    """The same grid as `timesteps`, as the scheduler's `set_timesteps(sigmas=…)` takes it.

    For Euler, DPM-Solver and their like: noise-to-signal ratios √((1 − ᾱ)/ᾱ), and 0 at the end. For flow matching: shares of noise in
    (0, 1] before the scheduler's own shift, which it puts on whatever it is given; it adds the 0 itself.
    """
    schedule, config = NoiseSchedule.from_config(scheduler), getattr(scheduler, "config", scheduler)
    grid = _grid(config, schedule, num_inference_steps, how)
    if not is_flow(config):
        return [float(schedule.sigmas[t]) for t in grid] + [0.0]
    size = len(schedule)
    return [(t + 1) / size for t in grid]
