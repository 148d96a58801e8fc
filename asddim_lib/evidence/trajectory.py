"""A sampling path and what a step on it gets wrong: where along the path the error is made, and how much of it reaches the picture.

In y = x / √ᾱ, as clean data sees it, and with σ = √((1 − ᾱ)/ᾱ), the path obeys dy/dσ = ε. A solver of order p takes ε for a polynomial of
degree p − 1 in the half-log-SNR λ = −log σ; its step of length h is off by about `h^(p+1) σ |d^p ε / dλ^p|`, up to a factor that is the same
everywhere. The sum of such errors over K steps is least when each step makes the same one (equidistribution; de Boor 1973): then steps fall
with a density in proportion to the (p + 1)th root.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.core.step import ddim_step
from asddim_lib.errors import check

ORDERS = (1, 2, 3)


@dataclass(frozen=True)
class Trajectory:
    """A reference path: N falling timesteps, the samples there (N × n × d) and the noise that the network saw in them (N × n × d).

    `end` (n × d) is where the path ends, in clean data, or at `alpha_end` where a scheduler's ᾱ stops short of 1. `adjoints` (probes × N ×
    n × d), where they were measured, are what `carry_back` found.
    """

    timesteps: list[int]
    samples: Tensor
    noises: Tensor
    end: Tensor
    alpha_end: float = 1.0
    adjoints: Tensor | None = None

    def sigmas(self, schedule: NoiseSchedule) -> Tensor:
        """σ = √((1 − ᾱ)/ᾱ) at the path's points and at its end (N + 1), float64; finite where ᾱ begins at 0."""
        end = ((1 - self.alpha_end) / self.alpha_end) ** 0.5
        return torch.tensor([*schedule.finite_sigmas[self.timesteps], end], dtype=torch.float64)

    def clean(self, schedule: NoiseSchedule) -> Tensor:
        """The path's points and its end in x / √ᾱ, as clean data sees them ((N + 1) × n × d), float64."""
        return torch.cat([self.samples, self.end[None]]).double() * (
            1 + self.sigmas(schedule) ** 2
        ).sqrt().reshape(-1, 1, 1)


def follow(
    eps: Callable[[Tensor, int], Tensor], x: Tensor, schedule: NoiseSchedule, timesteps: list[int]
) -> Trajectory:
    """The path that DDIM takes from x (n × d) over `timesteps`, fine ones for a reference; one call of eps(x, t) at each."""
    bars = torch.tensor(
        [*(schedule.alphas_cumprod[t] for t in timesteps), 1.0], dtype=torch.float64
    )
    samples, noises = [], []
    for k, t in enumerate(timesteps):
        samples.append(x)
        noises.append(eps(x, t))
        x, _ = ddim_step(x, noises[-1], bars[k], bars[k + 1])
    return Trajectory(list(timesteps), torch.stack(samples), torch.stack(noises), x)


def local_errors(path: Trajectory, schedule: NoiseSchedule, order: int = 1) -> Tensor:
    """What a solver of this order would get wrong on each stretch between the path's points, if it were one step: (N − 1) × n × d, in y.

    Up to a factor that all stretches share: h^(p+1) σ d^p ε / dλ^p, the derivative by divided differences of the noises on record.
    """
    check(order in ORDERS, "order", order, f"use one of {', '.join(map(str, ORDERS))}")
    check(
        len(path.timesteps) > order,
        "path",
        f"{len(path.timesteps)} points",
        f"order {order} needs at least {order + 1}",
    )
    sigma = path.sigmas(schedule)[:-1]
    half_log_snr, slope = -sigma.log(), path.noises.double()
    for degree in range(1, order + 1):  # each stands between the points from which it was made
        apart = (half_log_snr[degree:] - half_log_snr[:-degree]) / degree
        slope = slope.diff(dim=0) / apart.reshape(-1, 1, 1)
    before = (torch.arange(len(sigma) - 1) - order // 2).clamp(0, len(slope) - 1)
    after = (before + 1 - order % 2).clamp(
        max=len(slope) - 1
    )  # an even one stands at a point: a stretch lies between two
    length, middle = (
        half_log_snr.diff(),
        -sigma.diff() / half_log_snr.diff(),
    )  # σ's mean over a stretch
    return (length ** (order + 1) * middle).reshape(-1, 1, 1) * (slope[before] + slope[after]) / 2


def squares(
    path: Trajectory, schedule: NoiseSchedule, order: int = 1, carried: bool = False
) -> Tensor:
    """The local errors' squared sizes, as they are made: (N − 1) × n; or `carried` to the path's end by the adjoints: (N − 1) × (probes n)."""
    errors = local_errors(path, schedule, order)
    if not carried:
        return errors.square().sum(2)
    check(
        path.adjoints is not None,
        "adjoints",
        None,
        "record the path with adjoint_probes of at least 1",
    )
    return (
        (torch.as_tensor(path.adjoints)[:, 1:].double() * errors)
        .sum(3)
        .square()
        .transpose(0, 1)
        .flatten(1)
    )


def mean_shares(squares: Tensor, order: int) -> np.ndarray:
    """How many steps each stretch between the path's points deserves, up to a factor: the (p + 1)th root of the errors' root mean square."""
    return (squares.mean(1).sqrt() ** (1 / (order + 1))).numpy()


def shares(
    path: Trajectory, schedule: NoiseSchedule, order: int = 1, carried: bool = False
) -> np.ndarray:
    """`mean_shares` of a path's own `squares`: N − 1 positive numbers."""
    return mean_shares(squares(path, schedule, order, carried), order)


def spread(shares: np.ndarray, timesteps: list[int]) -> np.ndarray:
    """Each stretch's share laid evenly on its timesteps: a density over 0 … `timesteps[0]`. The last stretch's goes on to clean data."""
    lengths = -np.diff(timesteps)
    covered = lengths.copy()
    covered[-1] += timesteps[-1] + 1
    return np.repeat(np.asarray(shares) / lengths, covered)[::-1]
