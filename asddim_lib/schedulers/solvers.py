"""The solvers by name: each one's scheduler, and the order of its error."""

from __future__ import annotations

from typing import Any

from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

from asddim_lib.configs import is_flow
from asddim_lib.errors import check
from asddim_lib.schedulers.ddim import ASDDIMScheduler
from asddim_lib.schedulers.flow import ASFlowScheduler
from asddim_lib.schedulers.multistep import DPMSolverGridScheduler, UniPCGridScheduler

#: Of variance-preserving models. Euler's method equals DDIM in other variables. DPM-Solver++ is
#: diffusers' class, which takes any grid there; `place.with_grid` gives ours, which saves it.
SOLVERS: dict[str, tuple[Any, int]] = {
    "ddim": (ASDDIMScheduler, 1),
    "dpm++": (DPMSolverMultistepScheduler, 2),
    "unipc": (UniPCGridScheduler, 2),
    "euler": (EulerDiscreteScheduler, 1),
}
#: Of flow-matching models, those that take any grid. diffusers' DPM-Solver++ takes none there.
FLOW_SOLVERS: dict[str, tuple[Any, int]] = {
    "euler": (ASFlowScheduler, 1),
    "unipc": (UniPCGridScheduler, 2),
    "dpm++": (DPMSolverGridScheduler, 2),
}


def solver_of(name: str, scheduler: Any) -> tuple[Any, int]:
    """The scheduler class of a solver, and its order, for the model of a scheduler or its config.

    Raises WrongUse for a solver that such a model does not have.
    """
    known = FLOW_SOLVERS if is_flow(scheduler) else SOLVERS
    kind = "flow-matching" if known is FLOW_SOLVERS else "variance-preserving"
    check(name in known, "solver", name, f"for a {kind} model use some of {', '.join(known)}")
    return known[name]


def own_scheduler(scheduler: Any) -> Any:
    """This library's first-order scheduler class for the same kind of model."""
    return ASFlowScheduler if is_flow(scheduler) else ASDDIMScheduler
