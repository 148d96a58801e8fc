"""Grids that cut a recorded path into steps of equal change: of its rotation, or of a feature.

TORS (Zhou et al. 2026, arXiv 2603.00763) equalizes how far the path turns, constant rate scheduling
(Okada et al. 2026, arXiv 2411.12188) how far its distribution moves. Both read a recorded path, and
cost no evaluation beyond it. What is ours and not the papers': how the angles of a path of points
are measured, where means over samples are taken, and the distance that is the default discrepancy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.evidence.path import Trajectory
from asddim_lib.paper import NoiseSchedule, distinct

#: Samples or predictions (n × d, flattened latents) to features (n × m).
Features = Callable[[Tensor], Tensor]
#: How far apart two sets of features (n × m each) of the same n samples are, at least 0.
Discrepancy = Callable[[Tensor, Tensor], float]
#: What `feature_changes` can read off a path.
READ = ("clean", "noise", "sample")
#: A path that bends by less than this at a point, in radians, is straight there, up to rounding.
STRAIGHT = 1e-4
#: A chord shorter than this share of the sample itself, and a component smaller than this share of
#: the first, are rounding: float32 has seven digits.
STILL = 1e-6


def tors(path: Trajectory, schedule: NoiseSchedule, num_inference_steps: int) -> list[int]:
    """TORS: K steps over which the path turns alike (Zhou et al. 2026, Algorithm 1).

    The cuts divide the path's `total_rotation` into K equal parts; each is mapped back to a
    timestep along the arc. Its authors record 100 steps of 100 prompts, and find 25 steps too few.
    """
    moving = _moving(path, schedule)
    return _cut(_times(path)[:moving], total_rotation(path, schedule), num_inference_steps)


def total_rotation(path: Trajectory, schedule: NoiseSchedule) -> np.ndarray:
    """Θ from the path's first point to each of them, in radians (Zhou et al. 2026, Eq 7).

    Θ = ∫ √(κ² + τ²) ds, with the curvature κ and the torsion τ of the path in its first three
    principal components, a projection of each sample's own. κ, τ's size and the lengths are means
    over samples, taken at the recorded timesteps. They are measured in the scale of flow matching,
    x = (1 − s) x₀ + s ε, where the authors' models live; a diffusion model's path is brought to it.
    One number per point, of which the path's end is the last, unless it is where the last
    prediction is made. Raises WrongUse for fewer than three points, and for a straight path.
    """
    moving = _moving(path, schedule)
    check(moving >= 3, "path", f"{moving} points", "record at least 3, better 100")
    sigma = path.sigmas(schedule)[:moving].reshape(-1, 1, 1)
    points = (path.clean(schedule)[:moving] / (1 + sigma)).transpose(0, 1)
    least = STILL * points.norm(dim=2).amax(1)
    parts = _frenet(_projected(points), least)
    curvature, torsion, lengths = (part.mean(0).numpy() for part in parts)
    rotation = np.concatenate([[0.0], np.cumsum(np.hypot(curvature, torsion) * lengths)])
    remedy = "it turns nowhere, so one step is as good as many: use another method"
    check(rotation[-1] > STRAIGHT * moving, "path", "a straight line", remedy)
    return rotation


def _projected(points: Tensor) -> Tensor:
    """Each curve (n × M × d) in its own first three principal components: n × M × 3.

    Distances and angles are kept as far as three components hold them. They come from the M × M
    inner products, since d is much larger.
    """
    centred = points - points.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(centred @ centred.transpose(1, 2))
    kept = min(3, points.shape[1], points.shape[2])
    sizes = values[:, None, -kept:].clamp(min=0).sqrt()
    curve = vectors[..., -kept:] * torch.where(sizes > STILL * sizes[..., -1:], sizes, 0.0)
    return torch.nn.functional.pad(curve, (0, 3 - kept))


def _frenet(curves: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Curvature, torsion without its sign, and length of each interval of n × M × 3 points.

    n × (M − 1) each. The curvature of a point is the angle between its neighbouring chords, over
    their mean length; the torsion of an interval is the angle between the planes that its ends bend
    in. Where one of them does not bend, there is none, and no bend where a chord is shorter than
    `least` (n). The outermost values go on to the ends.
    """
    chords = curves.diff(dim=1)
    lengths = chords.norm(dim=2).clamp(min=1e-30)
    tangents = chords / lengths[..., None]
    normals = torch.linalg.cross(tangents[:, :-1], tangents[:, 1:])
    bends = torch.atan2(normals.norm(dim=2), (tangents[:, :-1] * tangents[:, 1:]).sum(2))
    seen = torch.minimum(lengths[:, :-1], lengths[:, 1:]) > least[:, None]
    bends = torch.where(seen, bends, 0.0)
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


def constant_rate(
    path: Trajectory,
    schedule: NoiseSchedule,
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
    changes = feature_changes(path, schedule, features, discrepancy, read)
    points = len(changes) + 1
    alpha = (1 + path.sigmas(schedule)[:points] ** 2).rsqrt().numpy()
    amounts = (changes / np.diff(alpha)) ** exponent * np.diff(alpha)
    total = np.concatenate([[0.0], np.cumsum(amounts)])
    check(total[-1] > 0, "path", "one along which no feature changes", "use other features")
    return _cut(_times(path)[:points], total, num_inference_steps)


def feature_changes(
    path: Trajectory,
    schedule: NoiseSchedule,
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
    seen = [features(one) if features else one for one in _read(path, schedule, read)]
    apart = discrepancy or paired
    changes = np.array([float(apart(a, b)) for a, b in itertools.pairwise(seen)])
    usable = bool(np.all(np.isfinite(changes) & (changes >= 0)))
    remedy = "it must be a finite number of at least 0"
    check(usable, "discrepancy", changes.tolist(), remedy)
    return changes


def paired(first: Tensor, second: Tensor) -> float:
    """The root mean square distance of the same samples' features (n × m each)."""
    return float((second.double() - first.double()).square().sum(1).mean().sqrt())


def _read(path: Trajectory, schedule: NoiseSchedule, read: str) -> list[Tensor]:
    """What is predicted, or what is there, at the points of a path: n × d each, float32.

    Where the path ends in clean data, the end is one more prediction, or sample.
    """
    if read == "noise":  # none is predicted at the end
        return list(path.noises.float())
    moving = _moving(path, schedule)
    ends = [path.end.float()] if moving > len(path) else []
    if read == "sample":
        return [*path.samples.float(), *ends]
    sigma = path.sigmas(schedule)[:-1].reshape(-1, 1, 1)
    clean = path.clean(schedule)[:-1] - sigma * path.noises.double()
    return [*clean.float(), *ends]


def _moving(path: Trajectory, schedule: NoiseSchedule) -> int:
    """The number of the path's points that lie at levels of their own, with its end or without."""
    sigma = path.sigmas(schedule)
    return len(sigma) - int(bool(sigma[-1] >= sigma[-2]))


def _times(path: Trajectory) -> np.ndarray:
    """The timesteps of the path's points; its end lies one below timestep 0."""
    return np.array([*path.timesteps, -1], np.float64)


def _cut(times: np.ndarray, total: np.ndarray, steps: int) -> list[int]:
    """K timesteps that divide a quantity, known at `times` and rising, into K equal parts."""
    remedy = f"give 1 to {int(times[0]) + 1}, the timesteps of the path"
    check(1 <= steps <= times[0] + 1, "num_inference_steps", steps, remedy)
    ideal = np.interp(total[-1] * np.arange(steps) / steps, total, times)
    ideal[0] = times[0]  # also where the quantity does not change at first
    return distinct(ideal)
