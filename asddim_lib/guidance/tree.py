"""Some rows of what a network is given, and its output with other predictions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Arguments that have an entry for each token, and none for each picture.
SHARED = ("image_rotary_emb", "img_ids", "txt_ids", "freqs_cis")


def selected(value: Any, total: int, rows: Tensor, name: str = "") -> Any:
    """An argument of a network for some of its `total` rows: tensors, and lists of one for each.

    AnimateDiff's `encoder_hidden_states` have an entry for each frame of each row.
    """
    if name in SHARED:
        return value
    if isinstance(value, Tensor):
        frames = value.ndim > 0 and len(value) % total == 0 and name == "encoder_hidden_states"
        if frames:
            return value.unflatten(0, (total, -1))[rows.to(value.device)].flatten(0, 1)
        whole = value.ndim == 0 or len(value) != total
        return value if whole else value[rows.to(value.device)]
    if isinstance(value, dict):
        return {key: selected(part, total, rows, key) for key, part in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    parts = [selected(part, total, rows) for part in value]
    each = len(value) == total and all(isinstance(part, Tensor) for part in value)
    if each and all(new is old for new, old in zip(parts, value, strict=True)):  # Z-Image
        parts = [value[row] for row in rows.tolist()]
    return type(value)(parts)


def prediction(output: Any) -> Tensor:
    """The network's prediction, a list of pictures as one tensor."""
    first = output[0] if isinstance(output, tuple) else output.sample
    return torch.stack(first) if isinstance(first, list) else first


def replaced(output: Any, predicted: Tensor) -> Any:
    """A network's output with another prediction, of as many rows as there are."""
    first = output[0] if isinstance(output, tuple) else output.sample
    new = list(predicted.unbind()) if isinstance(first, list) else predicted
    if isinstance(output, tuple):
        return (new, *output[1:])
    return type(output)(**{**output, "sample": new})
