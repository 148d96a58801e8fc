"""Compares grids on data with a known exact answer, in seconds.

Shows what holds in any number of dimensions and on any noise schedule.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from asddim_lib.evidence.path import Trajectory, carry_back, shares, spread
from asddim_lib.grids.grid import timesteps
from asddim_lib.grids.table import method_of
from asddim_lib.levels import Levels
from asddim_lib.metrics.distance import relative_distance
from asddim_lib.paper import allocate
from experiments.mixtures import GaussianMixture, follow


def trial(
    data: GaussianMixture,
    config: dict[str, Any],
    num_inference_steps: int,
    allocations: list[str],
    *,
    count: int = 256,
    seed: int = 0,
) -> dict[str, float]:
    """The mean relative distance of DDIM's samples from a 1,000-step solution, by allocation.

    `config` is a scheduler's; `count` samples are compared. The allocations that need evidence
    (equidistributed, dual-weighted and the searched ones) get it from 64 other samples, along 64
    steps and with 8 adjoint probes. Raises WrongUse as `timesteps` does.
    """
    levels, width = Levels.from_diffusers(config), data.means.shape[1]
    alphas, generator = levels.alphas_cumprod, torch.Generator().manual_seed(seed)

    def eps(x: Tensor, t: int) -> Tensor:
        return data.eps(x, float(alphas[t]))

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, width, generator=generator, dtype=torch.float64)

    tuning, testing = noise(64), noise(count)
    path = follow(eps, tuning, levels, [*timesteps(config, 64, allocation="trailing"), 0])
    path = replace(path, adjoints=_adjoints(data, path, levels, noise(8, 64)))
    densities = {
        name: spread(shares(path, levels, carried=name == "dual-weighted"), path.timesteps)
        for name in ("equidistributed", "dual-weighted")
    }
    goal = follow(eps, testing, levels, timesteps(config, 1000, allocation="trailing")).end

    def distance(name: str) -> float:
        if name in densities:
            grid = allocate(1 / densities[name], num_inference_steps)
        else:
            evidence = path if method_of(name).needs in ("path", "adjoints") else None
            grid = timesteps(config, num_inference_steps, allocation=name, path=evidence)
        return float(relative_distance(follow(eps, testing, levels, grid).end, goal).mean())

    return {name: distance(name) for name in allocations}


def _adjoints(data: GaussianMixture, path: Trajectory, levels: Levels, probes: Tensor) -> Tensor:
    """The path's adjoints (probes × N × n × d), by the exact Jacobian."""

    def transpose(k: int, v: Tensor) -> Tensor:
        alpha = float(levels.alphas_cumprod[path.timesteps[k]])
        return torch.einsum("nij,pni->pnj", data.jacobian(path.samples[k], alpha), v)

    return carry_back(path.sigmas(levels), transpose, probes).transpose(0, 1)
