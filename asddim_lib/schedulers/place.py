"""A grid laid in any diffusers scheduler, and looked at again: what it holds is what was meant."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from asddim_lib.errors import WrongUse, check
from asddim_lib.grids.flow import check_sigmas
from asddim_lib.grids.grid import check_timesteps
from asddim_lib.levels import Levels, completed, flow_shift, noise_schedule, with_fixed_shift
from asddim_lib.paper import NoiseSchedule
from asddim_lib.schedulers.ddim import ASDDIMScheduler
from asddim_lib.schedulers.dpm import DPMSolverGridScheduler
from asddim_lib.schedulers.flow import ASFlowScheduler
from asddim_lib.schedulers.inverse import ASDDIMInverseScheduler
from asddim_lib.schedulers.unipc import UniPCGridScheduler

#: Settings with which a scheduler makes levels of its own, and the value that leaves a grid alone.
OVERRIDES: dict[str, Any] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "interpolation_type": "linear",
    "sigma_min": None,
    "sigma_max": None,
    "shift_terminal": None,
    "invert_sigmas": False,
}
#: Settings of our own schedulers that lay a grid without being given one.
OWN: dict[str, Any] = {"allocation": "uniform", "profile": None, "grid": None, "boundary": None}
ENDS = ("zero", "sigma_min")
#: Which scheduler of ours is the same method as each of diffusers', and can hold a grid.
_COUNTERPARTS: tuple[tuple[Any, Any], ...] = (
    (ASDDIMInverseScheduler, ASDDIMInverseScheduler),
    (DDIMScheduler, ASDDIMScheduler),
    (EulerDiscreteScheduler, ASDDIMScheduler),
    (FlowMatchEulerDiscreteScheduler, ASFlowScheduler),
    (UniPCMultistepScheduler, UniPCGridScheduler),
    (DPMSolverMultistepScheduler, DPMSolverGridScheduler),
)


def prepared(kind: Any, config: Any, end: str | None = None) -> Any:
    """A scheduler of class `kind`, for the model of `config`, that takes any grid as it is given.

    Settings that override a grid are off. The last step leads to `end`:
    "zero", clean data, or "sigma_min", timestep 0's level; by default where the config's own
    scheduler ends. Raises WrongUse for a class that cannot end there.
    """
    source = completed(config)
    known = inspect.signature(kind.__init__).parameters
    plain = {**OVERRIDES, **OWN}
    changes = {name: value for name, value in plain.items() if name in known}
    if "rho" in known:  # EDM's own range stays
        changes = {n: v for n, v in changes.items() if n not in ("sigma_min", "sigma_max")}
    coordinates = Levels.from_diffusers(
        source, mu=1.0
    )  # its kind and end do not depend on the shift
    end = end or ("zero" if coordinates.ends_at_zero else "sigma_min")
    check(end in ENDS, "end", end, f"use one of {', '.join(ENDS)}")
    if coordinates.kind == "flow":
        changes |= _flow_settings(source, known)
    if "final_sigmas_type" in known:
        changes["final_sigmas_type"] = end
    if "set_alpha_to_one" in known:
        changes["set_alpha_to_one"] = end == "zero"
    movable = {"final_sigmas_type", "set_alpha_to_one"} & set(known)
    able = bool(movable) or end == "zero" or coordinates.kind == "flow"
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
    if Levels.from_diffusers(scheduler, mu=1.0).kind == "vp":
        if "timesteps" in known:
            return "timesteps"
        flow_alone = "use_flow_sigmas" in completed(scheduler)  # diffusers' UniPC
        return "sigmas" if "sigmas" in known and not flow_alone else ""
    return "sigmas" if "sigmas" in known else ""


def lay(scheduler: Any, grid: Sequence[Any], device: Any = None, mu: float | None = None) -> None:
    """Lays a grid: numbers of levels (timesteps), or for a flow or EDM scheduler also sigmas.

    Sigmas are as `grids.sigmas` gives them, before the shift. `mu` is the shift that depends on the
    picture's size, as a pipeline gives it. Raises WrongUse for what is no grid, and where the
    scheduler takes none or holds another one afterwards.
    """
    argument = takes(scheduler)
    remedy = "it takes no grid: use ASDDIM, ASFlow, UniPCGrid or DPMSolverGridScheduler"
    check(bool(argument), "scheduler", type(scheduler).__name__, remedy)
    given = _given(scheduler, grid)
    how: dict[str, Any] = {argument: given if argument == "timesteps" else np.asarray(given)}
    how |= {} if mu is None else {"mu": mu}
    scheduler.set_timesteps(device=device, **how)
    check_laid(scheduler, grid, mu)


def hold(scheduler: Any, grid: Sequence[Any]) -> Any:
    """A copy of a scheduler that lays this grid whatever a pipeline asks it for.

    So a grid gets into every pipeline, also one that takes neither `timesteps` nor `sigmas`; call
    it with `num_inference_steps=len(grid)`. Grid and errors are those of `lay`.
    """
    kind = type(scheduler)

    def lay_held(held: Any, device: Any, mu: float | None) -> None:
        holding, held.__class__ = held.__class__, kind
        try:
            lay(held, grid, device, mu)
        finally:
            held.__class__ = holding

    return with_set_timesteps(scheduler, lay_held)


def holding(scheduler: Any, grid: Sequence[Any], mu: float | None = None) -> Any:
    """A scheduler of ours, of the same kind, that holds this grid in its config.

    It is built from the scheduler's own config, is ready for `pipe.scheduler`, and is saved with
    the pipeline; call that with `num_inference_steps=len(grid)`. Its levels are those that `lay`
    gives, whatever levels the config asks for, and so an `allocation` and a `boundary` are left
    out. Grid and `mu` are as `lay` takes them: the shift is put on sigmas here, once and for all,
    and a shift that a pipeline gives later moves them no more. Raises WrongUse for what is no grid,
    for a scheduler that no class of ours is the same method as, and for a `stopped` one.
    """
    stop, remedy = getattr(scheduler, "stops_at", None), "hold the grid first, and then stop it"
    what = f"{type(scheduler).__name__}, stopped at {stop}, which no config says"
    check(stop is None, "scheduler", what, remedy)
    own = next((ours for theirs, ours in _COUNTERPARTS if isinstance(scheduler, theirs)), None)
    remedy = "no class of ours is the same method: use DDIM, Euler, UniPC or DPMSolverMultistep"
    check(own is not None, "scheduler", type(scheduler).__name__, remedy)
    if Levels.from_diffusers(scheduler, mu=1.0).kind == "flow":
        kept = np.minimum(_meant(scheduler, grid, mu), 1.0).tolist()  # a shift may round 1 up
    else:
        kept = list(grid)
    config = completed(scheduler)
    plain = {name: value for name, value in OWN.items() if name in config}
    return own.from_config(config, **plain | {"grid": kept})  # type: ignore[union-attr]


def with_set_timesteps(scheduler: Any, act: Callable[[Any, Any, float | None], None]) -> Any:
    """A copy of a scheduler whose `set_timesteps` calls `act(copy, device, mu)` instead.

    Pipelines read the names in the signature, so it has all that any scheduler's has.
    """
    kind = type(scheduler)

    def set_timesteps(
        self: Any,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        act(self, device, mu)

    changed = copy.copy(scheduler)
    remedy = "its grid is not in its config: use laying.holding(scheduler, grid), which is saved"
    changed.__class__ = passing(kind, set_timesteps, remedy)
    return changed


def passing(kind: Any, set_timesteps: Any, remedy: str) -> Any:
    """A scheduler class with another `set_timesteps`, which no config says, and so no file.

    Whoever saves its schedulers gets a WrongUse with this remedy, before they write anything.
    """

    def save_config(self: Any, *args: Any, **kwargs: Any) -> None:
        check(False, "scheduler", f"{kind.__name__}, which cannot be saved so", remedy)

    return type(
        kind.__name__, (kind,), {"set_timesteps": set_timesteps, "save_config": save_config}
    )


def numbers_of(scheduler: Any, grid: Sequence[Any]) -> list[int]:
    """A grid as numbers of levels: as they are, or the nearest to a flow scheduler's sigmas.

    Raises WrongUse unless they fall strictly within 0 … T − 1.
    """
    coordinates = Levels.from_diffusers(scheduler, mu=1.0)
    size = len(coordinates.betas)
    if coordinates.kind == "flow" and not _numbered(grid):
        grid = [round(float(mix) * size) - 1 for mix in grid]
    return check_timesteps(grid, size)


def numbers_held(scheduler: Any, mu: float | None = None) -> list[int]:
    """The numbers of the levels that a scheduler holds, without the end, each to the nearest.

    Raises WrongUse unless they fall strictly.
    """
    coordinates = Levels.from_diffusers(scheduler, mu)
    size = len(coordinates.betas)
    if getattr(scheduler, "sigmas", None) is None:
        times = getattr(scheduler, "numbers", scheduler.timesteps)
        return check_timesteps([int(t) for t in times if t >= 0], size)  # DDIM's may end in −1
    levels, table = _levels(scheduler), NoiseSchedule(coordinates.betas).finite_sigmas
    if coordinates.kind == "flow":
        table = table / (1 + table)
    else:
        levels, table = np.log(levels), np.log(table)
    return check_timesteps(np.abs(table - levels[:, None]).argmin(1), size)


def check_laid(scheduler: Any, grid: Sequence[Any], mu: float | None = None) -> None:
    """Raises WrongUse unless a scheduler holds the levels that the grid means, each to 1e-3."""
    meant, levels = _meant(scheduler, grid, mu), _levels(scheduler)
    same = len(meant) == len(levels) and np.allclose(levels, meant, rtol=1e-3, atol=1e-6)
    if not same:
        shown = ", ".join(f"{level:.4g}" for level in levels[:6])
        raise WrongUse(
            f"scheduler is {type(scheduler).__name__}, which holds the levels {shown}, … and not "
            "those of the grid; build it by asddim_lib.schedulers.place.prepared"
        )


def _given(scheduler: Any, grid: Sequence[Any]) -> Any:
    """A grid as a scheduler's `set_timesteps` takes it: UniPC multiplies, and so needs an array."""
    coordinates = Levels.from_diffusers(scheduler, mu=1.0)
    if coordinates.kind == "flow":
        size = len(coordinates.betas)
        if _numbered(grid):
            return (np.array(check_timesteps(grid, size)) + 1) / size
        check_sigmas("grid", grid)
        return np.array([float(sigma) for sigma in grid])
    if takes(scheduler) == "timesteps" or not _numbered(grid):
        return list(grid)
    numbers = np.asarray(grid, int)
    levels = NoiseSchedule(coordinates.betas).finite_sigmas[numbers].tolist()
    return levels if coordinates.kind == "edm" else [*levels, 0.0]


def _numbered(grid: Sequence[Any]) -> bool:
    """Whether a grid's entries are numbers of levels, and not sigmas."""
    return all(isinstance(entry, (int, np.integer)) for entry in grid)


def _meant(scheduler: Any, grid: Sequence[Any], mu: float | None) -> np.ndarray:
    """The levels that a scheduler should hold for a grid, without the end."""
    config = with_fixed_shift(completed(scheduler), mu)
    coordinates = Levels.from_diffusers(config)
    if coordinates.kind == "flow":
        return flow_shift(np.asarray(_given(scheduler, grid), np.float64), config)
    if coordinates.kind == "edm":
        return np.asarray(_given(scheduler, grid), np.float64)
    return NoiseSchedule(coordinates.betas).finite_sigmas[np.asarray(grid, int)]


def _levels(scheduler: Any) -> np.ndarray:
    """The levels that a scheduler holds, without the end; Heun's second stages are left out."""
    if getattr(scheduler, "sigmas", None) is not None and len(scheduler.sigmas) > 1:
        levels = scheduler.sigmas.double().cpu().numpy()[:-1]
        if levels[-1] == 0:  # it was handed the end as well, and has added one of its own
            levels = levels[:-1]
        return levels[::2] if scheduler.order == 2 and len(levels) > 1 else levels
    schedule = noise_schedule(scheduler)  # of a VP scheduler without sigmas
    return schedule.finite_sigmas[scheduler.timesteps.cpu().numpy().astype(int)]
