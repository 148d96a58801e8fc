"""F-scheduler: a grid that stops before all noise is gone (Li and Bai 2025).

The decoder of a latent model bears a little noise, so the last steps are saved. Its timesteps are
even in t^(1/p₁) from the first to the one of σ_stop, a level that Karras' ramp passes (Eqs 10–11).
The levels below σ_stop take no step.

The grids of the table let the last of K steps begin at σ_stop and lead to the scheduler's own end,
as the authors' scheduler does where it is told to make no use of the decoder. `stopping` gives the
K timesteps whose last step ends at σ_stop; draw them with `stopped`. The
paper's changes to the network (Free-U) and its analytical first step are no part of a grid.

A scheduler whose last step stops above clean data, at a level that is given.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch

from asddim_lib.errors import check
from asddim_lib.grids.rules import Rule, karras
from asddim_lib.levels import Levels
from asddim_lib.paper import distinct
from asddim_lib.schedulers.place import intercepted

#: p₁ of Eq 10, in all of the authors' programs.
TIME_POWER = 1.2


class Stop(NamedTuple):
    """σ_stop as the paper gives it: the ramp's power p₂, and how far along the ramp it lies.

    The ramp goes from σ_max to σ_min in `of` (M) even steps of σ^(1/p₂), of which `after` (stop)
    are made.
    """

    power: float
    after: int
    of: int

    def sigma(self, high: float, low: float) -> float:
        """σ_stop between the largest σ and the smallest (Eq 11)."""
        inside = 0 < self.after <= self.of
        check(inside, "after", self.after, f"give 1 to {self.of}, the steps of the ramp")
        return float(karras(high, low, self.of + 1, self.power)[self.after])


#: The authors' settings: for Stable Diffusion 1.5 at 512 × 512 up to 6 steps, and at 8; and for
#: Stable Diffusion XL at 1024 × 1024 (github.com/TheLovesOfLadyPurple/F-scheduler, txt2img.py and
#: customed_unipc_scheduler.py).
FEW, EIGHT, XL = Stop(5.0, 6, 7), Stop(7.0, 8, 11), Stop(12.0, 10, 11)


def stopping(levels: Levels, steps: int, stop: Stop | None = None) -> tuple[list[int], float]:
    """K timesteps, and σ_stop where the last of the K steps ends (Eqs 10–11).

    `stop` is by default the authors' for that number of steps at 512 × 512. Raises WrongUse where
    fewer than K timesteps lie above σ_stop.
    """
    sigma, nodes = _ramp(levels, steps + 1, stop or _default(steps))
    grid = distinct(nodes[:-1])
    remedy = "fewer timesteps lie above the stop: give fewer steps"
    check(grid[-1] > nodes[-1], "num_inference_steps", steps, remedy)
    return grid, sigma


def _ramp(levels: Levels, count: int, stop: Stop) -> tuple[float, np.ndarray]:
    """σ_stop, and `count` real timesteps from T − 1 to its own, even in t^(1/p₁) (Eq 10)."""
    sigmas = levels.finite_sigmas
    sigma = stop.sigma(float(sigmas[-1]), float(sigmas[0]))
    last = float(levels.timesteps_at(np.array(sigma)))
    return sigma, karras(len(levels) - 1.0, last, count, TIME_POWER)


def _default(steps: int) -> Stop:
    return FEW if steps <= 6 else EIGHT


def _rule(stop: Stop | None = None) -> Rule:
    def rule(levels: Levels, steps: int) -> list[int]:
        return distinct(_ramp(levels, steps, stop or _default(steps))[1])

    return rule


#: Methods of the table: summary and grid.
STOPPING: dict[str, tuple[str, Rule]] = {
    "f-scheduler": (
        "even in t^(1/1.2) down to a level above 0, as for SD 1.5 (Li and Bai 2025)",
        _rule(),
    ),
    "f-scheduler-xl": (
        "even in t^(1/1.2) down to a level above 0, as for SDXL (Li and Bai 2025)",
        _rule(XL),
    ),
}


def stopped(scheduler: Any, sigma: float) -> Any:
    """A copy of a scheduler whose last step leads to σ, noise over signal, and no further.

    Its samples end with that noise in them, in the scale that the model has there: a decoder is
    left to take it for picture. Lay a grid in it as in any other (`set_grid`, or `Run` with
    `scheduler=`). It cannot be saved. Raises WrongUse for a σ that is not positive and finite; when
    a grid is laid, for one whose last node does not lie above σ.
    """
    positive = bool(0 < sigma < float("inf"))
    check(positive, "sigma", sigma, "give a positive number: where the last step is to end")
    kind = type(scheduler)
    flow = Levels.from_diffusers(scheduler, 1.0).kind == "flow"
    level = sigma / (1 + sigma) if flow else sigma

    @functools.wraps(kind.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.set_timesteps(self, *args, **kwargs)
        if getattr(self, "sigmas", None) is not None:
            _check_above(float(self.sigmas[-2]), level)
            self.sigmas[-1] = level
        else:
            last = float(self.alphas_cumprod[int(self.timesteps[-1])])
            _check_above(((1 - last) / last) ** 0.5, level)

    how = f"stopped at {sigma:g}; save it, or give it a grid, before it is stopped"
    changed = intercepted(scheduler, how, set_timesteps=set_timesteps)
    changed.stops_at = float(sigma)  # what a fingerprint knows it by
    if getattr(scheduler, "final_alpha_cumprod", None) is not None:  # DDIM's own end
        changed.final_alpha_cumprod = torch.tensor(1 / (1 + sigma**2))
    return changed


def _check_above(node: float, level: float) -> None:
    remedy = "the last step begins below it: give a grid that ends higher"
    check(node > level, "sigma", level, f"{remedy} than {node:.4g}")
