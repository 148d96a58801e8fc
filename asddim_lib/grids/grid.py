"""A grid for any scheduler: `timesteps` and `sigmas`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from asddim_lib.errors import WrongUse, check
from asddim_lib.evidence.path import Trajectory
from asddim_lib.evidence.profile import Profile
from asddim_lib.grids.table import DEFAULTS, Options, check_profile, method_of, timesteps_of
from asddim_lib.grids.uniform import SPACINGS, uniform
from asddim_lib.levels import (
    EDM,
    Levels,
    class_of,
    completed,
    is_flow,
    with_boundary,
    with_fixed_shift,
)
from asddim_lib.levels import check_timesteps as check_timesteps

#: Settings with which a flow scheduler changes levels that it was given.
OVERRIDING = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "shift_terminal")
ARGUMENTS = (*DEFAULTS, "path", "order", "temper", "begin", "other_model")
#: Evidence, and the needs that it serves: it is refused for another method.
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
    other_model: bool | None = None,
) -> list[int]:
    """K falling timesteps for any variance-preserving diffusers scheduler or its config.

    Without any of the other arguments they are those that the scheduler makes for K steps. They are
    real numbers where the scheduler's are. `allocation` names one of `METHODS` (see `asddim
    export --list`), whose `Options` the others are; their defaults come from the config of an
    `ASDDIMScheduler`, else from `DEFAULTS`. With `begin`, no step lies above that timestep: for
    image-to-image, pass the grid to the pipeline as `timesteps`, with `strength=1.0`. Raises
    WrongUse for a value out of range, for a profile or path that the method does not use or that
    was measured on another noise schedule, and for a flow-matching or EDM scheduler.
    """
    config = completed(scheduler)
    other = is_flow(config) or set(EDM) <= set(config)
    free = allocation in ("uniform", *SPACINGS) and not other  # these need no noise levels
    kind = "vp" if free else Levels.from_diffusers(scheduler, mu=1.0).kind
    words = {"flow": "a flow-matching one", "edm": "an EDM one"}
    remedy = "its timesteps are no whole numbers: use sigmas(…) and set_timesteps(sigmas=…)"
    check(kind == "vp", "scheduler", words.get(kind, kind), remedy)
    how: dict[str, Any] = {"allocation": allocation, "p": p, "lam": lam, "reading": reading}
    how |= {"profile": profile, "path": path, "order": order, "temper": temper}
    how |= {"begin": begin, "other_model": other_model}
    if all(value is None for value in how.values()):
        asked = _asked(scheduler, num_inference_steps)
        if asked is not None:
            return _falling_timesteps(asked)
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

    For Euler, DPM-Solver and similar these are σ = √((1 − ᾱ)/ᾱ), and the end of the last step. For
    EDM they are σ, without the end. For flow matching they are shares of noise in (0, 1] *before*
    the scheduler's own shift, which it applies to whatever it is given; it adds the 0 itself.
    `shifted=True` gives the values that the solver uses, with the end, for other programs. Where
    the shift depends on the picture's size, `mu` states it, as the pipeline gives it. Raises
    WrongUse as `timesteps` does, and for a flow scheduler that would override the grid.
    """
    config = with_fixed_shift(completed(scheduler), mu)
    levels = Levels.from_diffusers(config)
    if levels.kind == "flow":
        for flag in () if shifted else OVERRIDING:
            remedy = f"it overrides the grid: from_config(…, {flag}=None), or ASFlowScheduler"
            check(not config.get(flag), flag, config.get(flag), remedy)
    if all(value is None for value in how.values()):
        asked = _asked(scheduler, num_inference_steps, mu)
        if asked is not None:
            own = _sigmas_of(asked, levels)
            if levels.kind == "vp" or shifted:
                return own.tolist()
            return (levels.unshifted(own[:-1]) if levels.kind == "flow" else own[:-1]).tolist()
    grid = numbers(config, num_inference_steps, how)
    if levels.kind == "flow":
        held = None if how.get("allocation") else config.get("grid")
        before, after = _flow_shares(levels, grid, held, config.get("boundary"))
        return [*after.tolist(), 0.0] if shifted else before.tolist()
    values = levels.finite_sigmas[grid].tolist()
    return values if levels.kind == "edm" and not shifted else [*values, 0.0]


def _flow_shares(
    levels: Levels, grid: list[int], held: list[float] | None, boundary: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """A flow model's K shares of noise before its shift and after it; `held` are after it."""
    if held is None:
        before = (np.array(grid) + 1) / len(levels)
        after = levels.shifted(before)
    else:
        after = np.array(held)
        before = levels.unshifted(after)
    if boundary is not None:
        after = with_boundary(after, boundary)
        before = levels.unshifted(after)
    return before, after


def _asked(scheduler: Any, steps: int, mu: float | None = None) -> Any:
    """A copy of the scheduler with the K steps that it makes itself, or None to use the rules.

    A config is asked through its class. Rules serve a config whose class is not known, and give a
    flow scheduler of ours its own sigmas in float64.
    """
    config, kind = completed(scheduler), class_of(scheduler)
    grid = config.get("grid")
    set_here = config.get("allocation", "uniform") != "uniform"
    set_here = set_here or grid is not None or config.get("boundary") is not None
    other_number = grid is not None and len(grid) != steps
    if kind is None or (set_here and is_flow(config) and not other_number):
        return None
    betas = config.get("trained_betas")
    _check_steps(steps, int(config["num_train_timesteps"]) if betas is None else len(betas))
    plain = isinstance(scheduler, Mapping)
    asked = kind.from_config(scheduler) if plain else copy.deepcopy(scheduler)
    known = inspect.signature(asked.set_timesteps).parameters
    how = {"mu": mu} if "mu" in known and config.get("use_dynamic_shifting") else {}
    try:
        asked.set_timesteps(steps, **how)
    except WrongUse:
        raise
    except (AssertionError, ValueError) as error:  # diffusers' own refusals
        reason = (str(error).splitlines() or ["it refuses its settings"])[0]
        line = f"num_inference_steps is {steps}; {kind.__name__} cannot make them ({reason})"
        raise WrongUse(line) from error
    count = len(_falling_timesteps(asked))
    remedy = f"{kind.__name__} makes {count} steps then: give another number, or an allocation"
    check(count == steps, "num_inference_steps", steps, remedy)
    return asked


def _falling_timesteps(scheduler: Any) -> list[Any]:
    """The timesteps at which a scheduler's steps begin, as whole numbers where they are whole."""
    times = scheduler.timesteps.cpu().double().numpy()
    if getattr(scheduler, "order", 1) == 2:  # it evaluates the network twice in each step
        times = times[::2]
    times = times[np.append(True, np.diff(times) != 0)]  # PNDM repeats one
    times = times[::-1] if times[0] < times[-1] else times  # inversion's rise
    if getattr(scheduler, "sigmas", None) is None:
        times = times[times >= 0]  # DDIM's trailing steps end in −1 for K of 61, 103, …
    return [int(t) for t in times] if np.all(times == np.floor(times)) else times.tolist()


def _sigmas_of(scheduler: Any, levels: Levels) -> np.ndarray:
    """A scheduler's K + 1 levels in the numbers of its kind: σ, or s of a flow model."""
    if getattr(scheduler, "sigmas", None) is not None and len(scheduler.sigmas) > 1:
        values = scheduler.sigmas.cpu().double().numpy()
        if getattr(scheduler, "order", 1) == 2:
            values = np.append(values[:-1:2], values[-1])
        return values
    table = levels.finite_sigmas
    end = 0.0 if levels.ends_at_zero else table[0]
    return np.append(table[_falling_timesteps(scheduler)], end)


def numbers(scheduler: Any, steps: int, how: dict[str, Any]) -> list[int]:
    """K falling timesteps by the methods of the table, for a scheduler or config of any kind.

    Those of a flow or EDM model number its levels, 0 … T − 1.
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
    levels = Levels.from_diffusers(config)
    if options.path is not None:
        options.path.check_schedule(levels)
    if begin is not None:
        _check_begin(name, begin, len(levels))
    _check_steps(steps, len(options.cut(levels.sigmas)))
    return timesteps_of(name, levels, steps, options)


def _held(config: dict[str, Any], steps: int, given: dict[str, Any]) -> list[int]:
    """The `grid` in a config, as numbers of levels; the nearest ones of a flow model's sigmas.

    Raises WrongUse for anything that is `given`.
    """
    grid, names = config["grid"], ", ".join(given)
    remedy = "this scheduler holds a grid, which makes no use of it: give an allocation, too"
    check(not given, names, "given", remedy)
    remedy = f"this scheduler holds a grid of {len(grid)} steps: give {len(grid)}, or an allocation"
    check(steps == len(grid), "num_inference_steps", steps, remedy)
    if not is_flow(config):
        return list(grid)
    shares = Levels.from_diffusers(config).shares
    return [int(np.abs(shares - share).argmin()) for share in grid]


def _check_begin(name: str, begin: int, size: int) -> None:
    whole = isinstance(begin, (int, np.integer)) and 0 <= begin < size
    check(whole, "begin", begin, f"give a timestep, 0 to {size - 1}")
    remedy = "record the path with the pipeline's strength instead: such a grid begins with it"
    check(method_of(name).needs != "path", "begin", begin, remedy)


def _check_evidence(name: str, given: dict[str, Any]) -> None:
    needs, remedy = method_of(name).needs, f"allocation {name!r} does not use it: name another"
    for argument, served in _SERVES.items():
        check(argument not in given or needs in served, argument, "given", remedy)


def _check_steps(steps: int, size: int) -> None:
    whole = isinstance(steps, (int, np.integer)) and not isinstance(steps, bool)
    remedy = f"give a whole number, 1 to {size}"
    check(whole and 1 <= steps <= size, "num_inference_steps", steps, remedy)
