"""Grids from a recorded path: the cheapest way along its points (GITS), or equal turns (TORS).

`levels` are those of the model that the path was recorded on. Neither needs another evaluation.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.evidence.path import Trajectory
from asddim_lib.levels import Levels
from asddim_lib.paper import distinct

#: A path that bends by less than this at a point, in radians, is straight there, up to rounding.
STRAIGHT = 1e-4
#: A chord shorter than this part of the sample, or a component smaller than this part of the first,
#: is rounding: float32 has seven digits.
STILL = 1e-6


def gits(
    path: Trajectory, levels: Levels, num_inference_steps: int, growth: float = 1.15
) -> list[int]:
    """GITS' grid (Chen et al. 2024): K timesteps by its cost and its weight of later steps.

    The authors' path has 60 steps and 256 samples.
    """
    nodes = shortest_path(detours(path, levels), num_inference_steps, growth)
    return [path.timesteps[i] for i in nodes]


def detours(path: Trajectory, levels: Levels) -> np.ndarray:
    """The cost of a step in GITS, (N + 1) × (N + 1), upper triangle; it may be negative.

    The distance of the step's landing point from the straight line between the path's ends, minus
    the distance of the path itself there; a mean over samples.
    """
    points, sigma = path.clean(levels), path.sigmas(levels)
    line = (points[-1] - points[0]) / (points[-1] - points[0]).norm(dim=1, keepdim=True)

    def aside(x: Tensor) -> Tensor:
        off = x - points[0]
        return (off - (off * line).sum(2, keepdim=True) * line).norm(dim=2).mean(1)

    cost, path_itself = np.zeros((len(points), len(points))), aside(points)
    for i, noise in enumerate(path.noises.double()):
        landing = points[i] + (sigma[i + 1 :] - sigma[i])[:, None, None] * noise
        cost[i, i + 1 :] = aside(landing) - path_itself[i + 1 :]
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


def tors(path: Trajectory, levels: Levels, num_inference_steps: int) -> list[int]:
    """TORS: the path turns by the same angle in each of K steps (Zhou et al. 2026, Algorithm 1).

    The authors record 100 steps of 100 prompts; 25 steps are too few for them.
    """
    moving = moving_points(path, levels)
    return equal_parts(times_of(path)[:moving], total_rotation(path, levels), num_inference_steps)


def total_rotation(path: Trajectory, levels: Levels) -> np.ndarray:
    """Θ from the path's first point to each of its points, in radians (Zhou et al. 2026, Eq 7).

    Θ = ∫ √(κ² + τ²) ds, with the curvature κ and the torsion τ of each sample's path in its first
    three principal components. κ, the size of τ and the lengths are means over samples, measured in
    the scale of flow matching, x = (1 − s) x₀ + s ε, as the authors do. How the angles of a path of
    points are measured is ours. Includes the path's end, unless it lies at the last prediction's
    level. Raises WrongUse for fewer than three points, and for a straight path.
    """
    moving = moving_points(path, levels)
    check(moving >= 3, "path", f"{moving} points", "record at least 3, better 100")
    sigma = path.sigmas(levels)[:moving].reshape(-1, 1, 1)
    points = (path.clean(levels)[:moving] / (1 + sigma)).transpose(0, 1)
    least = STILL * points.norm(dim=2).amax(1)
    parts = _frenet(_projected(points), least)
    curvature, torsion, lengths = (part.mean(0).numpy() for part in parts)
    rotation = np.concatenate([[0.0], np.cumsum(np.hypot(curvature, torsion) * lengths)])
    remedy = "any steps serve: use another method"
    check(rotation[-1] > STRAIGHT * moving, "path", "a straight line", remedy)
    return rotation


def _projected(points: Tensor) -> Tensor:
    """Each curve (n × M × d) in its first three principal components: n × M × 3.

    Computed from the M × M inner products, since d is much larger.
    """
    centred = points - points.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(centred @ centred.transpose(1, 2))
    count = min(3, points.shape[1], points.shape[2])
    sizes = values[:, None, -count:].clamp(min=0).sqrt()
    curve = vectors[..., -count:] * torch.where(sizes > STILL * sizes[..., -1:], sizes, 0.0)
    return torch.nn.functional.pad(curve, (0, 3 - count))


def _frenet(curves: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Curvature, size of the torsion, and length of each interval of n × M × 3 points.

    n × (M − 1) each. The curvature of a point is the angle between its neighbouring chords, over
    their mean length; the torsion of an interval is the angle between the planes that its ends bend
    in. Torsion is 0 where curvature is 0; curvature is 0 where a chord is shorter than `least` (n).
    The outermost values are repeated at the ends.
    """
    chords = curves.diff(dim=1)
    lengths = chords.norm(dim=2).clamp(min=1e-30)
    tangents = chords / lengths[..., None]
    normals = torch.linalg.cross(tangents[:, :-1], tangents[:, 1:])
    bends = torch.atan2(normals.norm(dim=2), (tangents[:, :-1] * tangents[:, 1:]).sum(2))
    long = torch.minimum(lengths[:, :-1], lengths[:, 1:]) > least[:, None]
    bends = torch.where(long, bends, 0.0)
    at_points = _extended(2 * bends / (lengths[:, :-1] + lengths[:, 1:]))
    curvature = (at_points[:, :-1] + at_points[:, 1:]) / 2
    if curves.shape[1] < 4:
        return curvature, torch.zeros_like(curvature), lengths
    across = torch.linalg.cross(normals[:, :-1], normals[:, 1:]).norm(dim=2)
    # A path that begins to bend the other way does not leave its plane: hence the absolute value.
    twists = torch.atan2(across, (normals[:, :-1] * normals[:, 1:]).sum(2).abs())
    bent = torch.minimum(bends[:, :-1], bends[:, 1:]) > STRAIGHT
    torsion = torch.where(bent, twists / lengths[:, 1:-1], 0.0)
    return curvature, _extended(torsion), lengths


def _extended(values: Tensor) -> Tensor:
    """Rows (n × m) with their first and last value repeated: n × (m + 2)."""
    return torch.cat([values[:, :1], values, values[:, -1:]], 1)


def moving_points(path: Trajectory, levels: Levels) -> int:
    """The number of the path's points with distinct levels, counting its end where it is lower."""
    sigma = path.sigmas(levels)
    return len(sigma) - int(bool(sigma[-1] >= sigma[-2]))


def times_of(path: Trajectory) -> np.ndarray:
    """The timesteps of the path's points; its end counts as −1."""
    return np.array([*path.timesteps, -1], np.float64)


def equal_parts(times: np.ndarray, total: np.ndarray, steps: int) -> list[int]:
    """K timesteps that divide a quantity, known at `times` and rising, into K equal parts."""
    remedy = f"give 1 to {int(times[0]) + 1}, the timesteps of the path"
    check(1 <= steps <= times[0] + 1, "num_inference_steps", steps, remedy)
    ideal = np.interp(total[-1] * np.arange(steps) / steps, total, times)
    ideal[0] = times[0]  # also where the quantity does not change at first
    return distinct(ideal)
