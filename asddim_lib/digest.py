"""The hash of a value's content: what a kept file or a run's identity is named by."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from asddim_lib.errors import WrongUse

PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, range, np.generic)


def of_values(*values: Any) -> str:
    """The hash of prompts, seeds and options: text, numbers, tensors, arrays, pictures, nested.

    Raises WrongUse for a value of another class, which has no content to compare.
    """
    digest = hashlib.sha256()
    _add(digest, *values)
    return digest.hexdigest()[:16]


def _add(digest: Any, *values: Any) -> None:
    for value in values:
        digest.update(type(value).__name__.encode() + b"(")
        if isinstance(value, Mapping):
            _add(digest, *(part for key in sorted(value, key=str) for part in (key, value[key])))
        elif isinstance(value, (list, tuple)):
            _add(digest, *value)
        elif isinstance(value, (set, frozenset)):
            _add(digest, *sorted(map(repr, value)))
        elif isinstance(value, float) and math.isnan(value):
            digest.update(b"nan")
        elif isinstance(value, PLAIN):
            digest.update(repr(value).encode())
        elif isinstance(value, Tensor):
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
        digest.update(b")")
