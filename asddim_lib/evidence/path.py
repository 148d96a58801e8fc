"""A sampling path, the local error of a step on it, and that error's size at the path's end.

In y = x / √ᾱ, the scale of clean data, and σ = √((1 − ᾱ)/ᾱ), the path obeys dy/dσ = ε. A solver of
order p replaces ε by a polynomial of degree p − 1 in the half-log-SNR λ = −log σ; its step of
length h has an error of about `h^(p+1) σ |d^p ε / dλ^p|`, up to a constant factor. The sum of the
errors of K steps is least when all are equal (equidistribution; de Boor 1973): the best density of
steps is proportional to the (p + 1)th root.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.levels import Levels, fingerprint

ORDERS = (1, 2, 3)


@dataclass(frozen=True)
class Trajectory:
    """A reference path: N falling timesteps, and the samples and the predicted noise there.

    `samples` and `noises` are N × n × d, in the scale of the variance-preserving model. `end`
    (n × d) is the last point: clean data, or the sample at `alpha_end` where a scheduler's ᾱ stops
    short of 1. `adjoints` (probes × N × n × d) are those of `carry_back`, or None. `schedule` is
    the `fingerprint` of the levels that it was recorded with, or None if unknown. Its length is N.
    """

    timesteps: list[int]
    samples: Tensor
    noises: Tensor
    end: Tensor
    alpha_end: float = 1.0
    adjoints: Tensor | None = None
    schedule: str | None = None

    def __len__(self) -> int:
        return len(self.timesteps)

    def check_schedule(self, levels: Levels) -> None:
        """Raises WrongUse for a path that was recorded with another noise schedule."""
        same = self.schedule in (None, fingerprint(levels))
        check(same, "path", "recorded on another noise schedule", "record it with this scheduler")

    def sigmas(self, levels: Levels) -> Tensor:
        """σ = √((1 − ᾱ)/ᾱ) at the path's points and its end: (N + 1), float64.

        Finite where ᾱ begins at 0.
        """
        end = ((1 - self.alpha_end) / self.alpha_end) ** 0.5
        sigmas = [*levels.finite_sigmas[self.timesteps], end]
        return torch.tensor(sigmas, dtype=torch.float64, device="cpu")

    def clean(self, levels: Levels) -> Tensor:
        """The path's points and its end in the scale of clean data, y = x / √ᾱ.

        (N + 1) × n × d, float64.
        """
        scale = (1 + self.sigmas(levels) ** 2).sqrt()
        return torch.cat([self.samples, self.end[None]]).double() * scale.reshape(-1, 1, 1)


def local_errors(path: Trajectory, levels: Levels, order: int = 1) -> Tensor:
    """The error of one step between neighbouring points, for a solver of this order, in y.

    (N − 1) × n × d, up to a factor that all intervals share: h^(p+1) σ d^p ε / dλ^p, with the
    derivative from divided differences of the recorded noise. Pure noise, whose σ is infinite,
    counts as twice the next σ: the predicted clean sample then changes evenly in 1/σ, and
    a step of order 1 from there errs by half of its change, Δ = −σ Δε (Eq 3 with σ → ∞).
    Raises WrongUse for an order outside 1 … 3, and for a path of fewer than order + 1 points.
    """
    check(order in ORDERS, "order", order, f"use one of {', '.join(map(str, ORDERS))}")
    remedy = f"order {order} needs at least {order + 1}"
    check(len(path) > order, "path", f"{len(path)} points", remedy)
    sigma = path.sigmas(levels)[:-1]
    if levels.alphas_cumprod[path.timesteps[0]] == 0:
        sigma[0] = 2 * sigma[1]
    half_log_snr, derivative = -sigma.log(), path.noises.double()
    for degree in range(1, order + 1):  # row i is the divided difference over points i … i + degree
        width = (half_log_snr[degree:] - half_log_snr[:-degree]) / degree
        derivative = derivative.diff(dim=0) / width.reshape(-1, 1, 1)
    # A difference of odd degree is centred on an interval, one of even degree on a point: there
    # the interval takes the mean of both its ends.
    before = (torch.arange(len(sigma) - 1, device="cpu") - order // 2).clamp(0, len(derivative) - 1)
    after = (before + 1 - order % 2).clamp(max=len(derivative) - 1)
    length = half_log_snr.diff()
    mean_sigma = -sigma.diff() / length
    factor = (length ** (order + 1) * mean_sigma).reshape(-1, 1, 1)
    return factor * (derivative[before] + derivative[after]) / 2


def squares(path: Trajectory, levels: Levels, order: int = 1, carried: bool = False) -> Tensor:
    """The squared norms of the local errors: (N − 1) × n.

    With `carried`, of their effect on the path's end, by the adjoints: (N − 1) × (probes n).
    Raises WrongUse for `carried` without adjoints.
    """
    errors = local_errors(path, levels, order)
    if not carried:
        return errors.square().sum(2)
    remedy = "record the path with adjoint_probes of at least 1"
    check(path.adjoints is not None, "adjoints", None, remedy)
    assert path.adjoints is not None
    at_end = (path.adjoints[:, 1:].double() * errors).sum(3)
    return at_end.square().transpose(0, 1).flatten(1)


def mean_shares(squares: Tensor, order: int) -> np.ndarray:
    """The number of steps that each interval deserves, up to a factor: N − 1 positive numbers.

    The (p + 1)th root of the root mean square error over samples.
    """
    return (squares.mean(1).sqrt() ** (1 / (order + 1))).numpy()


def shares(path: Trajectory, levels: Levels, order: int = 1, carried: bool = False) -> np.ndarray:
    """The `mean_shares` of a path's `squares`: N − 1 positive numbers."""
    return mean_shares(squares(path, levels, order, carried), order)


def spread(shares: np.ndarray, timesteps: list[int]) -> np.ndarray:
    """The density of steps over timesteps 0 … `timesteps[0]`, constant on each interval.

    Each interval's share is divided by its length. The last value extends down to timestep 0.
    """
    lengths = -np.diff(timesteps)
    covered = lengths.copy()
    covered[-1] += timesteps[-1] + 1
    return np.repeat(np.asarray(shares) / lengths, covered)[::-1]


def carry_back(sigmas: Tensor, transpose: Callable[[int, Tensor], Tensor], probe: Tensor) -> Tensor:
    """The gradient of ⟨probe, y_end⟩ with respect to y at each point of the path: N × … n × d.

    `sigmas` (N + 1) are the path's noise levels, and `transpose(k, v)` is (∂ε/∂x)ᵀ v at point k.
    `probe` is n × d, or … × n × d for several at once. One sweep against the path's direction: the
    adjoint of DDIM's own steps, y_{k+1} = y_k + (σ_{k+1} − σ_k) ε(y_k / √(1 + σ_k²)).
    """
    adjoint, reverse = probe, []
    for k in reversed(range(len(sigmas) - 1)):
        change = float((sigmas[k + 1] - sigmas[k]) / (1 + sigmas[k] ** 2).sqrt())
        adjoint = adjoint + change * transpose(k, adjoint)
        reverse.append(adjoint)
    return torch.stack(reverse[::-1])
