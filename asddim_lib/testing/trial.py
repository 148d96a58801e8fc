"""Every grid on data whose exact answer is known: what holds in any number of dimensions and on any noise schedule, in seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from asddim_lib.core.allocation import allocate
from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.evidence.adjoint import carry_back
from asddim_lib.evidence.trajectory import follow, shares, spread
from asddim_lib.grids.methods import timesteps
from asddim_lib.metrics.distance import relative_distance
from asddim_lib.testing.mixtures import GaussianMixture


def trial(
    data: GaussianMixture,
    config: dict[str, Any],
    num_inference_steps: int,
    allocations: list[str],
    *,
    count: int = 256,
    seed: int = 0,
) -> dict[str, float]:
    """How far DDIM's ends lie from those of a 1,000-step solution, by allocation: the mean relative distance of `count` samples.

    Our own, equidistributed, dual-weighted and dual-path, are measured on 64 other samples along 64 steps, with 8 adjoint probes.
    """
    schedule, width = NoiseSchedule.from_config(config), data.means.shape[1]
    bars, generator = schedule.alphas_cumprod, torch.Generator().manual_seed(seed)

    def eps(x: Tensor, t: int) -> Tensor:
        return data.eps(x, float(bars[t]))

    tuning, testing = (
        torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (64, count)
    )
    path = follow(eps, tuning, schedule, [*timesteps(config, 64, allocation="trailing"), 0])

    def transpose(k: int, v: Tensor) -> Tensor:
        return torch.einsum(
            "nij,pni->pnj", data.jacobian(path.samples[k], float(bars[path.timesteps[k]])), v
        )

    probes = torch.randn(8, *tuning.shape, generator=generator, dtype=torch.float64)
    path = replace(
        path, adjoints=carry_back(path.sigmas(schedule), transpose, probes).transpose(0, 1)
    )
    ours = {
        name: 1 / spread(shares(path, schedule, carried=name == "dual-weighted"), path.timesteps)
        for name in ("equidistributed", "dual-weighted")
    }
    goal = follow(eps, testing, schedule, timesteps(config, 1000, allocation="trailing")).end

    def grid(name: str) -> list[int]:
        if name in ours:
            return allocate(ours[name], num_inference_steps)
        return timesteps(config, num_inference_steps, allocation=name, path=path)

    return {
        name: float(relative_distance(follow(eps, testing, schedule, grid(name)).end, goal).mean())
        for name in allocations
    }
