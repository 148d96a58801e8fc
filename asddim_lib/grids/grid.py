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
from asddim_lib.grids.rules import SPACINGS, uniform
from asddim_lib.grids.table import DEFAULTS, Options, check_profile, method_of, timesteps_of
from asddim_lib.levels import (
    EDM,
    Levels,
    class_of,
    completed,
    is_flow,
    with_boundary,
    with_fixed_shift,
)

#: Settings with which a flow scheduler changes levels that it was given.
OVERRIDING = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "shift_terminal")
#: Evidence, and the needs that it serves: it is refused for another method.
_SERVES = {"profile": ("profile",), "path": ("path", "adjoints"), "exponent": ("profile",)}


def timesteps(
    scheduler: Any,
    num_inference_steps: int,
    *,
    allocation: str | None = None,
    p: float | None = None,
    lam: float | None = None,
    eps: float | None = None,
    reading: str | None = None,
    profile: Profile | dict | None = None,
    path: Trajectory | None = None,
    order: int | None = None,
    exponent: float | None = None,
    begin: int | None = None,
    other_model: bool | None = None,
) -> list[int]:
    """The K training timesteps at which a variance-preserving scheduler calls the network.

    They fall strictly within 0 … T − 1 (T is 1000 for Stable Diffusion). Pass them to a pipeline or
    to `set_timesteps` as `timesteps=`, or to a scheduler of this library as `grid=`.

    Without `allocation` and the arguments below it, they are those that the scheduler sets for K
    steps; real numbers where its timesteps are real, as Euler's Karras steps.

    - `scheduler`: a diffusers scheduler (DDIM, Euler, DPM-Solver++, UniPC, …) or its config.
    - `num_inference_steps`: K, from 1 to T.
    - `allocation`: the method's name, one of `METHODS`; `asddim export --list` prints them. The
      default is that of the scheduler's config, if it is one of this library, or "uniform".
    - `p`, `eps`: of the paper's Eq 5. `p` is 0.5 by default; 0 ignores the noise level.
    - `lam`: λ of Eq 9, 1 by default.
    - `reading`: of Eqs 10–12, "intent" (default), "density" or "literal".
    - `profile`: a measured profile or its `to_dict()`, from `calibrate`.
    - `path`: a recorded path, from `record`.
    - `order`: the solver's order of accuracy, 1 (default) to 3.
    - `exponent`: the power of a profile's density, from 0 (uniform) to 1 (default).
    - `begin`: no step lies above this timestep. For image-to-image, pass the grid to the pipeline
      as `timesteps`, with `strength=1.0`.
    - `other_model`: allows a grid that was published for another kind of model.

    Raises WrongUse, a ValueError, for a value out of range, for evidence that the method does not
    use or that belongs to another noise schedule, and for a flow-matching or EDM scheduler.

    >>> from diffusers import DDIMScheduler
    >>> timesteps(DDIMScheduler(), 4, allocation="trailing")
    [999, 749, 499, 249]
    >>> timesteps(DDIMScheduler(), 4, allocation="quadratic")
    [999, 562, 249, 62]
    """
    config = completed(scheduler)
    other = is_flow(config) or set(EDM) <= set(config)
    free = allocation in ("uniform", *SPACINGS) and not other  # these need no noise levels
    kind = "vp" if free else Levels.from_diffusers(scheduler, mu=1.0).kind
    words = {"flow": "a flow-matching one", "edm": "an EDM one"}
    remedy = "its timesteps are no whole numbers: use sigmas(…) and set_timesteps(sigmas=…)"
    check(kind == "vp", "scheduler", words.get(kind, kind), remedy)
    asked = (allocation, p, lam, eps, reading, profile, path, order, exponent, begin, other_model)
    current = _with_steps(scheduler, num_inference_steps) if _is_empty(asked) else None
    if current is not None:
        return _falling_timesteps(current)
    return level_indices(
        scheduler,
        num_inference_steps,
        allocation=allocation,
        p=p,
        lam=lam,
        eps=eps,
        reading=reading,
        profile=profile,
        path=path,
        order=order,
        exponent=exponent,
        begin=begin,
        other_model=other_model,
    )


def sigmas(
    scheduler: Any,
    num_inference_steps: int,
    *,
    shifted: bool = False,
    mu: float | None = None,
    allocation: str | None = None,
    p: float | None = None,
    lam: float | None = None,
    eps: float | None = None,
    reading: str | None = None,
    profile: Profile | dict | None = None,
    path: Trajectory | None = None,
    order: int | None = None,
    exponent: float | None = None,
    begin: int | None = None,
    other_model: bool | None = None,
) -> list[float]:
    """The noise levels of a grid, falling, as the scheduler's `set_timesteps(sigmas=…)` takes them.

    - Euler, DPM-Solver++, UniPC and others of Stable Diffusion: K + 1 values, σ = √((1 − ᾱ)/ᾱ),
      noise over signal, and the end of the last step.
    - EDM (Karras et al. 2022): K values, σ, the standard deviation of the noise.
    - flow matching (FLUX, SD3, Wan, …): K values, s in (0, 1], the noise's weight in the sample,
      before the shift.

    A flow scheduler shifts them and adds the 0. With `shifted=True` they are the values that the
    solver uses, K + 1 for every kind of model, as ComfyUI and A1111 take them.

    `mu` is the shift that depends on the picture's size, as FLUX's pipeline computes it. The other
    arguments are those of `timesteps`; without them the grid is the scheduler's current one.

    Raises WrongUse as `timesteps` does, for a shift that needs `mu`, and for a flow scheduler that
    would override the grid (`use_karras_sigmas` and the like).

    >>> from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
    >>> levels = sigmas(EulerDiscreteScheduler(), 3, allocation="logsnr")
    >>> [round(level, 3) for level in levels]
    [157.407, 1.253, 0.01, 0.0]
    >>> sigmas(FlowMatchEulerDiscreteScheduler(shift=3.0), 4, allocation="trailing")
    [1.0, 0.75, 0.5, 0.25]
    >>> sigmas(FlowMatchEulerDiscreteScheduler(shift=3.0), 4, allocation="trailing", shifted=True)
    [1.0, 0.9, 0.75, 0.5, 0.0]
    """
    config = with_fixed_shift(completed(scheduler), mu)
    levels = Levels.from_diffusers(config)
    if levels.kind == "flow":
        for flag in () if shifted else OVERRIDING:
            remedy = f"it overrides the grid: from_config(…, {flag}=None), or ASFlowScheduler"
            check(not config.get(flag), flag, config.get(flag), remedy)
    asked = (allocation, p, lam, eps, reading, profile, path, order, exponent, begin, other_model)
    current = _with_steps(scheduler, num_inference_steps, mu) if _is_empty(asked) else None
    if current is not None:
        values = _levels_of(current, levels)
        if levels.kind == "vp" or shifted:
            return values.tolist()
        return (levels.unshifted(values[:-1]) if levels.kind == "flow" else values[:-1]).tolist()
    indices = level_indices(
        scheduler,
        num_inference_steps,
        mu=mu,
        allocation=allocation,
        p=p,
        lam=lam,
        eps=eps,
        reading=reading,
        profile=profile,
        path=path,
        order=order,
        exponent=exponent,
        begin=begin,
        other_model=other_model,
    )
    if levels.kind == "flow":
        given = None if allocation else config.get("grid")
        before = levels.unshifted_at(indices)
        after = levels.shifted(before)
        if given is not None:
            after = np.array(given)
            before = levels.unshifted(after)
        if config.get("boundary") is not None:
            after = with_boundary(after, config["boundary"])
            before = levels.unshifted(after)
        return [*after.tolist(), 0.0] if shifted else before.tolist()
    values = levels.finite_sigmas[indices]
    return [*values.tolist(), *([] if levels.kind == "edm" and not shifted else [0.0])]


def level_indices(
    scheduler: Any,
    num_inference_steps: int,
    *,
    mu: float | None = None,
    allocation: str | None = None,
    p: float | None = None,
    lam: float | None = None,
    eps: float | None = None,
    reading: str | None = None,
    profile: Profile | dict | None = None,
    path: Trajectory | None = None,
    order: int | None = None,
    exponent: float | None = None,
    begin: int | None = None,
    other_model: bool | None = None,
) -> list[int]:
    """A grid as K falling indices of `Levels.sigmas`, 0 … T − 1, for any kind of model.

    On a variance-preserving model an index is a timestep. The arguments are those of `sigmas`;
    without them the grid is by the config's `grid` or allocation.
    """
    options: dict[str, Any] = {"p": p, "lam": lam, "eps": eps, "reading": reading, "order": order}
    options |= {"profile": profile, "path": path, "exponent": exponent, "other_model": other_model}
    given = {name: value for name, value in options.items() if value is not None}
    config, steps = with_fixed_shift(completed(scheduler), mu), num_inference_steps
    if allocation is None and config.get("grid") is not None:
        return _of_config(config, steps, [*given, *([] if begin is None else ["begin"])])
    if is_flow(config):
        config["timestep_spacing"] = "trailing"  # flow matching begins with pure noise
    name = allocation or config.get("allocation", DEFAULTS["allocation"])
    _check_evidence(name, given)
    chosen = {key: config.get(key, default) for key, default in DEFAULTS.items()} | given
    del chosen["allocation"]
    check_profile(chosen["profile"])
    if isinstance(chosen["profile"], dict):
        chosen["profile"] = Profile.from_dict(chosen["profile"])
    spacing, offset = config.get("timestep_spacing", "leading"), config.get("steps_offset", 0)
    if name in ("uniform", *SPACINGS) and begin is None:  # these need no noise levels
        betas = config.get("trained_betas")
        size = int(config.get("num_train_timesteps", 1000)) if betas is None else len(betas)
        _check_steps(steps, size)
        return uniform(spacing if name == "uniform" else name, size, steps, offset)
    levels = Levels.from_diffusers(config)
    if chosen.get("path") is not None:
        chosen["path"].check_schedule(levels)
    if begin is not None:
        _check_begin(name, begin, len(levels))
    _check_steps(steps, len(levels.below(begin)))
    all_options = Options(**chosen, spacing=spacing, steps_offset=offset, begin=begin)
    return timesteps_of(name, levels, steps, all_options)


def _of_config(config: dict[str, Any], steps: int, given: list[str]) -> list[int]:
    """The `grid` in a config, as indices; the nearest ones of a flow model's sigmas.

    Raises WrongUse for another number of steps, and for options that are `given`.
    """
    grid = config["grid"]
    remedy = "the scheduler has a grid, which makes no use of it: give an allocation, too"
    check(not given, ", ".join(given), "given", remedy)
    remedy = f"the scheduler has a grid of {len(grid)} steps: give {len(grid)}, or an allocation"
    check(steps == len(grid), "num_inference_steps", steps, remedy)
    if not is_flow(config):
        return list(grid)
    shares = Levels.from_diffusers(config).shares
    return [int(np.abs(shares - share).argmin()) for share in grid]


def _is_empty(options: tuple[Any, ...]) -> bool:
    return all(option is None for option in options)


def _with_steps(scheduler: Any, steps: int, mu: float | None = None) -> Any:
    """A copy of the scheduler with the K steps that it sets itself, or None to use the rules.

    A config's class is built first. Rules serve a config whose class is not known, and give a flow
    scheduler of ours its grid's sigmas in float64.
    """
    config, kind = completed(scheduler), class_of(scheduler)
    grid = config.get("grid")
    ours = config.get("allocation", "uniform") != "uniform"
    ours = ours or grid is not None or config.get("boundary") is not None
    other_number = grid is not None and len(grid) != steps
    if kind is None or (ours and is_flow(config) and not other_number):
        return None
    betas = config.get("trained_betas")
    _check_steps(steps, int(config["num_train_timesteps"]) if betas is None else len(betas))
    plain = isinstance(scheduler, Mapping)
    current = kind.from_config(scheduler) if plain else copy.deepcopy(scheduler)
    known = inspect.signature(current.set_timesteps).parameters
    try:
        if "mu" in known and config.get("use_dynamic_shifting"):
            current.set_timesteps(steps, mu=mu)
        else:
            current.set_timesteps(steps)
    except WrongUse:
        raise
    except (AssertionError, ValueError) as error:  # raised by diffusers
        reason = (str(error).splitlines() or ["it refuses its settings"])[0]
        line = f"num_inference_steps is {steps}; {kind.__name__} cannot make them ({reason})"
        raise WrongUse(line) from error
    count = len(_falling_timesteps(current))
    remedy = f"{kind.__name__} makes {count} steps then: give another number, or an allocation"
    check(count == steps, "num_inference_steps", steps, remedy)
    return current


def _falling_timesteps(scheduler: Any) -> list[Any]:
    """The timesteps at which a scheduler's steps begin, as whole numbers where they are whole."""
    times = scheduler.timesteps.cpu().double().numpy()
    if getattr(scheduler, "order", 1) == 2:  # it evaluates the network twice in each step
        times = times[::2]
    times = times[np.append(True, np.diff(times) != 0)]  # PNDM repeats one
    times = times[::-1] if times[0] < times[-1] else times  # those of inversion rise
    if getattr(scheduler, "sigmas", None) is None:
        times = times[times >= 0]  # DDIM's trailing steps end in −1 for K of 61, 103, …
    return [int(t) for t in times] if np.all(times == np.floor(times)) else times.tolist()


def _levels_of(scheduler: Any, levels: Levels) -> np.ndarray:
    """A scheduler's K + 1 levels in the unit of its kind: σ, or s of a flow model."""
    if getattr(scheduler, "sigmas", None) is not None and len(scheduler.sigmas) > 1:
        values = scheduler.sigmas.cpu().double().numpy()
        if getattr(scheduler, "order", 1) == 2:
            values = np.append(values[:-1:2], values[-1])
        return values[::-1] if values[0] < values[-1] else values  # those of inversion rise
    table = levels.finite_sigmas
    end = 0.0 if levels.ends_at_zero else table[0]
    return np.append(table[_falling_timesteps(scheduler)], end)


def _check_begin(name: str, begin: int, size: int) -> None:
    whole = isinstance(begin, (int, np.integer)) and 0 <= begin < size
    check(whole, "begin", begin, f"give a timestep, 0 to {size - 1}")
    remedy = "record the path with the pipeline's strength instead: such a grid begins with it"
    check(method_of(name).needs != "path", "begin", begin, remedy)


def _check_evidence(name: str, given: Mapping[str, Any]) -> None:
    needs, remedy = method_of(name).needs, f"allocation {name!r} does not use it: name another"
    for argument, served in _SERVES.items():
        check(argument not in given or needs in served, argument, "given", remedy)


def _check_steps(steps: int, size: int) -> None:
    whole = isinstance(steps, (int, np.integer)) and not isinstance(steps, bool)
    remedy = f"give a whole number, 1 to {size}"
    check(whole and 1 <= steps <= size, "num_inference_steps", steps, remedy)
