"""A short name of all that a run's result depends on: equal only if all of it is equal."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from asddim_lib.core.coordinates import completed
from asddim_lib.errors import WrongUse
from asddim_lib.models.load import Pipeline

PLAIN = (bool, int, float, str, bytes, type(None))


def of_pipeline(pipe: Pipeline) -> str:
    """The hash of a pipeline: class, settings, scheduler, every module, its weights and adapters.

    Switches that live beside the weights count too: FreeU, attention processors, slicing, LoRA
    scales. A setting of no known kind enters by its class alone.
    """
    digest = hashlib.sha256()
    _add(digest, type(pipe).__name__, _lasting(pipe))
    for name, part in sorted(pipe.components.items()):
        digest.update(name.encode())
        if isinstance(part, nn.Module):
            _add_module(digest, part)
        elif hasattr(part, "set_timesteps"):
            _add(digest, type(part).__name__, completed(part))
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
        _add(digest, value)


def _settings(thing: Any) -> dict[str, Any]:
    """What an object says of itself in plain values: its config, and its attributes."""
    found = getattr(thing, "__dict__", {})
    found = {k: v for k, v in found.items() if k[:2] != "__" and "hook" not in k}
    for name in ("_parameters", "_buffers", "_modules", "_internal_dict", "training", "components"):
        found.pop(name, None)
    settings = {key: _plain(value) for key, value in found.items() if _is_plain(value)}
    config = getattr(thing, "config", None)
    if isinstance(config, Mapping):
        settings["config"] = _plain({k: v for k, v in config.items() if k[:1] != "_"})
    elif config is not None and hasattr(config, "to_dict"):
        settings["config"] = _plain(config.to_dict())
    return settings


def _lasting(thing: Any) -> dict[str, Any]:
    """Its settings but for those that begin with _: a call's own come and go."""
    return {k: v for k, v in _settings(thing).items() if k[:1] != "_"}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return isinstance(value, (*PLAIN, torch.dtype))


def _plain(value: Any) -> Any:
    """The value, with what is of no known kind put by its class."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (set, frozenset)):  # it has no order, and each process another
        return sorted(repr(_plain(part)) for part in value)
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    known = (*PLAIN, torch.dtype, Tensor, np.ndarray, np.generic)
    return value if isinstance(value, known) else type(value).__name__


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
