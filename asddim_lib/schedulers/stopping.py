"""A scheduler whose last step stops above clean data, at a level that is given."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch

from asddim_lib.core.coordinates import Coordinates
from asddim_lib.errors import check
from asddim_lib.schedulers.laying import passing


def stopped(scheduler: Any, sigma: float) -> Any:
    """A copy of a scheduler whose last step leads to σ, noise over signal, and no further.

    Its samples end with that noise in them, in the scale that the model has there: a decoder is
    left to take it for picture. Lay a grid in it as in any other (`laying.lay`, or `Run` with
    `scheduler=`). It cannot be saved. Raises WrongUse for a σ that is not positive and finite; when
    a grid is laid, for one whose last node does not lie above σ.
    """
    right = bool(0 < sigma < float("inf"))
    check(right, "sigma", sigma, "give a positive number: where the last step is to end")
    kind, changed = type(scheduler), copy.copy(scheduler)
    changed.stops_at = float(sigma)  # what a fingerprint knows it by
    flow = Coordinates.of(scheduler, mu=0.0).kind == "flow"
    level = sigma / (1 + sigma) if flow else sigma

    @functools.wraps(kind.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.set_timesteps(self, *args, **kwargs)
        if getattr(self, "sigmas", None) is not None:
            _check_above(float(self.sigmas[-2]), level)
            self.sigmas[-1] = level
        else:
            nodes = getattr(self, "numbers", self.timesteps)  # ours may tell other times
            last = float(self.alphas_cumprod[int(nodes[-1])])
            _check_above(((1 - last) / last) ** 0.5, level)

    if getattr(scheduler, "final_alpha_cumprod", None) is not None:  # DDIM's own end
        changed.final_alpha_cumprod = torch.tensor(1 / (1 + sigma**2))
    remedy = "its end is not in its config: save the scheduler itself, and stop it after loading"
    changed.__class__ = passing(kind, set_timesteps, remedy)
    return changed


def _check_above(node: float, level: float) -> None:
    remedy = "the last step begins below it: give a grid that ends higher"
    check(node > level, "sigma", level, f"{remedy} than {node:.4g}")
