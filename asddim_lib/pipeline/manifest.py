"""The manifest of a run: a hash of each part that its pictures depend on.

It has classes, configs, switches, weights and options. Versions of libraries are recorded beside
results (`cache.versions`) and are no part of it: a long run survives an upgrade. So a config's
values count only where they differ from the class's defaults, since an upgrade may add a setting.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from asddim_lib.digest import PLAIN, of_values
from asddim_lib.models.load import Pipeline

#: Attributes that change what a module computes, and that neither config nor weights contain:
#: FreeU, slicing and tiling, chunked layers, a replaced method, adapters.
SWITCHES = (
    *("s1", "s2", "b1", "b2", "use_slicing", "use_tiling", "_chunk_size", "forward"),
    *("scaling", "active_adapters", "merged_adapters", "disable_adapters"),
)
#: diffusers' hooks that change where a module is computed, and not its result.
PLACES = ("diffusers.hooks.group_offloading", "diffusers.hooks.context_parallel")


def manifest(pipe: Pipeline) -> dict[str, str]:
    """A hash of each component of a pipeline, by its name, and of the pipeline's other settings.

    A function or an object without a config is known by its name alone. PyTorch's own hooks do not
    count, nor does the device.
    """
    helpers = {
        name: _settings(part)
        for name, part in vars(pipe).items()
        if name not in pipe.components and isinstance(getattr(part, "config", None), Mapping)
    }
    known = {"pipeline": of_values(type(pipe).__name__, _settings(pipe), helpers)}
    return known | {n: of_values(list(_content(part))) for n, part in pipe.components.items()}


def of_pipeline(pipe: Pipeline) -> str:
    """The hash of a pipeline's manifest."""
    return of_values(manifest(pipe))


def described(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a call as JSON values: plain ones, and the hash of any other."""
    plain = (bool, int, float, str, type(None))
    return {n: v if isinstance(v, plain) else of_values(_plain(v)) for n, v in options.items()}


def scheduler_settings(scheduler: Any) -> dict[str, Any]:
    """A scheduler's config, and what was set outside it: a shift, and where `stopped` ends."""
    outside = {name: vars(scheduler).get(name) for name in ("_shift", "stops_at")}
    return _settings(scheduler) | {n: value for n, value in outside.items() if value is not None}


def _content(part: Any) -> Iterator[Any]:
    """What a component contributes: its class, its settings, and a module's layers and weights."""
    yield type(part).__name__
    if isinstance(part, nn.Module):
        for name, layer in part.named_modules():
            yield [name, type(layer).__name__, _settings(layer), _switches(layer)]
        for key, value in sorted(part.state_dict().items()):
            yield [key, _stored(part, key, value)]
    elif hasattr(part, "set_timesteps"):
        yield scheduler_settings(part)
    elif hasattr(part, "backend_tokenizer"):
        words = json.loads(part.backend_tokenizer.to_str())
        rest = {k: v for k, v in words.items() if k not in ("truncation", "padding")}
        yield from (json.dumps(rest, sort_keys=True), part.model_max_length)
    elif hasattr(part, "get_state"):  # a modular pipeline's guider
        public = {name: value for name, value in vars(part).items() if name[:1] != "_"}
        yield from (_settings(part), _plain(public), part.get_state()["enabled"])
    else:
        yield _plain(part.to_dict()) if hasattr(part, "to_dict") else _settings(part)


def _settings(part: Any) -> dict[str, Any]:
    """The values of a config that differ from the class's defaults."""
    config: Any = getattr(part, "config", None)
    if hasattr(config, "to_diff_dict"):
        config = config.to_diff_dict()
        return _plain({k: v for k, v in config.items() if k != "transformers_version"})
    if not isinstance(config, Mapping):
        return {}
    usual = {name: one.default for name, one in inspect.signature(type(part)).parameters.items()}
    given = {k: _plain(v) for k, v in config.items() if k[:1] != "_"}
    return {k: v for k, v in given.items() if k not in usual or _differs(v, usual[k])}


def _differs(value: Any, usual: Any) -> bool:
    return of_values(_plain(value)) != of_values(_plain(usual))


def _switches(layer: nn.Module) -> dict[str, Any]:
    """What was switched on a layer: `SWITCHES`, its attention processor, and diffusers' hooks."""
    switched = {name: _unwrapped(layer, name) for name in SWITCHES}
    found = {n: v for n, v in switched.items() if v is not None and v is not False}
    processor = getattr(layer, "processor", None)
    if processor is not None and not isinstance(processor, nn.Module):
        found["processor"] = [type(processor).__name__, vars(processor)]
    hooks = getattr(vars(layer).get("_diffusers_hook"), "hooks", {})
    for name, hook in hooks.items():
        if type(hook).__module__ not in PLACES:
            public = {k: v for k, v in vars(hook).items() if k[:1] != "_" and not _stateful(v)}
            found[f"hook {name}"] = [type(hook).__name__, public]
    return _plain(found)


def _stateful(value: Any) -> bool:
    """Whether a hook's attribute is filled by drawing."""
    return not isinstance(value, PLAIN) and not is_dataclass(value) and not callable(value)


def _unwrapped(layer: nn.Module, name: str) -> Any:
    """An attribute of a layer; None for a method that nobody replaced."""
    value: Any = getattr(layer, name, None)
    while hasattr(value, "__wrapped__"):  # accelerate's and diffusers' wrappers
        value = value.__wrapped__
    method = getattr(value, "__func__", value)
    return None if method is getattr(type(layer), name, None) else value


def _stored(module: nn.Module, key: str, value: Any) -> Any:
    """A weight, also where accelerate's offloading has left no more than its shape."""
    if not isinstance(value, Tensor) or value.device.type != "meta":
        return value
    name, _, short = key.rpartition(".")
    hook: Any = module.get_submodule(name)._hf_hook
    maps = [getattr(one, "weights_map", None) for one in getattr(hook, "hooks", [hook])]
    return next(one for one in maps if one is not None)[short]


def _plain(value: Any) -> Any:
    """A value as content: an object without content becomes the name of its class or function."""
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, (set, frozenset)):  # each process has another order
        return sorted(repr(_plain(part)) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return [type(value).__name__, named]
    known = isinstance(value, (*PLAIN, Tensor, np.ndarray))
    return value if known else getattr(value, "__qualname__", type(value).__name__)
