"""Timestep grids behind one call: diffusers' uniform spacings and the paper's allocations, for any scheduler."""

from __future__ import annotations

from typing import Any

import numpy as np

from asddim_lib.allocation import allocate, gradient_step, noise_weights, step_sizes
from asddim_lib.errors import check
from asddim_lib.noise import NoiseSchedule
from asddim_lib.sensitivity import SensitivityProfile

ALLOCATIONS = ("uniform", "noise", "gradient", "combined")
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
    noise (Eqs 5–7), gradient (Eqs 8–9) or combined (Eqs 10–13); the last two need a `profile` from `calibrate`.
    Raises ValueError for a value out of range, or for a profile made on another noise schedule.
    """
    config = getattr(scheduler, "config", scheduler)
    schedule = NoiseSchedule.from_config(config)
    given = {"allocation": allocation, "p": p, "lam": lam, "reading": reading, "profile": profile}
    chosen = DEFAULTS | {key: config[key] for key in DEFAULTS if key in config}
    chosen |= {key: value for key, value in given.items() if value is not None}
    kind, size = chosen["allocation"], len(schedule)
    check(kind in ALLOCATIONS, "allocation", kind, f"use one of {', '.join(ALLOCATIONS)}")
    whole = isinstance(num_inference_steps, (int, np.integer)) and not isinstance(num_inference_steps, bool)
    check(whole and 1 <= num_inference_steps <= size, "num_inference_steps", num_inference_steps, f"give a whole number, 1 to {size}")
    if kind == "uniform":
        return uniform(config.get("timestep_spacing", "leading"), size, num_inference_steps, config.get("steps_offset", 0))
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
    """The same grid as `timesteps`, as noise-to-signal ratios √((1 − ᾱ)/ᾱ), for solvers that take `sigmas=`; the last is 0."""
    values = NoiseSchedule.from_config(scheduler).sigmas
    return [float(values[t]) for t in timesteps(scheduler, num_inference_steps, **how)] + [0.0]
