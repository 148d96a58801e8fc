"""The best grid by search over a fine path's points: shortest paths (the oracle, GITS), and the least error at the path's end, signs and all."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.errors import check
from asddim_lib.evidence.trajectory import Trajectory


def deviations(path: Trajectory, schedule: NoiseSchedule) -> np.ndarray:
    """How far one DDIM step from any point of the path to any later one lands from the path: (N + 1) × (N + 1), upper triangle.

    Distances are root mean squares over samples and dimensions, relative to the path's own size there: for Gaussian data that is what the
    flow makes of an error by the end. No network evaluation is needed.
    """
    seen, sigma = path.clean(schedule), path.sigmas(schedule)
    found = np.zeros((len(seen), len(seen)))
    for i, noise in enumerate(path.noises.double()):
        landed = seen[i] + (sigma[i + 1 :] - sigma[i])[:, None, None] * noise
        found[i, i + 1 :] = (
            (landed - seen[i + 1 :]).square().mean((1, 2)) / seen[i + 1 :].square().mean((1, 2))
        ).sqrt()
    return found


def detours(path: Trajectory, schedule: NoiseSchedule) -> np.ndarray:
    """GITS' cost of a step: how much further from the straight line between the path's ends it lands than the path itself lies, by its mean
    over samples; (N + 1) × (N + 1), upper triangle. It may be negative."""
    seen, sigma = path.clean(schedule), path.sigmas(schedule)
    line = (seen[-1] - seen[0]) / (seen[-1] - seen[0]).norm(dim=1, keepdim=True)

    def aside(x: Tensor) -> Tensor:
        off = x - seen[0]
        return (off - (off * line).sum(2, keepdim=True) * line).norm(dim=2).mean(1)

    found, own = np.zeros((len(seen), len(seen))), aside(seen)
    for i, noise in enumerate(path.noises.double()):
        found[i, i + 1 :] = (
            aside(seen[i] + (sigma[i + 1 :] - sigma[i])[:, None, None] * noise) - own[i + 1 :]
        )
    return found


def shortest_path(cost: np.ndarray, steps: int, growth: float = 1.0) -> list[int]:
    """The nodes but the last of the cheapest path of exactly `steps` edges from node 0 to the last; cost[i, j] is the edge from i to j > i,
    and each edge counts `growth` times as much as the one before."""
    nodes = len(cost)
    check(
        1 <= steps < nodes,
        "num_inference_steps",
        steps,
        f"give 1 to {nodes - 1}, the points of the reference path",
    )
    best = np.full(nodes, np.inf)
    best[0] = 0.0
    upper = np.where(np.triu(np.ones_like(cost), 1) > 0, cost, np.inf)
    came = np.zeros((steps, nodes), int)
    for k in range(steps):
        through = best[:, None] + growth**k * upper
        came[k] = through.argmin(0)
        best = through.min(0)
    node, found = nodes - 1, []
    for k in reversed(range(steps)):
        node = int(came[k][node])
        found.append(node)
    return found[::-1]


def oracle(path: Trajectory, schedule: NoiseSchedule, num_inference_steps: int) -> list[int]:
    """The K timesteps of least summed relative deviation from a reference path: dynamic programming finds them exactly."""
    nodes = shortest_path(deviations(path, schedule), num_inference_steps)
    return [path.timesteps[i] for i in nodes]


def gits(
    path: Trajectory, schedule: NoiseSchedule, num_inference_steps: int, growth: float = 1.15
) -> list[int]:
    """GITS' grid (Chen et al. 2024) with its own cost and weight of later steps. Its teacher has 60 steps and 256 samples."""
    nodes = shortest_path(detours(path, schedule), num_inference_steps, growth)
    return [path.timesteps[i] for i in nodes]


def arrivals(path: Trajectory, schedule: NoiseSchedule) -> Tensor:
    """What one DDIM step from any point of the path to any later one makes wrong, as it arrives at the path's end, seen along each probe of its
    adjoints: (N + 1) × (N + 1) × (probes n), upper triangle; relative to the ends' spread about their mean, with its sign.

    Steps' errors add up in it as they do in the picture, to first order: what one makes wrong, another may undo.
    """
    check(
        path.adjoints is not None,
        "adjoints",
        None,
        "record the path with adjoint_probes of at least 1",
    )
    seen, sigma = path.clean(schedule), path.sigmas(schedule)
    felt = torch.as_tensor(path.adjoints).double()
    felt = torch.cat(
        [felt, felt[:, -1:]], 1
    )  # what is wrong at the end arrives as it is, near enough as at the last point
    found = torch.zeros(len(seen), len(seen), felt.shape[0] * felt.shape[2], dtype=torch.float64)
    for i, noise in enumerate(path.noises.double()):
        wrong = seen[i] + (sigma[i + 1 :] - sigma[i])[:, None, None] * noise - seen[i + 1 :]
        found[i, i + 1 :] = (felt[:, i + 1 :] * wrong).sum(3).transpose(0, 1).flatten(1)
    spread = (seen[-1] - seen[-1].mean(0)).square().sum(1).mean().sqrt()
    return found / spread if spread > 0 else found


def dual_path(path: Trajectory, schedule: NoiseSchedule, num_inference_steps: int) -> list[int]:
    """The K timesteps whose steps' `arrivals` add up to the least: root mean square over samples and probes.

    A sum with signs is no shortest path, so this is a local search: from the oracle's nodes, and from those of the least sum of squares, each
    node is moved while that helps, by 8 points, then 4, 2 and 1. No network evaluation is needed beyond the path and its adjoints.
    """
    arriving, last = arrivals(path, schedule), len(path.timesteps)

    def cost(nodes: list[int]) -> float:
        return float(arriving[nodes, [*nodes[1:], last]].sum(0).square().mean().sqrt())

    starts = [
        shortest_path(cost, num_inference_steps)
        for cost in (deviations(path, schedule), arriving.square().mean(2).numpy())
    ]
    found = [_descend(cost, start, last) for start in starts]
    return [path.timesteps[i] for i in min(found, key=cost)]


def _descend(cost: Callable[[list[int]], float], nodes: list[int], last: int) -> list[int]:
    """Moves each node but the first between its neighbours while the cost falls."""
    best = cost(nodes)
    for far in (8, 4, 2, 1):
        before = np.inf
        while best < before:
            before = best
            for k, move in itertools.product(range(1, len(nodes)), (far, -far)):
                trial = [*nodes[:k], nodes[k] + move, *nodes[k + 1 :]]
                if (
                    trial[k - 1] < trial[k] < [*trial, last][k + 1]
                    and (found := cost(trial)) < best
                ):
                    best, nodes = found, trial
    return nodes


#: Grids that need a recorded path, and, for the last, its adjoints.
SEARCHED: dict[str, Callable[[Trajectory, NoiseSchedule, int], list[int]]] = {
    "oracle": oracle,
    "gits": gits,
    "dual-path": dual_path,
}
