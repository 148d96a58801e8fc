"""Training-free step allocation for diffusion samplers.

The names here are the public face. Each is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asddim_lib.calibration import calibrate as calibrate
    from asddim_lib.calibration import record as record
    from asddim_lib.evidence.profile import Profile as Profile
    from asddim_lib.grids.grid import sigmas as sigmas
    from asddim_lib.grids.grid import timesteps as timesteps
    from asddim_lib.guidance.plan import GuidancePlan as GuidancePlan
    from asddim_lib.models.load import load_pipeline as load_pipeline
    from asddim_lib.pipeline.run import Run as Run
    from asddim_lib.schedulers import ASDDIMInverseScheduler as ASDDIMInverseScheduler
    from asddim_lib.schedulers import ASDDIMScheduler as ASDDIMScheduler
    from asddim_lib.schedulers import ASFlowScheduler as ASFlowScheduler
    from asddim_lib.schedulers import DPMSolverGridScheduler as DPMSolverGridScheduler
    from asddim_lib.schedulers import UniPCGridScheduler as UniPCGridScheduler
    from asddim_lib.tuning.find import find_recipe as find_recipe
    from asddim_lib.tuning.recipe import Recipe as Recipe
    from asddim_lib.tuning.tune import tune as tune

__version__ = "0.3.0"
_HOMES = {
    "ASDDIMInverseScheduler": "asddim_lib.schedulers",
    "ASDDIMScheduler": "asddim_lib.schedulers",
    "ASFlowScheduler": "asddim_lib.schedulers",
    "DPMSolverGridScheduler": "asddim_lib.schedulers",
    "GuidancePlan": "asddim_lib.guidance.plan",
    "Profile": "asddim_lib.evidence.profile",
    "Recipe": "asddim_lib.tuning.recipe",
    "Run": "asddim_lib.pipeline.run",
    "UniPCGridScheduler": "asddim_lib.schedulers",
    "calibrate": "asddim_lib.calibration",
    "find_recipe": "asddim_lib.tuning.find",
    "load_pipeline": "asddim_lib.models.load",
    "record": "asddim_lib.calibration",
    "sigmas": "asddim_lib.grids.grid",
    "timesteps": "asddim_lib.grids.grid",
    "tune": "asddim_lib.tuning.tune",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "SchedulerMixin":  # diffusers looks for it here when it loads a saved pipeline
        return importlib.import_module("diffusers").SchedulerMixin
    if name not in _HOMES:
        raise AttributeError(f"module 'asddim_lib' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


for _name in ("scheduler", "unipc"):  # where version 0.1 saved the schedulers
    importlib.import_module(f"asddim_lib.{_name}")
