"""The best of many grids: a race that few prompts begin, and a search around the winner."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

#: Prompts of the first round of a race, at least.
FIRST = 8
#: A grid's (K + 1 sigmas) mean loss, over all prompts or those of the first batches.
Cost = Callable[..., float]


def pattern_search(
    cost: Callable[[list[int]], float],
    grid: list[int],
    size: int,
    affordable: Callable[[], bool] = lambda: True,
) -> list[int]:
    """The grid near `grid` that costs least.

    Each timestep is moved towards its neighbours, and the ends 0 … `size` − 1, by a fraction of the
    gap; what is better is kept, and where nothing is, the fraction halves. No trial is made once
    one is not `affordable`.
    """
    best, fraction = cost(grid), 0.4
    while fraction > 0.02 and affordable():
        before = best
        for k in range(len(grid)):
            for trial in _moved(grid, k, fraction, size):
                if affordable() and (loss := cost(trial)) < best:
                    best, grid = loss, trial
                    break
        fraction /= 2 if best == before else 1
    return grid


def _moved(grid: list[int], k: int, fraction: float, size: int) -> list[list[int]]:
    """The grid with its k-th timestep moved up, and down, by a fraction of the gap there."""
    up = (grid[k - 1] if k else size) - grid[k]
    down = grid[k] - (grid[k + 1] if k + 1 < len(grid) else -1)
    trials = []
    for gap, sign in ((up, 1), (down, -1)):
        move = max(1, round(fraction * gap))
        if move < gap:
            trials.append([*grid[:k], grid[k] + sign * move, *grid[k + 1 :]])
    return trials


def race(cost: Cost, grids: Mapping[str, list[float]], sizes: list[int]) -> str:
    """The name of the best grid, by successive halving over batches of prompts of these sizes."""
    names = list(grids)
    for alive, batches in rounds(len(names), sizes):
        loss = {name: cost(grids[name], batches) for name in names[:alive]}
        names = sorted(loss, key=loss.__getitem__)
    return names[0]


def rounds(grids: int, sizes: list[int]) -> list[tuple[int, int]]:
    """How many grids a race compares on how many batches of prompts, round after round.

    At least `FIRST` prompts decide in the first round. The better half goes on, on twice as many.
    """
    rounds, alive, on = [], grids, min(len(sizes), math.ceil(FIRST / sizes[0]))
    while True:
        rounds.append((alive, on))
        if on == len(sizes):
            return rounds
        alive = min(alive, max(2, math.ceil(alive / 2)))
        on = min(len(sizes), 2 * on) if alive > 2 else len(sizes)


def race_cost(grids: int, sizes: list[int]) -> int:
    """The pictures that a race of so many grids draws at most."""
    pictures, before = 0, 0
    for alive, on in rounds(grids, sizes):
        pictures += alive * sum(sizes[before:on])
        before = on
    return pictures
