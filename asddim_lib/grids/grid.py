"""A grid for any scheduler: `timesteps` and `sigmas`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from asddim_lib.configs import EDM, OVERRIDES, completed, is_flow, kind_of, with_fixed_shift
from asddim_lib.errors import check, check_whole
from asddim_lib.evidence.path import Trajectory
from asddim_lib.evidence.profile import Profile
from asddim_lib.grids.current import falling_timesteps, printed_sigmas, with_steps
from asddim_lib.grids.rules import SPACINGS, uniform
from asddim_lib.grids.table import DEFAULTS, Options, check_profile, method_of, timesteps_of
from asddim_lib.levels import Levels, with_boundary

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
    kind = "vp" if free else kind_of(scheduler)
    words = {"flow": "a flow-matching one", "edm": "an EDM one"}
    remedy = "its timesteps are no whole numbers: use sigmas(…) and set_timesteps(sigmas=…)"
    check(kind == "vp", "scheduler", words.get(kind, kind), remedy)
    given: dict[str, Any] = {"allocation": allocation, "p": p, "lam": lam, "eps": eps}
    given |= {"reading": reading, "profile": profile, "path": path, "order": order}
    given |= {"exponent": exponent, "begin": begin, "other_model": other_model}
    current = with_steps(scheduler, num_inference_steps) if _is_empty(given) else None
    if current is not None:
        return falling_timesteps(current)
    grid = _of_config(config, num_inference_steps, given)
    return grid or _indices(config, num_inference_steps, given)


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
    - EDM (Karras et al. 2022): K values, σ, the standard deviation of the noise. diffusers' own
      Euler takes none: what it calls `sigmas` are places on its ramp.
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
        for flag, neutral in () if shifted else OVERRIDES.items():
            remedy = f"it overrides the grid: from_config(…, {flag}={neutral}), or ASFlowScheduler"
            value = config.get(flag)
            check(value is None or value == neutral, flag, value, remedy)
    given: dict[str, Any] = {"allocation": allocation, "p": p, "lam": lam, "eps": eps}
    given |= {"reading": reading, "profile": profile, "path": path, "order": order}
    given |= {"exponent": exponent, "begin": begin, "other_model": other_model}
    current = with_steps(scheduler, num_inference_steps, mu) if _is_empty(given) else None
    if current is not None:
        values = printed_sigmas(current, levels)
        if levels.kind == "vp" or shifted:
            return values.tolist()
        return (levels.unshifted(values[:-1]) if levels.kind == "flow" else values[:-1]).tolist()
    grid = _of_config(config, num_inference_steps, given)
    boundary = config.get("boundary")
    if levels.kind == "flow" and (grid or boundary is not None):
        if not grid:
            grid = levels.sigmas_at(_indices(config, num_inference_steps, given))[:-1]
        after = np.array(grid)
        after = after if boundary is None else with_boundary(after, boundary)
        return (levels.ended(after) if shifted else levels.unshifted(after)).tolist()
    indices = grid or _indices(config, num_inference_steps, given)
    if levels.kind == "flow" and not shifted:
        return levels.unshifted_at(indices).tolist()
    placed = levels.sigmas_at(indices)
    return placed[:-1] if levels.kind == "edm" and not shifted else placed


def _is_empty(given: Mapping[str, Any]) -> bool:
    return all(value is None for value in given.values())


def _of_config(config: Mapping[str, Any], steps: int, given: Mapping[str, Any]) -> list[Any]:
    """The `grid` in a config: whole timesteps, or a flow model's s. Empty if none counts.

    Raises WrongUse for another number of steps, and for options that are given.
    """
    grid = config.get("grid")
    if grid is None or given["allocation"] is not None:
        return []
    names = ", ".join(name for name, value in given.items() if value is not None)
    remedy = "the scheduler has a grid, which makes no use of it: give an allocation, too"
    check(not names, names, "given", remedy)
    remedy = f"the scheduler has a grid of {len(grid)} steps: give {len(grid)}, or an allocation"
    check(steps == len(grid), "num_inference_steps", steps, remedy)
    return list(grid)


def _indices(config: Mapping[str, Any], steps: int, given: Mapping[str, Any]) -> list[int]:
    """K falling indices of a model's levels, 0 … T − 1: of a variance-preserving one, timesteps.

    By the method and options that are given, else by the config's.
    """
    chosen = {key: config.get(key, default) for key, default in DEFAULTS.items()}
    chosen |= {name: value for name, value in given.items() if value is not None}
    name, profile, begin = chosen.pop("allocation"), chosen["profile"], chosen.get("begin")
    needs, remedy = method_of(name).needs, f"allocation {name!r} does not use it: name another"
    for argument, served in _SERVES.items():
        unused = given[argument] is not None and needs not in served
        check(not unused, argument, "given", remedy)
    check_profile(profile)
    if isinstance(profile, dict):
        chosen["profile"] = Profile.from_dict(profile)
    spacing, offset = config.get("timestep_spacing", "leading"), config.get("steps_offset", 0)
    if is_flow(config):
        spacing = "trailing"  # flow matching begins with pure noise
    if name in ("uniform", *SPACINGS) and begin is None:  # these need no noise levels
        betas = config.get("trained_betas")
        size = int(config.get("num_train_timesteps", 1000)) if betas is None else len(betas)
        return uniform(spacing if name == "uniform" else name, size, steps, offset)
    levels = Levels.from_diffusers(config)
    if chosen.get("path") is not None:
        chosen["path"].check_schedule(levels)
    if begin is not None:
        check_whole("begin", begin, 0, len(levels) - 1)
        remedy = "record the path with the pipeline's strength instead: such a grid begins with it"
        check(needs != "path", "begin", begin, remedy)
    check_whole("num_inference_steps", steps, 1, len(levels.below(begin)))
    return timesteps_of(
        name, levels, steps, Options(**chosen, spacing=spacing, steps_offset=offset)
    )
