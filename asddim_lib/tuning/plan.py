"""How much a tuning measures, and what that costs."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from asddim_lib.errors import check
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.goals import Embedding, Goal, even
from asddim_lib.tuning.trials import Meter, Shelf


@dataclass(frozen=True)
class Plan:
    """How much a tuning measures.

    `profile_prompts` are measured over `profile_steps`, by so many `sweeps` of derivatives: with 0,
    only the error that a step makes is known, and not what of it arrives. `path_prompts` are
    recorded over `path_steps` for the peers that are searched on a path. `trials` grids are tried
    at most, each on half of the prompts; with 0, a density is laid and verified. Pictures are
    compared with those of `reference_steps`, or twice as many as the grid's where that is more.
    `peers` are names of `METHODS`, by default `PEERS`. The report shows `shown` prompts.

    Prompts are worth more than points of the path: a sweep sees an error along one random
    direction, and the density of a single one can be far off.
    """

    profile_prompts: int = 8
    profile_steps: int = 16
    sweeps: int = 1
    path_prompts: int = 8
    path_steps: int = 60
    trials: int = 30
    reference_steps: int = 64
    peers: tuple[str, ...] | None = None
    shown: int = 3

    def measuring_cost(self, rows: int, goal: Goal) -> int:
        """The network evaluations of profile and path, at so many for one step of one prompt."""
        points = self.profile_steps + 1
        looks = points if self.sweeps and isinstance(goal, Embedding) else 0
        profile = (points * (1 + 3 * self.sweeps) + looks) * self.profile_prompts
        return rows * (profile + (self.path_steps + 1) * self.path_prompts)

    @property
    def measured_prompts(self) -> int:
        """How many prompts the grids depend on before any is tried."""
        return max(self.profile_prompts, self.path_prompts)

    def kept_apart(self, count: int) -> int:
        """How many of the prompts serve the choice; the others serve the verdict."""
        return max(self.measured_prompts, count // 2 if self.trials else 0)

    def needed(self, least: int) -> int:
        """How many prompts leave at least so many for the verdict."""
        return max(self.measured_prompts + least, 2 * least - 1 if self.trials else 0)


#: With 9 prompts and up to 8 steps it costs at most ten guided pictures of 50 steps: a density is
#: laid, and verified against few peers.
QUICK = Plan(
    profile_prompts=2,
    profile_steps=8,
    path_prompts=0,
    trials=0,
    reference_steps=16,
    peers=("trailing", "beta"),
    shown=1,
)


@dataclass(frozen=True)
class Limits:
    """What a tuning may cost: network evaluations, or minutes, or neither.

    Raises WrongUse for both, and unless they are positive numbers.
    """

    budget: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        both = self.budget is not None and self.minutes is not None
        check(not both, "budget and minutes", f"{self.budget} and {self.minutes}", "give one")
        whole = self.budget is None or (isinstance(self.budget, int) and self.budget > 0)
        check(whole, "budget", self.budget, "give a positive number of network evaluations")
        time_given = self.minutes is None or (math.isfinite(self.minutes) and self.minutes > 0)
        check(time_given, "minutes", self.minutes, "give a positive number")

    def check(self, evaluations: int, least: int) -> None:
        """Raises WrongUse unless a budget of evaluations suffices."""
        remedy = f"give at least {least} evaluations, or fewer prompts"
        if self.minutes is None:
            check(evaluations >= least, "budget", evaluations, remedy)
        else:
            enough = self.minutes * least / max(1, evaluations)
            remedy = f"give at least {enough:.2g} for {least} evaluations, or fewer prompts"
            given = f"{self.minutes:g}, time for {evaluations} evaluations here"
            check(evaluations >= least, "minutes", given, remedy)


def evaluations_in(
    minutes: float, run: Run, goal: Goal, steps: int, shelf: Shelf, meter: Meter
) -> int:
    """How many network evaluations fit into so many minutes here.

    A batch of pictures of so many steps is timed once, after one of a single step. The number stays
    on the shelf, so that a run that goes on has the same budget.
    """
    part = run.part(next(run.batches()))
    meter.doing = "timing a step"
    meter.spend((1 + steps) * part.evaluations_per_step)

    def timed() -> dict[str, torch.Tensor]:
        goal.look(part, even(part, 1))
        begun = time.perf_counter()
        goal.look(part, even(part, steps))
        each = (time.perf_counter() - begun) / (steps * part.evaluations_per_step)
        return {"evaluations": torch.tensor(int(60 * minutes / each))}

    aim = goal.identity if shelf.folder else ""
    return int(shelf.kept(timed, part.inputs, aim, "minutes", minutes, steps)["evaluations"])
