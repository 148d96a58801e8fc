"""A grid that a scheduler of ours holds in its config: what it may be, and when it is laid.

It is saved with the scheduler, and so with its pipeline. A variance-preserving model's is a list of
timesteps, a flow-matching one's a list of sigmas as the network sees them, after the shift.
"""

from __future__ import annotations

import logging
from typing import Any

from asddim_lib.errors import WrongUse, check
from asddim_lib.grids.flow import check_sigmas, of_a_pipeline
from asddim_lib.grids.grid import check_timesteps

log = logging.getLogger(__name__)
#: Said where a call's own levels are laid.
OVERRULED = (
    "the call gives %s levels of its own, which go before the scheduler's grid or allocation; "
    "leave them out, or lay the grid by asddim_lib.schedulers.place.hold"
)


def kept(grid: Any, scheduler: Any) -> list[Any]:
    """A given grid (a list, array or tensor) as the scheduler's config and its file hold it.

    With `use_flow_sigmas` its entries are sigmas, as floats, and else timesteps, as whole numbers.
    Raises WrongUse unless they fall strictly, sigmas within (0, 1], timesteps within 0 … T − 1.
    """
    if scheduler.config.get("use_flow_sigmas"):
        check_sigmas("grid", grid)
        return [float(sigma) for sigma in grid]
    try:
        return check_timesteps(grid, len(scheduler.alphas_cumprod))
    except WrongUse as error:
        raise WrongUse("grid" + str(error).removeprefix("timesteps")) from None


def without_retired(config: Any, changes: dict[str, Any]) -> Any:
    """A saved config without the setting that version 0.2 had and nothing gained by.

    Raises WrongUse where it, or `changes`, sets `look_ahead`: that would draw other pictures.
    """
    ahead = changes.get("look_ahead", config.get("look_ahead", 0))
    remedy = "it gained nothing and is gone: set it to 0, which draws other pictures"
    check(ahead == 0, "look_ahead", ahead, remedy)
    changes.pop("look_ahead", None)
    if "look_ahead" not in config:
        return config
    return type(config)({key: value for key, value in config.items() if key != "look_ahead"})


def check_alone(allocation: str) -> None:
    """Raises WrongUse for an allocation beside a held grid: each of them says where steps go."""
    remedy = "this scheduler holds a grid: give grid=None, or no allocation"
    check(allocation == "uniform", "allocation", allocation, remedy)


def check_steps(grid: list[Any], steps: int | None) -> None:
    """Raises WrongUse unless a held grid has this number of steps."""
    remedy = f"this scheduler holds a grid of {len(grid)} steps: give {len(grid)}"
    check(steps == len(grid), "num_inference_steps", steps, remedy)


def asked(scheduler: Any, steps: int | None, sigmas: Any, timesteps: Any) -> list[Any] | None:
    """The held grid of a solver, where a call of `set_timesteps` asks for it.

    None where the solver holds none, and where the call's own timesteps or sigmas go before it.
    Evenly spaced sigmas and linear-quadratic levels do not: they are what a flow model's pipeline
    gives by itself. Raises WrongUse for another number of steps than the grid has.
    """
    grid = scheduler.config["grid"]
    plain = sigmas is None and timesteps is None
    if not plain and scheduler.config["use_flow_sigmas"]:
        plain = of_a_pipeline(sigmas, timesteps, scheduler.config["num_train_timesteps"])
    if grid is not None and not plain:
        log.warning(OVERRULED, type(scheduler).__name__)
    if grid is None or not plain:
        return None
    given = timesteps if sigmas is None else sigmas
    check_steps(grid, steps if given is None else len(given))
    return list(grid)


def rests(scheduler: Any, timestep: Any) -> bool:
    """Whether a solver's next step has no length, as one from timestep 0 to σ_min has.

    Such a step changes nothing. diffusers' would divide 0 by 0 there.
    """
    if scheduler.num_inference_steps is None:
        return False
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    here = int(scheduler.step_index)
    return bool(scheduler.sigmas[here] == scheduler.sigmas[here + 1])
