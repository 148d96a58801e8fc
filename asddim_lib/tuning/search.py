"""The best grid by trying: of a few that are given, or of all near them, for any solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.grids.uniform import uniform
from asddim_lib.levels import Levels
from asddim_lib.metrics.distance import relative_distance
from asddim_lib.models.load import Pipeline
from asddim_lib.models.prompts import listed
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers import ASDDIMScheduler, ASFlowScheduler
from asddim_lib.schedulers.place import numbers_of, takes

Grids = Mapping[str, Sequence[int]]


class Found(NamedTuple):
    """A grid, how far from the reference its pictures end, and what finding it cost.

    `timesteps` are numbers of levels, 0 … T − 1; for a flow scheduler t stands for the sigma
    (t + 1) / T before its shift. `distance` is the mean of `metrics.relative_distance`;
    `evaluations` counts the network's.
    """

    timesteps: list[int]
    distance: float
    evaluations: int

    def sigmas(self, num_train_timesteps: int = 1000) -> list[float]:
        """The grid as a flow-matching pipeline takes it, by `sigmas=`: before the shift."""
        return [(t + 1) / num_train_timesteps for t in self.timesteps]


def distances(
    pipe: Pipeline, prompts: str | Sequence[str], grids: Grids, **how: Any
) -> dict[str, float]:
    """How far each grid's pictures end from the fine solution.

    Arguments and errors are those of `direct_search`.
    """
    cost = _Cost(pipe, prompts, **how)
    return {name: cost(grid) for name, grid in grids.items()}


def choose(
    pipe: Pipeline, prompts: str | Sequence[str], grids: Grids, **how: Any
) -> tuple[str, Found]:
    """The name of the grid that ends nearest, and the grid, by `distances`."""
    cost = _Cost(pipe, prompts, **how)
    apart = {name: cost(grid) for name, grid in grids.items()}
    name = min(apart, key=apart.__getitem__)
    return name, Found(numbers_of(pipe.scheduler, grids[name]), apart[name], cost.spent)


def direct_search(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    starts: Sequence[Sequence[int]],
    budget: float = math.inf,
    **how: Any,
) -> Found:
    """The grid near the best of `starts` whose final latents lie nearest to a fine solution's.

    The solver is the pipeline's scheduler, which must take a grid; the solution is DDIM's, or
    Euler's for flow matching, of `reference_steps` (200), from the same noise to the same end.
    Starts are timesteps, or for flow matching sigmas before the shift. Prompt i starts from the
    noise of seed `seed` (0) + i, under `guidance_scale` (7.5), `batch_size` (32) at once; `options`
    go to the pipeline. A `goal` from `solution` saves the fine run.
    A pattern search: each timestep is moved towards its neighbours by a share of the gap, what is
    better is kept, and where nothing is, the share halves. It ends in a local optimum for these
    prompts, or when its trials, the starts aside, have taken `budget` steps per prompt.
    Raises WrongUse for wrong prompts (at least two), a wrong start or number of steps, or latents
    that are not finite.
    """
    cost = _Cost(pipe, prompts, **how)
    check(len(starts) > 0, "starts", starts, "give at least one grid")
    grids = [numbers_of(pipe.scheduler, start) for start in starts]
    best, grid = min((cost(start), start) for start in grids)
    last = cost.spent + (budget - len(grid)) * cost.per_step  # one more trial would go beyond
    size = len(cost.run.schedule)
    grid, best = pattern_search(cost, grid, best, size, lambda: cost.spent <= last)
    return Found(grid, best, cost.spent)


def pattern_search(
    cost: Callable[[list[int]], float],
    grid: list[int],
    best: float,
    size: int,
    affordable: Callable[[], bool] = lambda: True,
) -> tuple[list[int], float]:
    """The grid near `grid`, whose cost is `best`, that costs least, and its cost.

    Each timestep is moved towards its neighbours, and the ends 0 … `size` − 1, by a share of the
    gap; what is better is kept, and where nothing is, the share halves. No trial is made once one
    is not `affordable`.
    """
    share = 0.4
    while share > 0.02 and affordable():
        before = best
        for k in range(len(grid)):
            for trial in _moved(grid, k, share, size):
                if affordable() and (apart := cost(trial)) < best:
                    best, grid = apart, trial
                    break
        share /= 2 if best == before else 1
    return grid, best


def _moved(grid: list[int], k: int, share: float, size: int) -> list[list[int]]:
    """The grid with its k-th timestep moved up, and down, by a share of the gap there."""
    up = (grid[k - 1] if k else size) - grid[k]
    down = grid[k] - (grid[k + 1] if k + 1 < len(grid) else -1)
    trials = []
    for gap, sign in ((up, 1), (down, -1)):
        move = max(1, round(share * gap))
        if move < gap:
            trials.append([*grid[:k], grid[k] + sign * move, *grid[k + 1 :]])
    return trials


def solution(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    *,
    guidance_scale: float | None = 7.5,
    reference_steps: int = 200,
    batch_size: int = 32,
    seed: int = 0,
    end: str | None = None,
    truncate: bool = False,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Tensor:
    """The final latents (n × d) of a fine first-order run, whatever the pipeline's own scheduler.

    It is the goal of every search with the same arguments.
    """
    prompts = listed(prompts)
    seeds = range(seed, seed + len(prompts))
    run = Run(pipe, prompts, seeds, guidance_scale, batch_size, options, truncate, end=end)
    return _fine(run, reference_steps)


def _fine(run: Run, steps: int) -> Tensor:
    """The ends of a run by DDIM, or by Euler for flow matching, over evenly spaced timesteps."""
    size = len(run.schedule)
    check(1 <= steps <= size, "reference_steps", steps, f"give 1 to {size}")
    grid = uniform("trailing", size, steps)
    flow = Levels.from_diffusers(run.pipe.scheduler, run.mu).kind == "flow"
    return run.prepared_with(ASFlowScheduler if flow else ASDDIMScheduler).ends(grid)


class _Cost:
    """A grid's mean relative distance from the fine solution.

    Counts the network evaluations that it has `spent`.
    """

    def __init__(
        self,
        pipe: Pipeline,
        prompts: str | Sequence[str],
        *,
        guidance_scale: float | None = 7.5,
        reference_steps: int = 200,
        batch_size: int = 32,
        seed: int = 0,
        goal: Tensor | None = None,
        end: str | None = None,
        truncate: bool = False,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        prompts = listed(prompts)
        kind, count = type(pipe.scheduler).__name__, len(prompts)
        remedy = "it takes no grid: make it ASDDIMScheduler.from_config(pipe.scheduler.config)"
        check(bool(takes(pipe.scheduler)), "pipe.scheduler", kind, remedy)
        remedy = "give at least two: distances are measured against the spread between pictures"
        check(count >= 2, "prompts", f"{count} prompt", remedy)
        seeds = range(seed, seed + count)
        run = Run(pipe, prompts, seeds, guidance_scale, batch_size, options, truncate, end=end)
        self.run = run.prepared_with(type(pipe.scheduler))
        self.per_step, self.spent = run.evaluations_per_step, 0
        if goal is None:
            goal = _fine(run, reference_steps)
            self.spent = reference_steps * self.per_step
        self.goal = goal

    def __call__(self, grid: Sequence[int]) -> float:
        """The cost of one grid. Raises WrongUse where it is not finite."""
        numbers = numbers_of(self.run.pipe.scheduler, grid)
        self.spent += len(numbers) * self.per_step
        ends = self.run.ends(numbers)
        apart = float(relative_distance(ends, self.goal).mean())
        remedy = "the network gave numbers that are not finite: run it in float32"
        check(math.isfinite(apart), "distance", f"{apart} for the grid {list(grid)}", remedy)
        return apart
