"""What the config of a diffusers scheduler says, with the defaults of the class that reads it."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from asddim_lib.errors import WrongUse, check

#: Settings of flow schedulers whose levels are not known here.
FOREIGN_FLOW = ("n_grid", "stages", "scale_factors", "eta")
#: Settings that every EDM scheduler has, and no other.
EDM = ("sigma_min", "sigma_max", "sigma_data", "sigma_schedule")
#: Settings with which a diffusers scheduler changes a grid, and the value that leaves it alone.
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
#: Settings of an earlier class that describe the model itself: CogVideoX's levels.
INHERITED = ("snr_shift_scale",)


def completed(scheduler: Any) -> dict[str, Any]:
    """A scheduler's config as its class reads it, with the current shift.

    Missing keys get the class's defaults: Heun's betas differ from DDIM's, and only DDIM clips.
    Keys left by an earlier class, which diffusers' `from_config` keeps, are dropped, except
    `INHERITED`. The config of an unknown class is returned unchanged. Raises WrongUse for what is
    no config.
    """
    config = getattr(scheduler, "config", scheduler)
    kind, remedy = type(scheduler).__name__, "give a diffusers scheduler or its config"
    check(isinstance(config, Mapping), "scheduler", kind, remedy)
    values = {key: value for key, value in config.items() if key != "_use_default_values"}
    source = class_of(scheduler)
    if source is None:
        return values
    known = _settings(source)
    values = {k: v for k, v in values.items() if k in (*known, *INHERITED) or k[0] == "_"}
    for key, default in known.items():
        if default is not inspect.Parameter.empty:
            values.setdefault(key, default)
    if "shift" in values:  # `set_shift` may have moved it
        values["shift"] = getattr(scheduler, "shift", values["shift"])
    return values


def for_class(kind: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """`completed`, with keys of an earlier class that `kind` takes, as in diffusers' `from_config`.

    Where both state a key, the config's class goes first.
    """
    left = {key: value for key, value in config.items() if key in _settings(kind)}
    return {**left, **completed(config)}


def class_of(scheduler: Any) -> Any:
    """The class of a scheduler or its config; None where that is not known.

    The config of a scheduler that was not read from a file does not name its class, but has every
    setting of it and lists those that are defaults. A plain dict has no class.
    """
    import diffusers
    from diffusers.configuration_utils import FrozenDict

    config = getattr(scheduler, "config", scheduler)
    if isinstance(scheduler, diffusers.SchedulerMixin):
        return type(scheduler)
    if "_class_name" in config:
        name = str(config["_class_name"])
        homes = (diffusers, importlib.import_module("asddim_lib"))
        classes = (getattr(home, name, None) for home in homes)
        return next((one for one in classes if isinstance(one, type)), None)
    if not isinstance(config, FrozenDict) or "_use_default_values" not in config:
        return None
    plain, every = set(config["_use_default_values"]), _below(diffusers.SchedulerMixin)
    fitting = [one for one in every if plain <= set(_settings(one)) <= set(config)]
    return max(fitting, key=lambda one: len(_settings(one)), default=None)


def _below(kind: Any) -> list[Any]:
    return [one for child in kind.__subclasses__() for one in (child, *_below(child))]


@functools.lru_cache(maxsize=256)
def _settings(kind: type) -> Mapping[str, Any]:
    """The settings that a class and those above it take, and their defaults."""
    settings: dict[str, Any] = {}
    for base in kind.__mro__:
        parameters = inspect.signature(base).parameters if "__init__" in vars(base) else {}
        for name, parameter in parameters.items():
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                settings.setdefault(name, parameter.default)
    return MappingProxyType(settings)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler, or its config, is a flow-matching one."""
    config = completed(scheduler)
    return bool(config.get("use_flow_sigmas")) or ("shift" in config and "beta_start" not in config)


def kind_of(scheduler: Any) -> str:
    """The kind of model that a scheduler, or its config, is for: `vp`, `flow` or `edm`.

    Raises WrongUse for a scheduler whose noise levels are not known here.
    """
    config = completed(scheduler)
    continuous = config.get("timestep_type") == "continuous"
    check(not continuous, "timestep_type", "continuous", "use a scheduler with discrete steps")
    flow = is_flow(config)
    if flow and not set(FOREIGN_FLOW) & set(config):
        return "flow"
    if not flow and (config.get("trained_betas") is not None or "beta_schedule" in config):
        return "vp"
    if set(EDM) <= set(config):
        return "edm"
    settings = ", ".join(sorted(map(str, config))) or "nothing"
    name = config.get("_class_name", f"a config of {settings}, without beta_schedule")
    raise WrongUse(
        f"scheduler is {name}, whose noise levels are not known here; give the whole config of "
        "a DDIM, DPM-Solver, UniPC, Euler, FlowMatchEuler or EDM scheduler"
    )


def with_fixed_shift(config: Mapping[str, Any], mu: float | None) -> dict[str, Any]:
    """A config with the static shift that `mu` gives; unchanged without `mu` or a dynamic shift.

    diffusers' `time_shift` with `mu` is the static shift e^mu ("exponential"), or mu ("linear").
    Raises WrongUse for a `mu` that gives no finite positive shift.
    """
    if mu is None or not config.get("use_dynamic_shifting"):
        return dict(config)
    linear = config.get("time_shift_type", "exponential") == "linear"
    low, high = (0.0, 1e6) if linear else (-14.0, 14.0)
    usable = is_real(mu) and low <= mu <= high and mu != low
    check(usable, "mu", mu, f"give a number between {low:g} and {high:g}, as the pipeline does")
    name = "flow_shift" if config.get("use_flow_sigmas") else "shift"
    shift = float(mu) if linear else math.exp(mu)
    return {**config, "use_dynamic_shifting": False, name: shift}


def is_real(value: Any) -> bool:
    """Whether a value is a number, and no truth value."""
    real = (int, float, np.integer, np.floating)
    return isinstance(value, real) and not isinstance(value, bool)
