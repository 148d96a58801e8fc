"""Decoupled time in a tuning: which other time the network is told, and what that gains.

The grid comes first. What is told is one number, `look_ahead` (`schedulers.told`), so that its gain
is measured apart from the grid's: against the very grid that is handed out without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asddim_lib.errors import check
from asddim_lib.tuning.trials import Trials
from asddim_lib.tuning.verify import Acceptance, accept, confirm

#: The first change of the share that is tried; the last is at least a quarter of it.
FIRST = 0.1
#: How many shares are tried at most.
MOST = 8
#: What the grid is called that tells each step's own time.
PLAIN = "its own times"


def check_told(scheduler: Any, trials: int) -> None:
    """Raises WrongUse for a scheduler without `look_ahead`, and for a plan without trials."""
    kind, known = type(scheduler).__name__, "look_ahead" in scheduler.config
    check(known, "look_ahead", f"asked of {kind}", "use solver ddim, euler or unipc")
    check(trials > 0, "look_ahead", "without trials", "it is searched for: leave quick out")


def best_share(trials: Trials, grid: list[int]) -> float:
    """The share of a step, −1 to 1, that a grid's pictures are best with; 0 if none is better.

    A share is moved while that helps, and the move halves where it does not. At most `MOST` shares
    are tried.
    """
    losses: dict[float, float] = {}

    def loss(share: float) -> float:
        if share not in losses:
            drawn = trials.telling(share) if share else trials
            losses[share] = float(drawn(grid).mean())
        return losses[share]

    best, move = 0.0, FIRST
    while move >= FIRST / 4:
        near = [round(best + sign * move, 6) for sign in (1, -1)]
        for share in (one for one in near if abs(one) <= 1):
            if share not in losses and len(losses) > MOST:  # the share 0 is no trial
                return best
            if loss(share) < loss(best):
                best = share
                break
        else:
            move /= 2
    return best


def verified(
    held: Trials, grid: list[int], share: float, rivals: Mapping[str, list[int]], check: bool
) -> Acceptance:
    """The verdict on a grid that tells other times, against itself without them and all rivals."""
    told = held.telling(share)
    others = {PLAIN: grid, **{name: laid for name, laid in rivals.items() if laid != grid}}
    losses = {name: held(laid) for name, laid in others.items()}
    found = accept(told(grid), losses, held.goal.test)
    if not check:
        return found
    return confirm(found, told.checked(grid), held.checked(others[found.best]))
