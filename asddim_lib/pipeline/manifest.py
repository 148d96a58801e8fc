"""A short name of all that a run's result depends on: equal only if all of it is equal."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from asddim_lib.errors import WrongUse
from asddim_lib.levels import completed
from asddim_lib.models.load import Pipeline

PLAIN = (bool, int, float, str, bytes, type(None))
#: Attributes that are no settings: the parts of a module, and what is hashed elsewhere here.
PARTS = ("_parameters", "_buffers", "_modules", "_internal_dict", "training", "components")
#: Names of attributes that a call fills, or that moving a module between devices leaves.
PASSING = re.compile(r"hook|feat_map|conv_(idx|num)|^(?!use|enable).*_caches?$|device_map|_old_for")
#: Where these hooks of diffusers have a module computed does not change what it computes.
PLACES = re.compile(r"offloading|parallel$")


def of_pipeline(pipe: Pipeline) -> str:
    """The hash of a pipeline: class, settings, scheduler, every module, its weights and adapters.

    Switches that live beside the weights count too: FreeU, attention processors, slicing, LoRA
    scales, diffusers' caches and its other hooks. A setting of no known kind enters by its class
    alone, a function by its name. PyTorch's own hooks do not count: libraries leave some when they
    draw. Where a module lies does not count either.
    """
    digest = hashlib.sha256()
    _add(digest, type(pipe).__name__, _lasting(pipe))
    for name, part in sorted(pipe.components.items()):
        digest.update(name.encode())
        if isinstance(part, nn.Module):
            _add_module(digest, part)
        elif hasattr(part, "set_timesteps"):
            _add(digest, type(part).__name__, scheduler_settings(part))
        elif hasattr(part, "get_state"):  # a modular pipeline's guider
            _add(digest, type(part).__name__, _lasting(part), part.get_state()["enabled"])
        elif hasattr(part, "backend_tokenizer"):
            words = json.loads(part.backend_tokenizer.to_str())
            rest = {k: v for k, v in words.items() if k not in ("truncation", "padding")}
            _add(digest, json.dumps(rest, sort_keys=True), part.model_max_length)
        elif hasattr(part, "to_dict"):
            _add(digest, type(part).__name__, _plain(part.to_dict()))
        else:
            _add(digest, type(part).__name__, _settings(part))
    for library in ("diffusers", "transformers", "torch", "asddim-lib"):
        digest.update(version(library).encode())
    return digest.hexdigest()[:16]


def scheduler_settings(scheduler: Any) -> dict[str, Any]:
    """A scheduler's config, and what was set beside it: a shift, and where `stopped` ends."""
    own = {name.strip("_"): vars(scheduler).get(name) for name in ("_shift", "stops_at")}
    return completed(scheduler) | {name: value for name, value in own.items() if value is not None}


def of_values(*values: Any) -> str:
    """The hash of prompts, seeds and options: text, numbers, tensors, arrays, pictures, nested.

    Raises WrongUse for a value of another kind, which has no content to compare.
    """
    digest = hashlib.sha256()
    _add(digest, *values)
    return digest.hexdigest()[:16]


def _add_module(digest: Any, module: nn.Module) -> None:
    for name, part in module.named_modules():
        _add(digest, name, type(part).__name__, _settings(part))
        processor = getattr(part, "processor", None)
        if processor is not None and not isinstance(processor, nn.Module):
            _add(digest, type(processor).__name__, _settings(processor))
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        _add(digest, _stored(module, key, value))


def _stored(module: nn.Module, key: str, value: Any) -> Any:
    """A weight, also where accelerate's offloading has left no more than its shape."""
    if not isinstance(value, Tensor) or value.device.type != "meta":
        return value
    name, _, own = key.rpartition(".")
    hook: Any = module.get_submodule(name)._hf_hook
    maps = [getattr(one, "weights_map", None) for one in getattr(hook, "hooks", [hook])]
    return next(one for one in maps if one is not None)[own]


def _settings(thing: Any) -> dict[str, Any]:
    """What an object says of itself: its config, its attributes, and diffusers' hooks on it."""
    found = {k: v for k, v in getattr(thing, "__dict__", {}).items() if k not in PARTS}
    settings = {
        key: _plain(value, tables=False)
        for key, value in found.items()
        if key[:2] != "__" and not PASSING.search(key) and not _said(thing, key, value)
    }
    config = getattr(thing, "config", None)
    if isinstance(config, Mapping):
        settings["config"] = _plain({k: v for k, v in config.items() if k[:1] != "_"})
    elif config is not None and hasattr(config, "to_dict"):
        settings["config"] = _plain(config.to_dict())
    hooks = getattr(found.get("_diffusers_hook"), "hooks", {})
    told = [[name, *_hook(one)] for name, one in hooks.items() if not _only_places(one)]
    return settings | ({"hooks": told} if told else {})


def _lasting(thing: Any) -> dict[str, Any]:
    """Its settings but for those that begin with _: a call's own come and go."""
    return {k: v for k, v in _settings(thing).items() if k[:1] != "_"}


def _said(thing: Any, name: str, value: Any) -> bool:
    """Whether an attribute says nothing new: a part that is hashed itself, or no switch at all."""
    if name in ("processor", "config", "to", "cuda") or name in getattr(thing, "components", ()):
        return not _is_plain(value)
    if name == "_cache_config":
        return value is None
    if isinstance(getattr(value, "config", None), Mapping):
        return not _unusual(value)
    while isinstance(value, functools.partial) and hasattr(value, "__wrapped__"):
        value = value.__wrapped__  # as accelerate and diffusers lay their hooks round a method
    return hasattr(value, "__func__") and value.__func__ is getattr(type(thing), name, None)


def _unusual(helper: Any) -> dict[str, Any]:
    """The settings of a pipeline's helper that are not its class's own, nor the pipeline's."""
    usual = {k: one.default for k, one in inspect.signature(type(helper)).parameters.items()}
    usual.pop("vae_scale_factor", None)
    return {k: _plain(v) for k, v in helper.config.items() if k in usual and v != usual[k]}


def _hook(hook: Any) -> list[Any]:
    """A diffusers hook's class and settings, without what it keeps of a drawing."""
    own = {k: v for k, v in vars(hook).items() if k[:1] != "_"}
    own = {k: v for k, v in own.items() if _is_plain(v) or is_dataclass(v) or callable(v)}
    return [type(hook).__name__, _plain(own)]


def _only_places(hook: Any) -> bool:
    return bool(PLACES.search(type(hook).__module__))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return isinstance(value, (*PLAIN, torch.dtype))


def _plain(value: Any, tables: bool = True) -> Any:
    """The value, with what is of no known kind put by its class, or a function by its name.

    So are tensors and arrays, unless `tables`: computed values differ between machines.
    """
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(part, tables) for key, part in value.items()}
    if isinstance(value, (set, frozenset)):  # it has no order, and each process another
        return sorted(repr(_plain(part, tables)) for part in value)
    if isinstance(value, (list, tuple)):
        return [_plain(part, tables) for part in value]
    if is_dataclass(value) and not isinstance(value, type):
        return [
            type(value).__name__,
            {f.name: _plain(getattr(value, f.name)) for f in fields(value)},
        ]
    if isinstance(getattr(value, "config", None), Mapping):
        return [type(value).__name__, _unusual(value)]
    known = (*PLAIN, torch.dtype, np.generic, *((Tensor, np.ndarray) if tables else ()))
    return (
        value if isinstance(value, known) else getattr(value, "__qualname__", type(value).__name__)
    )


def _add(digest: Any, *values: Any) -> None:
    for value in values:
        digest.update(type(value).__name__.encode() + b"(")
        if isinstance(value, Mapping):
            for key in sorted(map(str, value)):
                _add(digest, key, {str(k): v for k, v in value.items()}[key])
        elif isinstance(value, (list, tuple)):
            _add(digest, *value)
        elif isinstance(value, (set, frozenset)):
            _add(digest, *sorted(map(repr, value)))
        elif isinstance(value, float) and math.isnan(value):
            digest.update(b"nan")
        elif isinstance(value, (*PLAIN, torch.dtype, torch.device, range, np.generic)):
            digest.update(repr(value).encode())
        else:
            _add_content(digest, value)
        digest.update(b")")


def _add_content(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Image.Image):
        digest.update(f"{value.mode}{value.size}".encode() + value.tobytes())
    else:
        raise WrongUse(
            f"option is a {type(value).__name__}, whose content cannot be compared; "
            "give numbers, text, tensors or pictures, or leave the cache out"
        )
