"""A scheduler's config, as the scheduler's own class reads it."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from asddim_lib.errors import check

#: What another class's config says of the model itself: CogVideoX's levels.
INHERITED = ("snr_shift_scale",)


def completed(scheduler: Any) -> dict[str, Any]:
    """A scheduler's config as its own class reads it, and with the shift that is in force.

    What it leaves out has the class's default: Heun's own betas differ from DDIM's, and only DDIM
    clips. What an earlier class has left in it, which diffusers' `from_config` keeps, counts for
    nothing, but for `INHERITED`. The config of a class that is not known stays as it is. Raises
    WrongUse for what is no config.
    """
    config = getattr(scheduler, "config", scheduler)
    kind, remedy = type(scheduler).__name__, "give a diffusers scheduler or its config"
    check(isinstance(config, Mapping), "scheduler", kind, remedy)
    values = {key: value for key, value in config.items() if key != "_use_default_values"}
    source = _class_of(scheduler, config)
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
    """`completed`, and what an earlier class has left that `kind` takes: `from_config` restores it.

    So do diffusers' own classes. What the config's own class takes goes before it.
    """
    left = {key: value for key, value in config.items() if key in _settings(kind)}
    return {**left, **completed(config)}


def _class_of(scheduler: Any, config: Mapping[str, Any]) -> Any:
    """The class that a scheduler has, or its config says; None where that is not known.

    The config of a scheduler that comes from no file does not name it. It holds all settings of
    its class, and says which of them are defaults. A dict of the user's own says what it says.
    """
    import diffusers
    from diffusers.configuration_utils import FrozenDict

    if isinstance(scheduler, diffusers.SchedulerMixin):
        return type(scheduler)
    if "_class_name" in config:
        name = str(config["_class_name"])
        homes = (diffusers, importlib.import_module("asddim_lib"))
        found = (getattr(home, name, None) for home in homes)
        return next((one for one in found if isinstance(one, type)), None)
    if not isinstance(config, FrozenDict) or "_use_default_values" not in config:
        return None
    plain, every = set(config["_use_default_values"]), _below(diffusers.SchedulerMixin)
    right = [one for one in every if plain <= set(_settings(one)) <= set(config)]
    return max(right, key=lambda one: len(_settings(one)), default=None)


def _below(kind: Any) -> list[Any]:
    return [one for child in kind.__subclasses__() for one in (child, *_below(child))]


@functools.lru_cache(maxsize=256)
def _settings(kind: type) -> Mapping[str, Any]:
    """The settings that a class and those above it take, and their defaults."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        own = inspect.signature(base).parameters if "__init__" in vars(base) else {}
        for name, parameter in own.items():
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(name, parameter.default)
    return MappingProxyType(found)
