"""The best grid by search: what no allocation along the same path can beat, and GITS. Both are shortest paths over a fine grid's points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.noise import NoiseSchedule
from asddim_lib.step import ddim_step


@dataclass(frozen=True)
class Trajectory:
    """A reference path: N falling timesteps, the samples there (N × n × d) and the noise that the network saw in them (N × n × d).

    `end` (n × d) is where the path ends, in clean data.
    """

    timesteps: list[int]
    samples: Tensor
    noises: Tensor
    end: Tensor


def follow(eps: Callable[[Tensor, int], Tensor], x: Tensor, schedule: NoiseSchedule, timesteps: list[int]) -> Trajectory:
    """The path that DDIM takes from x (n × d) over `timesteps`, fine ones for a reference; one call of eps(x, t) at each."""
    bars = [*(float(schedule.alphas_cumprod[t]) for t in timesteps), 1.0]
    samples, noises = [], []
    for k, t in enumerate(timesteps):
        samples.append(x)
        noises.append(eps(x, t))
        x, _ = ddim_step(x, noises[-1], torch.tensor(bars[k]), torch.tensor(bars[k + 1], dtype=torch.float64))
    return Trajectory(list(timesteps), torch.stack(samples), torch.stack(noises), x)


def deviations(path: Trajectory, schedule: NoiseSchedule, relative: bool) -> np.ndarray:
    """How far one DDIM step from any point of the path to any later one lands from the path: (N + 1) × (N + 1), upper triangle.

    Distances are root mean squares over samples and dimensions, in x / √ᾱ, as clean data sees them (GITS); `relative` divides them by the
    path's own size there, which for Gaussian data is what the flow makes of an error by the end. No network evaluation is needed.
    """
    bars = torch.tensor([*(schedule.alphas_cumprod[t] for t in path.timesteps), 1.0], dtype=torch.float64)
    sigma = ((1 - bars) / bars).sqrt()
    seen = torch.cat([path.samples.double(), path.end.double()[None]]) / bars.sqrt().reshape(-1, 1, 1)
    found = np.zeros((len(bars), len(bars)))
    for i, noise in enumerate(path.noises.double()):
        landed = seen[i] + (sigma[i + 1 :] - sigma[i])[:, None, None] * noise
        error = (landed - seen[i + 1 :]).square().mean((1, 2))
        found[i, i + 1 :] = (error / seen[i + 1 :].square().mean((1, 2)) if relative else error).sqrt()
    return found


def shortest_path(cost: np.ndarray, steps: int) -> list[int]:
    """The nodes but the last of the cheapest path of exactly `steps` edges from node 0 to the last; cost[i, j] is the edge from i to j > i."""
    nodes = len(cost)
    check(1 <= steps < nodes, "num_inference_steps", steps, f"give 1 to {nodes - 1}, the points of the reference path")
    best = np.full(nodes, np.inf)
    best[0] = 0.0
    upper = np.where(np.triu(np.ones_like(cost), 1) > 0, cost, np.inf)
    came = np.zeros((steps, nodes), int)
    for k in range(steps):
        through = best[:, None] + upper
        came[k] = through.argmin(0)
        best = through.min(0)
    node, found = nodes - 1, []
    for k in reversed(range(steps)):
        node = int(came[k][node])
        found.append(node)
    return found[::-1]


def oracle(path: Trajectory, schedule: NoiseSchedule, num_inference_steps: int) -> list[int]:
    """The K timesteps of least summed relative deviation from a reference path: dynamic programming finds them exactly."""
    nodes = shortest_path(deviations(path, schedule, relative=True), num_inference_steps)
    return [path.timesteps[i] for i in nodes]


def gits(path: Trajectory, schedule: NoiseSchedule, num_inference_steps: int) -> list[int]:
    """GITS' grid (Chen et al. 2024): least summed deviation from a teacher's path, as clean data sees it. Theirs has 60 steps."""
    nodes = shortest_path(deviations(path, schedule, relative=False), num_inference_steps)
    return [path.timesteps[i] for i in nodes]
