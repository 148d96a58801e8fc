"""The best grid by trying it: for any solver, at the price of many images. What is left to gain beside it, no allocation can."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from asddim_lib.grids import check_timesteps, timesteps
from asddim_lib.metrics import relative_distance
from asddim_lib.models import Pipeline
from asddim_lib.prompts import check_prompts
from asddim_lib.scheduler import ASDDIMScheduler


class Found(NamedTuple):
    """A grid, how far from the reference its pictures end (as `metrics.relative_distance`, the mean), and the network evaluations spent."""

    timesteps: list[int]
    distance: float
    evaluations: int


def direct_search(
    pipe: Pipeline, prompts: list[str], starts: list[list[int]], *, guidance_scale: float = 7.5, reference_steps: int = 200, batch_size: int = 32, seed: int = 0
) -> Found:  # fmt: skip
    """The grid near the best of `starts`, with as many steps, whose final latents lie nearest to those of `reference_steps` DDIM steps from the same noise.

    The solver is the pipeline's scheduler, which must take `timesteps`. A pattern search: each timestep is tried nearer to its neighbours by a
    share of the gap, what is better is kept, and where nothing is, the share halves. It finds a local optimum, for these prompts. Prompt i
    starts from the noise of seed `seed` + i. Raises ValueError for wrong prompts or a wrong start.
    """
    check_prompts(pipe, prompts)
    size, own, spent = len(pipe.scheduler.alphas_cumprod), pipe.scheduler, 0
    tried = [check_timesteps(start, size) for start in starts]

    def ends(chosen: list[int]) -> Tensor:
        nonlocal spent
        spent += len(chosen) * len(prompts) * (2 if guidance_scale > 1 else 1)
        return _ends(pipe, prompts, chosen, guidance_scale, batch_size, seed)

    try:
        pipe.scheduler = ASDDIMScheduler.from_config(own.config)
        goal = ends(timesteps(own, reference_steps, allocation="trailing"))
    finally:
        pipe.scheduler = own

    def cost(chosen: list[int]) -> float:
        return float(relative_distance(ends(chosen), goal).mean())

    (best, grid), share = min((cost(one), one) for one in tried), 0.4
    while share > 0.02:
        before = best
        for k in range(len(grid)):
            up = (grid[k - 1] if k else size) - grid[k]
            down = grid[k] - (grid[k + 1] if k + 1 < len(grid) else -1)
            for gap, sign in ((up, 1), (down, -1)):
                move = max(1, round(share * gap))
                if move < gap:
                    trial = [*grid[:k], grid[k] + sign * move, *grid[k + 1 :]]
                    found = cost(trial)
                    if found < best:
                        best, grid = found, trial
                        break
        share /= 2 if best == before else 1
    return Found(grid, best, spent)


@torch.no_grad()
def _ends(pipe: Pipeline, prompts: list[str], grid: list[int], guidance_scale: float, batch_size: int, seed: int) -> Tensor:
    found = []
    for start in range(0, len(prompts), batch_size):
        chosen = prompts[start : start + batch_size]
        noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chosen))]
        found.append(pipe(chosen, timesteps=grid, guidance_scale=guidance_scale, generator=noise, output_type="latent").images.flatten(1).float())
    return torch.cat(found)
