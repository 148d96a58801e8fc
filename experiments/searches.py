"""Searches on a recorded path that only the experiments compare.

The oracle and dual-path search over its points; constant rate scheduling cuts it by a feature.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.evidence.path import Trajectory
from asddim_lib.grids.searched import equal_parts, moving_points, shortest_path, times_of
from asddim_lib.levels import Levels

#: Samples or predictions (n × d, flattened latents) to features (n × m).
Features = Callable[[Tensor], Tensor]
#: The distance between two sets of features (n × m each) of the same n samples, at least 0.
Discrepancy = Callable[[Tensor, Tensor], float]
#: What `feature_changes` can read off a path.
READ = ("clean", "noise", "sample")


def oracle(path: Trajectory, levels: Levels, num_inference_steps: int) -> list[int]:
    """The K timesteps with the least sum of `deviations`, exactly, by dynamic programming."""
    nodes = shortest_path(deviations(path, levels), num_inference_steps)
    return [path.timesteps[i] for i in nodes]


def deviations(path: Trajectory, levels: Levels) -> np.ndarray:
    """The distance from the path after one DDIM step between any two of its points.

    (N + 1) × (N + 1), upper triangle: row i, column j is the step from point i to j > i. Distances
    are root mean squares over samples and dimensions, relative to the size of the path at j: for
    Gaussian data, that is the factor by which the flow scales an error up to the end. Needs no
    network evaluation.
    """
    points, sigma = path.clean(levels), path.sigmas(levels)
    distances = np.zeros((len(points), len(points)))
    for i, noise in enumerate(path.noises.double()):
        later = points[i + 1 :]
        landing = points[i] + (sigma[i + 1 :] - sigma[i])[:, None, None] * noise
        ratio = (landing - later).square().mean((1, 2)) / later.square().mean((1, 2))
        distances[i, i + 1 :] = ratio.sqrt()
    return distances


def dual_path(path: Trajectory, levels: Levels, num_inference_steps: int) -> list[int]:
    """The K timesteps with the least sum of `arrivals`: root mean square over samples and probes.

    A sum with signs is no shortest path, so this is a local search. It starts at the oracle's
    nodes and at those of the least sum of squares, and moves each node while that helps, by 8
    points, then 4, 2 and 1. Needs no network evaluation beyond the path and its adjoints.
    """
    errors, last = arrivals(path, levels), len(path)

    def cost(nodes: list[int]) -> float:
        return float(errors[nodes, [*nodes[1:], last]].sum(0).square().mean().sqrt())

    edges = (deviations(path, levels), errors.square().mean(2).numpy())
    starts = [shortest_path(edge, num_inference_steps) for edge in edges]
    optima = [_descend(cost, start, last) for start in starts]
    return [path.timesteps[i] for i in min(optima, key=cost)]


def arrivals(path: Trajectory, levels: Levels) -> Tensor:
    """The error at the path's end due to one DDIM step between any two of its points, with sign.

    (N + 1) × (N + 1) × (probes n), upper triangle: the error along each probe of the adjoints,
    relative to the standard deviation of the ends. To first order, the errors of several steps
    add up as they do in the picture, so one can cancel another. Raises WrongUse for a path without
    adjoints.
    """
    remedy = "record the path with adjoint_probes of at least 1"
    check(path.adjoints is not None, "adjoints", None, remedy)
    points, sigma = path.clean(levels), path.sigmas(levels)
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


def constant_rate(
    path: Trajectory,
    levels: Levels,
    num_inference_steps: int,
    features: Features | None = None,
    discrepancy: Discrepancy | None = None,
    exponent: float = 1.0,
    read: str = "clean",
) -> list[int]:
    """Constant rate scheduling: K steps over which a feature changes alike (Okada et al. 2026).

    The paper lets α = √ᾱ move by dα/dt ∝ v(α)^−ξ, where v is the rate at which a distribution
    changes by a measure that the user chooses; `exponent` is ξ, and 1 makes the rate constant. So
    the cuts divide ∫ v^ξ dα into K equal parts, with v from `feature_changes`, whose arguments the
    others are. Raises WrongUse for a negative or infinite exponent, and where nothing changes.
    """
    right = np.isfinite(exponent) and exponent >= 0
    check(right, "exponent", exponent, "give a number of at least 0; 1 is a constant rate")
    changes = feature_changes(path, levels, features, discrepancy, read)
    points = len(changes) + 1
    alpha = (1 + path.sigmas(levels)[:points] ** 2).rsqrt().numpy()
    amounts = (changes / np.diff(alpha)) ** exponent * np.diff(alpha)
    total = np.concatenate([[0.0], np.cumsum(amounts)])
    check(total[-1] > 0, "path", "one along which no feature changes", "use other features")
    return equal_parts(times_of(path)[:points], total, num_inference_steps)


def feature_changes(
    path: Trajectory,
    levels: Levels,
    features: Features | None = None,
    discrepancy: Discrepancy | None = None,
    read: str = "clean",
) -> np.ndarray:
    """How far apart neighbouring points of a path are in a feature space, one number per interval.

    `read` says what the features are taken of: the predictions of the clean sample ("clean"), of
    the noise ("noise"), or the noisy samples ("sample"); the paper has a measure of each. They
    are handed to `features` as n × d, float32, and are by default features themselves. By default
    the `discrepancy` is `paired`. Raises WrongUse for another `read`, and for a discrepancy that is
    negative or not finite.
    """
    check(read in READ, "read", read, f"use one of {', '.join(READ)}")
    seen = [features(one) if features else one for one in _read(path, levels, read)]
    apart = discrepancy or paired
    changes = np.array([float(apart(a, b)) for a, b in itertools.pairwise(seen)])
    usable = bool(np.all(np.isfinite(changes) & (changes >= 0)))
    remedy = "it must be a finite number of at least 0"
    check(usable, "discrepancy", changes.tolist(), remedy)
    return changes


def paired(first: Tensor, second: Tensor) -> float:
    """The root mean square distance of the same samples' features (n × m each)."""
    return float((second.double() - first.double()).square().sum(1).mean().sqrt())


def _read(path: Trajectory, levels: Levels, read: str) -> list[Tensor]:
    """What is predicted, or what is there, at the points of a path: n × d each, float32.

    Where the path ends in clean data, the end is one more prediction, or sample.
    """
    if read == "noise":  # none is predicted at the end
        return list(path.noises.float())
    moving = moving_points(path, levels)
    ends = [path.end.float()] if moving > len(path) else []
    if read == "sample":
        return [*path.samples.float(), *ends]
    sigma = path.sigmas(levels)[:-1].reshape(-1, 1, 1)
    clean = path.clean(levels)[:-1] - sigma * path.noises.double()
    return [*clean.float(), *ends]
