"""Pictures kept in files, a batch per file, each of which tells when it is damaged."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asddim_lib.cache import DamagedFile, load_tensors, save_tensors
from asddim_lib.errors import WrongUse, check
from asddim_lib.pipeline.run import Drawn

log = logging.getLogger(__name__)


def save(file: Path, drawn: Drawn, made_from: dict[str, Any] | None = None) -> None:
    """Keeps pictures, what they were `made_from` (JSON), and how many threads drew them.

    Of pictures under a guidance plan, also the rows that they took in all.
    """
    tensors = {"images": drawn.images, "latents": drawn.latents, "finite": drawn.finite}
    tensors["seconds"] = torch.tensor(drawn.seconds, dtype=torch.float64)
    tensors |= {"threads": torch.tensor(torch.get_num_threads())}
    tensors |= {"at_once": torch.tensor(drawn.at_once)}
    tensors |= {} if drawn.rows is None else {"rows": torch.tensor(drawn.rows)}
    save_tensors(file, tensors, json.dumps(made_from))


def load(file: Path) -> dict[str, Tensor]:
    """The tensors that `save` kept.

    Raises FileNotFoundError, and DamagedFile where the file does not hold what was written.
    """
    return load_tensors(file)[0]


def made_from(file: Path) -> dict[str, Any] | None:
    """What `save` was told that the pictures were made from. Raises as `load` does."""
    return json.loads(load_tensors(file)[1])


def whole(file: Path) -> bool:
    """Whether the file holds a batch without a fault. A damaged one is named in the log."""
    try:
        return bool(load(file)["finite"].all())
    except FileNotFoundError:
        return False
    except DamagedFile as error:
        log.warning("%s", error)
        return False


def load_latents(file: str) -> Tensor | None:
    """The noise (1 × c × h × w) in a file that `torch.save` wrote; None without a file.

    Raises WrongUse for a file that holds something else.
    """
    if not file:
        return None
    try:
        latents = torch.load(file, weights_only=True)
    except Exception as error:  # pickle's, zipfile's and the system's share no base
        reason = f"latents is {file!r}, which could not be read ({str(error).splitlines()[0]})"
        raise WrongUse(f"{reason}; give a file that torch.save wrote") from error
    right = isinstance(latents, Tensor) and latents.ndim == 4 and len(latents) == 1
    what = f"{file!r}, {getattr(latents, 'shape', type(latents))}"
    check(right, "latents", what, "give a tensor of 1 × c × h × w")
    return latents
