"""A grid for any scheduler: `timesteps` and `sigmas`."""

from __future__ import annotations

from typing import Any

import numpy as np

from asddim_lib.errors import check
from asddim_lib.evidence.path import Trajectory
from asddim_lib.evidence.profile import Profile
from asddim_lib.grids.table import DEFAULTS, METHODS, Options, check_profile, lay
from asddim_lib.grids.uniform import SPACINGS, uniform
from asddim_lib.levels import (
    EDM,
    Levels,
    completed,
    flow_shift,
    flow_unshift,
    is_flow,
    noise_schedule,
    with_boundary,
    with_fixed_shift,
)
from asddim_lib.levels import (
    check_timesteps as check_timesteps,
)
from asddim_lib.paper import NoiseSchedule

#: Settings with which a flow scheduler changes levels that it was given.
OVERRIDING = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "shift_terminal")
ARGUMENTS = (*DEFAULTS, "path", "order", "temper", "begin")
#: Evidence, and the methods' needs that it serves: given to another method it is refused.
_SERVES = {"profile": ("profile",), "path": ("path", "adjoints"), "temper": ("profile",)}


def timesteps(
    scheduler: Any,
    num_inference_steps: int,
    *,
    allocation: str | None = None,
    p: float | None = None,
    lam: float | None = None,
    reading: str | None = None,
    profile: Profile | dict | None = None,
    path: Trajectory | None = None,
    order: int | None = None,
    temper: float | None = None,
    begin: int | None = None,
) -> list[int]:
    """K timesteps, strictly decreasing, for any diffusers scheduler or its config.

    `allocation` names one of `METHODS` (`asddim methods` lists them), whose `Options` the other
    arguments are. What is not given comes from the config of an `ASDDIMScheduler`, else from
    `DEFAULTS`; a grid that the scheduler holds is its own. With `begin`, no step lies above that
    timestep: for image-to-image, pass the grid to the pipeline as `timesteps`, with `strength=1.0`.
    Raises WrongUse for a value out of range, for a profile or path that the method makes no use of
    or that was measured on another noise schedule, and for a flow-matching or EDM scheduler.
    """
    config = completed(scheduler)
    other = is_flow(config) or set(EDM) <= set(config)
    free = allocation in ("uniform", *SPACINGS) and not other  # these need no noise levels
    kind = "vp" if free else Levels.from_diffusers(scheduler, mu=0.0).kind
    words = {"flow": "a flow-matching one", "edm": "an EDM one"}
    remedy = "its timesteps are no whole numbers: use sigmas(…) and set_timesteps(sigmas=…)"
    check(kind == "vp", "scheduler", words.get(kind, kind), remedy)
    how: dict[str, Any] = {"allocation": allocation, "p": p, "lam": lam, "reading": reading}
    how |= {"profile": profile}
    how |= {"path": path, "order": order, "temper": temper, "begin": begin}
    return numbers(scheduler, num_inference_steps, how)


def sigmas(
    scheduler: Any,
    num_inference_steps: int,
    *,
    shifted: bool = False,
    mu: float | None = None,
    **how: Any,
) -> list[float]:
    """The grid of `timesteps`, with its arguments, as `set_timesteps(sigmas=…)` takes it.

    For Euler, DPM-Solver and their like these are ratios of noise to signal, √((1 − ᾱ)/ᾱ), and a 0
    at the end. For EDM they are σ, without the 0. For flow matching they are shares of noise in
    (0, 1] *before* the scheduler's own shift, which it puts on whatever it is given; it adds the 0
    itself. `shifted=True` gives what the solver will really use, with the 0, for other programs.
    Where the shift depends on the picture's size, `mu` says it, as the pipeline gives it.
    Raises WrongUse as `timesteps` does, and for a flow scheduler that would override the grid.
    """
    config = with_fixed_shift(completed(scheduler), mu)
    coordinates = Levels.from_diffusers(config)
    if coordinates.kind == "flow":
        for flag in () if shifted else OVERRIDING:
            remedy = f"it overrides the grid: from_config(…, {flag}=None), or ASFlowScheduler"
            check(not config.get(flag), flag, config.get(flag), remedy)
    grid = numbers(config, num_inference_steps, how)
    if coordinates.kind == "flow":
        held = None if how.get("allocation") else config.get("grid")
        mix, levels = _flow_sigmas(config, grid, held)
        return [*levels.tolist(), 0.0] if shifted else mix.tolist()
    levels = NoiseSchedule(coordinates.betas).finite_sigmas[grid].tolist()
    return levels if coordinates.kind == "edm" and not shifted else [*levels, 0.0]


def _flow_sigmas(
    config: dict[str, Any], grid: list[int], held: list[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """A flow model's K levels before its shift and after it, a step at the config's boundary."""
    if held is None:
        mix = (np.array(grid) + 1) / int(config["num_train_timesteps"])
        levels = flow_shift(mix, config)
    else:  # these are after the shift
        levels = np.array(held)
        mix = flow_unshift(levels, config)
    if config.get("boundary") is not None:
        levels = with_boundary(levels, config["boundary"])
        mix = flow_unshift(levels, config)
    return mix, levels


def numbers(scheduler: Any, steps: int, how: dict[str, Any]) -> list[int]:
    """The grid of a scheduler's config, changed by what is given, of any kind of model.

    A flow or EDM model's levels are numbered 0 … T − 1 as timesteps are.
    """
    foreign = ", ".join(sorted(set(how) - set(ARGUMENTS)))
    check(not foreign, "arguments", foreign, f"use some of {', '.join(ARGUMENTS)}")
    given = {name: value for name, value in how.items() if value is not None}
    config = completed(scheduler)
    if "allocation" not in given and config.get("grid") is not None:
        return _held(config, steps, given)
    if is_flow(config):
        config["timestep_spacing"] = "trailing"  # flow matching begins with pure noise
    chosen = DEFAULTS | {key: config[key] for key in DEFAULTS if key in config} | given
    name, begin = chosen.pop("allocation"), chosen.pop("begin", None)
    _check_evidence(name, given)
    check_profile(chosen["profile"])
    if isinstance(chosen["profile"], dict):
        chosen["profile"] = Profile.from_dict(chosen["profile"])
    spacing, offset = config.get("timestep_spacing", "leading"), config.get("steps_offset", 0)
    options = Options(**chosen, spacing=spacing, steps_offset=offset, begin=begin)
    if name in ("uniform", *SPACINGS) and begin is None:  # these need no noise levels
        betas = config.get("trained_betas")
        size = int(config.get("num_train_timesteps", 1000)) if betas is None else len(betas)
        _check_steps(steps, size)
        return uniform(spacing if name == "uniform" else name, size, steps, offset)
    schedule = noise_schedule(config)
    if options.path is not None:
        options.path.check_schedule(schedule)
    if begin is not None:
        _check_begin(name, begin, len(schedule))
    _check_steps(steps, len(options.cut(schedule.betas)))
    return lay(name, schedule, steps, options)


def _held(config: dict[str, Any], steps: int, given: dict[str, Any]) -> list[int]:
    """The grid that a scheduler of ours holds, as numbers of levels.

    A flow model's sigmas are the nearest levels'. Raises WrongUse for anything that is `given`.
    """
    grid, names = config["grid"], ", ".join(given)
    remedy = "this scheduler holds a grid, which makes no use of it: give an allocation, too"
    check(not given, names, "given", remedy)
    remedy = f"this scheduler holds a grid of {len(grid)} steps: give {len(grid)}, or an allocation"
    check(steps == len(grid), "num_inference_steps", steps, remedy)
    if not is_flow(config):
        return list(grid)
    size = int(config["num_train_timesteps"])
    levels = flow_shift((np.arange(size) + 1) / size, config)
    return [int(np.abs(levels - sigma).argmin()) for sigma in grid]


def _check_begin(name: str, begin: int, size: int) -> None:
    whole = isinstance(begin, (int, np.integer)) and 0 <= begin < size
    check(whole, "begin", begin, f"give a timestep, 0 to {size - 1}")
    remedy = "record the path with the pipeline's strength instead: such a grid begins with it"
    check(name not in METHODS or METHODS[name].needs != "path", "begin", begin, remedy)


def _check_evidence(name: str, given: dict[str, Any]) -> None:
    needs = METHODS[name].needs if name in METHODS else ""
    for argument, served in _SERVES.items():
        if argument in given and needs and needs not in served:
            remedy = f"allocation {name!r} makes no use of it: name an allocation that does"
            check(False, argument, "given", remedy)


def _check_steps(steps: int, size: int) -> None:
    whole = isinstance(steps, (int, np.integer)) and not isinstance(steps, bool)
    remedy = f"give a whole number, 1 to {size}"
    check(whole and 1 <= steps <= size, "num_inference_steps", steps, remedy)
