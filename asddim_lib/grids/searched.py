"""The best grid by search over the points of a fine path.

Shortest paths (the oracle, GITS), and the least error at the path's end, signs included.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.evidence.path import Trajectory
from asddim_lib.grids.change import constant_rate, tors
from asddim_lib.paper import NoiseSchedule


def deviations(path: Trajectory, schedule: NoiseSchedule) -> np.ndarray:
    """The distance from the path after one DDIM step between any two of its points.

    (N + 1) × (N + 1), upper triangle: row i, column j is the step from point i to j > i. Distances
    are root mean squares over samples and dimensions, relative to the size of the path at j: for
    Gaussian data, that is the factor by which the flow scales an error up to the end. Needs no
    network evaluation.
    """
    points, sigma = path.clean(schedule), path.sigmas(schedule)
    distances = np.zeros((len(points), len(points)))
    for i, noise in enumerate(path.noises.double()):
        later = points[i + 1 :]
        landing = points[i] + (sigma[i + 1 :] - sigma[i])[:, None, None] * noise
        ratio = (landing - later).square().mean((1, 2)) / later.square().mean((1, 2))
        distances[i, i + 1 :] = ratio.sqrt()
    return distances


def detours(path: Trajectory, schedule: NoiseSchedule) -> np.ndarray:
    """The cost of a step in GITS, (N + 1) × (N + 1), upper triangle; it may be negative.

    The distance of the step's landing point from the straight line between the path's ends, minus
    the distance of the path itself there; a mean over samples.
    """
    points, sigma = path.clean(schedule), path.sigmas(schedule)
    line = (points[-1] - points[0]) / (points[-1] - points[0]).norm(dim=1, keepdim=True)

    def aside(x: Tensor) -> Tensor:
        off = x - points[0]
        return (off - (off * line).sum(2, keepdim=True) * line).norm(dim=2).mean(1)

    cost, own = np.zeros((len(points), len(points))), aside(points)
    for i, noise in enumerate(path.noises.double()):
        landing = points[i] + (sigma[i + 1 :] - sigma[i])[:, None, None] * noise
        cost[i, i + 1 :] = aside(landing) - own[i + 1 :]
    return cost


def shortest_path(cost: np.ndarray, steps: int, growth: float = 1.0) -> list[int]:
    """The cheapest path of exactly `steps` edges from node 0 to the last: its nodes but the last.

    `cost[i, j]` is the cost of the edge from i to j > i. Each edge is weighted `growth` times as
    much as the one before. Raises WrongUse when the graph has too few nodes.
    """
    nodes = len(cost)
    remedy = f"give 1 to {nodes - 1}, the points of the reference path"
    check(1 <= steps < nodes, "num_inference_steps", steps, remedy)
    best = np.full(nodes, np.inf)
    best[0] = 0.0
    upper = np.where(np.triu(np.ones_like(cost), 1) > 0, cost, np.inf)
    previous = np.zeros((steps, nodes), int)
    for k in range(steps):
        through = best[:, None] + growth**k * upper
        previous[k] = through.argmin(0)
        best = through.min(0)
    node, reverse = nodes - 1, []
    for k in reversed(range(steps)):
        node = int(previous[k][node])
        reverse.append(node)
    return reverse[::-1]


def oracle(path: Trajectory, schedule: NoiseSchedule, num_inference_steps: int) -> list[int]:
    """The K timesteps with the least sum of `deviations`, exactly, by dynamic programming."""
    nodes = shortest_path(deviations(path, schedule), num_inference_steps)
    return [path.timesteps[i] for i in nodes]


def gits(
    path: Trajectory, schedule: NoiseSchedule, num_inference_steps: int, growth: float = 1.15
) -> list[int]:
    """GITS' grid (Chen et al. 2024), with its own cost and its weight of later steps.

    Its teacher has 60 steps and 256 samples.
    """
    nodes = shortest_path(detours(path, schedule), num_inference_steps, growth)
    return [path.timesteps[i] for i in nodes]


def arrivals(path: Trajectory, schedule: NoiseSchedule) -> Tensor:
    """The error at the path's end due to one DDIM step between any two of its points, with sign.

    (N + 1) × (N + 1) × (probes n), upper triangle: the error along each probe of the adjoints,
    relative to the standard deviation of the ends. To first order, the errors of several steps
    add up as they do in the picture, so one can cancel another. Raises WrongUse for a path without
    adjoints.
    """
    remedy = "record the path with adjoint_probes of at least 1"
    check(path.adjoints is not None, "adjoints", None, remedy)
    points, sigma = path.clean(schedule), path.sigmas(schedule)
    adjoints = torch.as_tensor(path.adjoints).double()
    # From the last point to the end an adjoint hardly changes.
    adjoints = torch.cat([adjoints, adjoints[:, -1:]], 1)
    probes, _, count, _ = adjoints.shape
    errors = torch.zeros(len(points), len(points), probes * count, dtype=torch.float64)
    for i, noise in enumerate(path.noises.double()):
        landing = points[i] + (sigma[i + 1 :] - sigma[i])[:, None, None] * noise
        along = (adjoints[:, i + 1 :] * (landing - points[i + 1 :])).sum(3)
        errors[i, i + 1 :] = along.transpose(0, 1).flatten(1)
    deviation = (points[-1] - points[-1].mean(0)).square().sum(1).mean().sqrt()
    return errors / deviation if deviation > 0 else errors


def dual_path(path: Trajectory, schedule: NoiseSchedule, num_inference_steps: int) -> list[int]:
    """The K timesteps with the least sum of `arrivals`: root mean square over samples and probes.

    A sum with signs is no shortest path, so this is a local search. It starts at the oracle's
    nodes and at those of the least sum of squares, and moves each node while that helps, by 8
    points, then 4, 2 and 1. Needs no network evaluation beyond the path and its adjoints.
    """
    errors, last = arrivals(path, schedule), len(path)

    def cost(nodes: list[int]) -> float:
        return float(errors[nodes, [*nodes[1:], last]].sum(0).square().mean().sqrt())

    edges = (deviations(path, schedule), errors.square().mean(2).numpy())
    starts = [shortest_path(edge, num_inference_steps) for edge in edges]
    optima = [_descend(cost, start, last) for start in starts]
    return [path.timesteps[i] for i in min(optima, key=cost)]


def _descend(cost: Callable[[list[int]], float], nodes: list[int], last: int) -> list[int]:
    """Moves each node except the first between its neighbours while the cost falls."""
    best = cost(nodes)
    for far in (8, 4, 2, 1):
        before = np.inf
        while best < before:
            before = best
            for k, move in itertools.product(range(1, len(nodes)), (far, -far)):
                trial = [*nodes[:k], nodes[k] + move, *nodes[k + 1 :]]
                between = trial[k - 1] < trial[k] < [*trial, last][k + 1]
                if between and (value := cost(trial)) < best:
                    best, nodes = value, trial
    return nodes


#: Grids that need a recorded path; dual-path also needs its adjoints.
SEARCHED: dict[str, Callable[[Trajectory, NoiseSchedule, int], list[int]]] = {
    "oracle": oracle,
    "gits": gits,
    "tors": tors,
    "constant-rate": constant_rate,
    "dual-path": dual_path,
}
