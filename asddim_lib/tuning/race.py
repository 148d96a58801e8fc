"""The best of many grids: a race that few prompts begin, and a search around the winner."""

from __future__ import annotations

import math
from collections.abc import Mapping

from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.search import pattern_search
from asddim_lib.tuning.trials import Trials

#: Prompts of the first round of a race, at least.
FIRST = 8


def searched(trials: Trials, grids: Mapping[str, list[int]], limit: int) -> tuple[str, list[int]]:
    """The best of some grids, moved while that helps; no move is tried beyond the limit.

    The limit is of all evaluations that the trials' meter has counted.
    """
    trials.meter.doing = "comparing grids"
    name = race(trials, grids)
    trials.meter.doing = "moving timesteps"

    def cost(grid: list[int]) -> float:
        return float(trials(grid).mean())

    def affordable() -> bool:
        return trials.meter.spent + trials.cost(len(grids[name])) <= limit

    size = len(trials.run.schedule)
    found, _ = pattern_search(cost, grids[name], cost(grids[name]), size, affordable)
    return name if found == grids[name] else f"{name}, moved", found


def race(trials: Trials, grids: Mapping[str, list[int]]) -> str:
    """The name of the best grid, by successive halving over the `rounds` of the prompts."""
    names, run = list(grids), trials.run
    for alive, batches in rounds(len(names), len(list(run.batches())), run.batch_size):
        loss = {name: float(trials(grids[name], batches).mean()) for name in names[:alive]}
        names = sorted(loss, key=loss.__getitem__)
    return names[0]


def rounds(grids: int, batches: int, batch_size: int) -> list[tuple[int, int]]:
    """How many grids a race compares on how many batches of prompts, round after round.

    At least `FIRST` prompts decide in the first round. The better half goes on, on twice as many.
    """
    found, alive, on = [], grids, min(batches, math.ceil(FIRST / batch_size))
    while True:
        found.append((alive, on))
        if on == batches:
            return found
        alive = min(alive, max(2, math.ceil(alive / 2)))
        on = min(batches, 2 * on) if alive > 2 else batches


def race_cost(run: Run, grids: int, steps: int) -> int:
    """The network evaluations of a race of so many grids on all prompts of a run."""
    ends = [batch.stop for batch in run.batches()]
    rows = run.evaluations_per_step // len(run.prompts)
    cost, before = 0, 0
    for alive, on in rounds(grids, len(ends), run.batch_size):
        cost += alive * (ends[on - 1] - before) * steps * rows
        before = ends[on - 1]
    return cost
