"""Training-free step allocation for diffusion samplers. The names here are the public face; each is loaded when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asddim_lib.calibration import calibrate as calibrate
    from asddim_lib.grids import sigmas as sigmas
    from asddim_lib.grids import timesteps as timesteps
    from asddim_lib.models import load_pipeline as load_pipeline
    from asddim_lib.scheduler import ASDDIMScheduler as ASDDIMScheduler
    from asddim_lib.sensitivity import SensitivityProfile as SensitivityProfile

__version__ = "0.1.0"
_HOMES = {
    "ASDDIMScheduler": "scheduler",
    "SensitivityProfile": "sensitivity",
    "calibrate": "calibration",
    "load_pipeline": "models",
    "sigmas": "grids",
    "timesteps": "grids",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'asddim_lib' has no attribute {name!r}")
    return getattr(importlib.import_module(f"asddim_lib.{_HOMES[name]}"), name)
