"""Puts a grid into any diffusers scheduler, and verifies the result.

`with_grid` gives a scheduler of ours with the grid in its config: it draws, and is saved. Where no
class of ours is the same method, `hold` gives a copy of any other scheduler that draws on the grid.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from asddim_lib.configs import OVERRIDES, completed, kind_of
from asddim_lib.errors import check
from asddim_lib.grids.current import printed_sigmas
from asddim_lib.levels import LARGEST_SIGMA, Levels
from asddim_lib.schedulers.ddim import ASDDIMScheduler
from asddim_lib.schedulers.flow import ASFlowScheduler
from asddim_lib.schedulers.inverse import ASDDIMInverseScheduler
from asddim_lib.schedulers.mixin import OPTIONS, TakesGrid
from asddim_lib.schedulers.multistep import DPMSolverGridScheduler, UniPCGridScheduler

ENDS = ("zero", "sigma_min")
#: Which scheduler of ours is the same method as each of diffusers'.
_COUNTERPARTS: tuple[tuple[Any, Any], ...] = (
    (ASDDIMInverseScheduler, ASDDIMInverseScheduler),
    (DDIMScheduler, ASDDIMScheduler),
    (EulerDiscreteScheduler, ASDDIMScheduler),
    (FlowMatchEulerDiscreteScheduler, ASFlowScheduler),
    (UniPCMultistepScheduler, UniPCGridScheduler),
    (DPMSolverMultistepScheduler, DPMSolverGridScheduler),
)


def with_grid(scheduler: Any, grid: Any, mu: float | None = None) -> Any:
    """A scheduler of ours of the same method, with this grid in its config.

    It is ready for `pipe.scheduler`, and is saved with the pipeline. `grid` is what
    `Levels.grid_of` reads: whole timesteps, or sigmas. Of a shift that depends on the picture's
    size or on the number of steps, `mu` is the pipeline's for this K: whole timesteps are shifted
    by it, and a later `mu` does not change them. Raises WrongUse for what is no grid, for a method
    that no class of ours is, and for a scheduler that is not as its config says.
    """
    changed = getattr(scheduler, "not_in_config", None)
    what, remedy = f"{type(scheduler).__name__}, {changed}", "give the one that it was made of"
    check(changed is None, "scheduler", what, remedy)
    ours = counterpart(scheduler)
    remedy = "no class of ours is the same method: use DDIM, Euler, UniPC or DPMSolverMultistep"
    check(ours is not None, "scheduler", type(scheduler).__name__, remedy)
    config = {key: value for key, value in completed(scheduler).items() if key not in OPTIONS}
    levels = Levels.from_diffusers(config, mu)
    begins = levels.grid_of(grid)[:-1].tolist()
    stated = levels.to_timesteps(grid) if levels.kind == "vp" else begins
    made = ours.from_config(config, grid=stated)  # type: ignore[union-attr]
    made.strict = getattr(scheduler, "strict", True)
    return made


def counterpart(scheduler: Any) -> Any:
    """The class of ours that is the same method as a scheduler's; None where there is none.

    A subclass of ours is its own. There is none for one that changes diffusers' `step`, and for one
    that is not as its config says.
    """
    if getattr(scheduler, "not_in_config", None) is not None:
        return None
    kind = type(scheduler)
    for theirs, ours in _COUNTERPARTS:
        if isinstance(scheduler, ours):
            return kind
        if isinstance(scheduler, theirs) and kind.step is theirs.step:
            return ours
    return None


def drawing(kind: Any, config: Any, end: str | None = None) -> Any:
    """A scheduler of class `kind` for the model of `config`, which changes no grid given to it.

    The last step leads to `end`: "zero", clean data, or "sigma_min", timestep 0's level; by default
    where the config's own scheduler ends. Raises WrongUse for a class that cannot end there.
    """
    source = completed(config)
    known = inspect.signature(kind.__init__).parameters
    changes = {name: value for name, value in (OVERRIDES | OPTIONS).items() if name in known}
    if "rho" in known:  # EDM's own range stays
        del changes["sigma_min"], changes["sigma_max"]
    levels = Levels.from_diffusers({**source, "invert_sigmas": False}, 1.0)  # kind and end: any mu
    end = end or ("zero" if levels.end == 0 else "sigma_min")
    check(end in ENDS, "end", end, f"use one of {', '.join(ENDS)}")
    if levels.kind == "flow":
        changes |= _flow_settings(source, known)
    if "final_sigmas_type" in known:
        changes["final_sigmas_type"] = end
    if "set_alpha_to_one" in known:
        changes["set_alpha_to_one"] = end == "zero"
    movable = {"final_sigmas_type", "set_alpha_to_one"} & set(known)
    able = bool(movable) or end == "zero" or levels.kind == "flow"
    check(able, "end", end, f"{kind.__name__} always ends at zero: use end='zero'")
    return kind.from_config(source, **changes)


def _flow_settings(source: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """A flow scheduler's settings in another one's words: Euler's, or UniPC's and DPM-Solver's."""
    shift = source["flow_shift"] if source.get("use_flow_sigmas") else source["shift"]
    if "flow_shift" not in known:
        return {"shift": shift} if "shift" in known else {}
    flow = {"use_flow_sigmas": True, "flow_shift": shift}
    return {**flow, "prediction_type": "flow_prediction"}


def takes(scheduler: Any) -> str:
    """The argument by which a scheduler takes a grid, timesteps or sigmas; empty if by none."""
    known = inspect.signature(scheduler.set_timesteps).parameters
    kind = kind_of(scheduler)
    if kind == "edm":  # what diffusers' Euler calls sigmas are places on its ramp
        return ""
    if kind == "vp" and "timesteps" in known:
        return "timesteps"
    flow_alone = kind == "vp" and "use_flow_sigmas" in completed(scheduler)  # diffusers' UniPC
    return "sigmas" if "sigmas" in known and not flow_alone else ""


def set_grid(scheduler: Any, grid: Any, device: Any = None, mu: float | None = None) -> None:
    """Sets a grid in a scheduler: whole timesteps or sigmas, as `Levels.grid_of` reads them.

    `mu` is the shift that depends on the picture's size, as a pipeline gives it. Raises WrongUse
    for what is no grid, and where the scheduler takes none or has another one afterwards.
    """
    argument, levels = takes(scheduler), Levels.from_diffusers(scheduler, mu)
    remedy = "it takes no grid: use ASDDIM, ASFlow, UniPCGrid or DPMSolverGridScheduler"
    check(bool(argument), "scheduler", type(scheduler).__name__, remedy)
    if isinstance(scheduler, TakesGrid) and not hasattr(scheduler, "not_in_config"):
        # Not by `set_timesteps`, which ignores what a pipeline passes by itself.
        steps = levels.to_timesteps(grid) if levels.kind == "vp" else levels.grid_of(grid)[:-1]
        with torch.device("cpu"):
            scheduler._set(steps, device)
        return
    if argument == "timesteps":
        grid = levels.to_timesteps(grid)
        scheduler.set_timesteps(device=device, timesteps=grid)
    else:
        given = levels.grid_of(grid)
        given = levels.unshifted(given[:-1]) if levels.kind == "flow" else given
        shift = {} if mu is None else {"mu": mu}
        scheduler.set_timesteps(device=device, sigmas=given, **shift)
    check_set(scheduler, grid, mu)


def hold(scheduler: Any, grid: Any) -> Any:
    """A copy of a scheduler of any class that uses this grid whatever a pipeline asks it for.

    It cannot be saved; `with_grid` gives one that can. Grid and errors are those of `set_grid`.
    """

    def set_timesteps(
        self: Any,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        plain = copy.copy(scheduler)
        set_grid(plain, grid, device, mu)
        vars(self).update(vars(plain))

    how = "on a grid; use schedulers.place.with_grid"
    return intercepted(scheduler, how, set_timesteps=set_timesteps)


def intercepted(scheduler: Any, how: str, **methods: Callable[..., Any]) -> Any:
    """A copy of a scheduler with other `methods(self, …)`: the only class made on the way.

    A pipeline reads the new functions' signatures. Saving the copy, or `with_grid` of it, raises
    WrongUse with `how`: what it is that the config does not say, and what to do.
    """
    kind = type(scheduler)

    def save_config(self: Any, *args: Any, **kwargs: Any) -> None:
        check(False, "scheduler", kind.__name__, f"its config does not say that it is {how}")

    changed = copy.copy(scheduler)
    known = {"not_in_config": how, "save_config": save_config, "__module__": kind.__module__}
    changed.__class__ = type(kind.__name__, (kind,), {**known, **methods})
    return changed


def check_set(scheduler: Any, grid: Any, mu: float | None = None) -> None:
    """Raises WrongUse unless a scheduler has the levels that the grid means, each to 1e-3."""
    levels = Levels.from_diffusers(scheduler, mu)
    meant = levels.grid_of(grid)[:-1]
    found = printed_sigmas(scheduler, levels)[:-1]
    one, other = (np.minimum(values, LARGEST_SIGMA) for values in (found, meant))
    same = len(meant) == len(found) and np.allclose(one, other, rtol=1e-3, atol=1e-6)
    shown = ", ".join(f"{level:.4g}" for level in found[:6])
    what = f"{type(scheduler).__name__} at the levels {shown}, …, not those of the grid"
    check(same, "scheduler", what, "build it by schedulers.place.drawing")
