"""Every grid behind one call: diffusers' uniform spacings, the paper's allocations, ours and their rivals, for any scheduler."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from asddim_lib.core.allocation import allocate, gradient_step, noise_weights, step_sizes
from asddim_lib.core.noise import NoiseSchedule, is_flow
from asddim_lib.errors import check
from asddim_lib.evidence.profile import SensitivityProfile
from asddim_lib.evidence.trajectory import Trajectory
from asddim_lib.grids.rivals import RIVALS
from asddim_lib.grids.searched import SEARCHED
from asddim_lib.grids.uniform import SPACINGS, uniform

DEFAULTS: dict[str, Any] = {
    "allocation": "noise",
    "p": 0.5,
    "lam": 1.0,
    "eps": 1e-8,
    "reading": "intent",
    "profile": None,
}


#: What a scheduler lays by itself; `timesteps` also takes what was searched on a recorded path.
ALLOCATIONS = (
    "uniform",
    "noise",
    "gradient",
    "combined",
    "fitted",
    "equidistributed",
    "dual-weighted",
    *SPACINGS,
    *RIVALS,
)
#: Those that need a profile.
CALIBRATED = ("gradient", "combined", "fitted", "equidistributed", "dual-weighted")


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
    temper: float | None = None,
) -> list[int]:
    """K timesteps, strictly decreasing, for any diffusers scheduler or its config.

    What is not given comes from the scheduler's config if it is an `ASDDIMScheduler`'s, else from `DEFAULTS`. `allocation` is uniform,
    noise (Eqs 5–7), gradient (Eqs 8–9) or combined (Eqs 10–13); equidistributed, by the local error that was measured along the path, or
    dual-weighted, by what of it reaches the picture, for a solver of `order` 1 (the default), 2 or 3, and with their density to the power
    `temper`, from 1 (the default) to 0, which is uniform: multistep solvers under guidance dislike steps that change fast; or fitted, the paper's own with the p
    and λ that come nearest to dual-weighted. All of these but uniform and noise need a `profile` from `calibrate`. Or a rival's:
    leading, trailing, linspace, quadratic, karras, exponential (or logsnr), beta, beta-sigmas, arctan, dmn,
    ays-sd15, ays-sdxl, ays-deepfloyd; or oracle, gits or dual-path, which need a `path` from `calibration.record` (dual-path with adjoint_probes).
    Raises ValueError for a value out of range, or for a profile made on another noise schedule.
    """
    config = getattr(scheduler, "config", scheduler)
    schedule = NoiseSchedule.from_config(config)
    check(
        not is_flow(config),
        "scheduler",
        "a flow-matching one",
        "its timesteps are no whole numbers: use sigmas(…) and set_timesteps(sigmas=…)",
    )
    given = {
        "allocation": allocation,
        "p": p,
        "lam": lam,
        "reading": reading,
        "profile": profile,
        "path": path,
        "order": order,
        "temper": temper,
    }
    return _grid(config, schedule, num_inference_steps, given)


def _grid(
    config: Any, schedule: NoiseSchedule, num_inference_steps: int, given: dict[str, Any]
) -> list[int]:
    foreign = set(given) - {*DEFAULTS, "path", "order", "temper"}
    check(
        not foreign,
        "arguments",
        ", ".join(sorted(foreign)),
        f"use some of {', '.join(DEFAULTS)}, path, order, temper",
    )
    chosen = DEFAULTS | {key: config[key] for key in DEFAULTS if key in config}
    chosen |= {key: value for key, value in given.items() if value is not None}
    kind, size = chosen["allocation"], len(schedule)
    check(
        kind in (*ALLOCATIONS, *SEARCHED),
        "allocation",
        kind,
        f"use one of {', '.join((*ALLOCATIONS, *SEARCHED))}",
    )
    whole = isinstance(num_inference_steps, (int, np.integer)) and not isinstance(
        num_inference_steps, bool
    )
    check(
        whole and 1 <= num_inference_steps <= size,
        "num_inference_steps",
        num_inference_steps,
        f"give a whole number, 1 to {size}",
    )
    if kind in SEARCHED:
        check(
            chosen.get("path") is not None,
            "path",
            None,
            f"allocation {kind!r} needs one: path=record(pipe, prompts)",
        )
        return SEARCHED[kind](chosen["path"], schedule, num_inference_steps)
    if kind == "uniform" or kind in SPACINGS:
        return uniform(
            config.get("timestep_spacing", "leading") if kind == "uniform" else kind,
            size,
            num_inference_steps,
            config.get("steps_offset", 0),
        )
    if kind in RIVALS:
        return RIVALS[kind](schedule, num_inference_steps)
    made = chosen["profile"]
    if kind in CALIBRATED:
        check(
            made is not None,
            "profile",
            made,
            f"allocation {kind!r} needs one: profile=calibrate(pipe, prompts)",
        )
        made = SensitivityProfile.from_dict(made) if isinstance(made, dict) else made
    if kind in ("equidistributed", "dual-weighted"):
        temper = chosen.get("temper", 1.0)
        check(
            0 <= temper <= 1,
            "temper",
            temper,
            "give a number from 0 (uniform) to 1 (the whole density)",
        )
        return allocate(
            made.density(schedule, chosen.get("order") or 1, carried=kind == "dual-weighted")
            ** -temper,
            num_inference_steps,
        )
    if kind == "fitted":
        p, chosen["lam"], _ = made.fit(schedule, chosen.get("order") or 1)
        return allocate(
            step_sizes(
                noise_weights(schedule.variance, p), gradient_step(made.at(schedule), chosen["lam"])
            ),
            num_inference_steps,
        )
    check(
        kind == "gradient" or chosen["p"] > 0,
        "p",
        chosen["p"],
        "give a positive number, or use allocation uniform or gradient",
    )
    noise_weight = noise_weights(
        schedule.variance, 0.0 if kind == "gradient" else chosen["p"], chosen["eps"]
    )
    factor = np.ones(size) if kind == "noise" else gradient_step(made.at(schedule), chosen["lam"])
    return allocate(step_sizes(noise_weight, factor, chosen["reading"]), num_inference_steps)


def check_timesteps(timesteps: list[int], num_train_timesteps: int) -> list[int]:
    """A grid that somebody else gave, as whole numbers; raises ValueError unless it falls strictly within 0 … T − 1."""
    grid = [int(t) for t in timesteps]
    falling = all(a > b for a, b in itertools.pairwise(grid)) and all(
        a == b for a, b in zip(grid, timesteps, strict=True)
    )
    check(
        bool(grid) and falling, "timesteps", timesteps, "give strictly decreasing whole timesteps"
    )
    check(
        0 <= grid[-1] and grid[0] < num_train_timesteps,
        "timesteps",
        timesteps,
        f"keep them within 0 … {num_train_timesteps - 1}",
    )
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
