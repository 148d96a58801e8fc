"""The solvers by name: each one's scheduler, and the order of its error."""

from __future__ import annotations

from typing import Any

from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

from asddim_lib.schedulers.asddim import ASDDIMScheduler
from asddim_lib.schedulers.unipc import UniPCGridScheduler

#: Euler's method is DDIM's in other variables, and the one that flow matching has.
SOLVERS: dict[str, tuple[Any, int]] = {
    "ddim": (ASDDIMScheduler, 1),
    "dpm++": (DPMSolverMultistepScheduler, 2),
    "unipc": (UniPCGridScheduler, 2),
    "euler": (EulerDiscreteScheduler, 1),
}
