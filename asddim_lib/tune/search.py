"""The best grid by trying: of a few that are given, or of all near them, for any solver. It costs images, and says how much is left to gain."""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.grids.grid import check_timesteps, timesteps
from asddim_lib.metrics.distance import relative_distance
from asddim_lib.models.load import Pipeline
from asddim_lib.models.prompts import check_prompts
from asddim_lib.schedulers.asddim import ASDDIMScheduler


class Found(NamedTuple):
    """A grid, how far from the reference its pictures end (as `metrics.relative_distance`, the mean), and the network evaluations spent."""

    timesteps: list[int]
    distance: float
    evaluations: int


def distances(
    pipe: Pipeline, prompts: list[str], grids: dict[str, list[int]], **how: Any
) -> dict[str, float]:
    """How far each grid's pictures end from the fine solution, as `direct_search` measures it; with its arguments and errors."""
    cost = _Cost(pipe, prompts, **how)
    return {name: cost(grid) for name, grid in grids.items()}


def choose(
    pipe: Pipeline, prompts: list[str], grids: dict[str, list[int]], **how: Any
) -> tuple[str, Found]:
    """The best of some grids, and its name, by `distances`: K evaluations a grid and prompt, beside those of the fine solution."""
    cost = _Cost(pipe, prompts, **how)
    found = {name: cost(grid) for name, grid in grids.items()}
    name = min(found, key=found.__getitem__)
    return name, Found(list(grids[name]), found[name], cost.spent)


def direct_search(
    pipe: Pipeline,
    prompts: list[str],
    starts: list[list[int]],
    budget: float = math.inf,
    **how: Any,
) -> Found:
    """The grid near the best of `starts`, with as many steps, whose final latents lie nearest to a fine solution from the same noise.

    The solver is the pipeline's scheduler, which must take `timesteps`; the solution, DDIM's of `reference_steps` (200). Prompt i starts from
    the noise of seed `seed` (0) + i, under `guidance_scale` (7.5), `batch_size` (32) at once; a `goal` from `solution` saves that run.
    A pattern search: each timestep is tried nearer to its neighbours by a share of the gap, what is better is kept, and where nothing is, the
    share halves. It finds a local optimum, for these prompts, or what it has when its trials, the starts aside, have taken `budget` steps a
    prompt. Raises ValueError for wrong prompts or a wrong start.
    """
    size, cost = len(pipe.scheduler.alphas_cumprod), _Cost(pipe, prompts, **how)
    (best, grid), share = min((cost(start), start) for start in starts), 0.4
    last = cost.spent + (budget - len(grid)) * cost.each  # another trial would go beyond the budget
    while share > 0.02 and cost.spent <= last:
        before = best
        for k in range(len(grid)):
            up = (grid[k - 1] if k else size) - grid[k]
            down = grid[k] - (grid[k + 1] if k + 1 < len(grid) else -1)
            for gap, sign in ((up, 1), (down, -1)):
                move = max(1, round(share * gap))
                if move < gap and cost.spent <= last:
                    trial = [*grid[:k], grid[k] + sign * move, *grid[k + 1 :]]
                    found = cost(trial)
                    if found < best:
                        best, grid = found, trial
                        break
        share /= 2 if best == before else 1
    return Found(list(grid), best, cost.spent)


def solution(
    pipe: Pipeline,
    prompts: list[str],
    *,
    guidance_scale: float = 7.5,
    reference_steps: int = 200,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    """The final latents (n × d) of a fine DDIM run, whatever the pipeline's own scheduler: the goal of every search with the same arguments."""
    own = pipe.scheduler
    try:
        pipe.scheduler = ASDDIMScheduler.from_config(own.config)
        return _ends(
            pipe,
            prompts,
            timesteps(own, reference_steps, allocation="trailing"),
            guidance_scale,
            batch_size,
            seed,
        )
    finally:
        pipe.scheduler = own


class _Cost:
    """A grid's mean relative distance from the fine solution; counts the network evaluations that it `spent`."""

    def __init__(
        self,
        pipe: Pipeline,
        prompts: list[str],
        *,
        guidance_scale: float = 7.5,
        reference_steps: int = 200,
        batch_size: int = 32,
        seed: int = 0,
        goal: Tensor | None = None,
    ) -> None:
        check_prompts(pipe, prompts)
        takes = "timesteps" in inspect.signature(pipe.scheduler.set_timesteps).parameters
        check(
            takes,
            "pipe.scheduler",
            type(pipe.scheduler).__name__,
            "it takes no timesteps: make it ASDDIMScheduler.from_config(pipe.scheduler.config)",
        )
        self.pipe, self.prompts, self.how = pipe, prompts, (guidance_scale, batch_size, seed)
        self.each, self.spent = len(prompts) * (2 if guidance_scale > 1 else 1), 0
        if goal is None:
            goal = solution(
                pipe,
                prompts,
                guidance_scale=guidance_scale,
                reference_steps=reference_steps,
                batch_size=batch_size,
                seed=seed,
            )
            self.spent = reference_steps * self.each
        self.goal = goal

    def __call__(self, grid: list[int]) -> float:
        self.spent += len(grid) * self.each
        chosen = check_timesteps(grid, len(self.pipe.scheduler.alphas_cumprod))
        return float(
            relative_distance(_ends(self.pipe, self.prompts, chosen, *self.how), self.goal).mean()
        )


@torch.no_grad()
def _ends(
    pipe: Pipeline,
    prompts: list[str],
    grid: list[int],
    guidance_scale: float,
    batch_size: int,
    seed: int,
) -> Tensor:
    found = []
    for start in range(0, len(prompts), batch_size):
        chosen = prompts[start : start + batch_size]
        noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chosen))]
        found.append(
            pipe(
                chosen,
                timesteps=grid,
                guidance_scale=guidance_scale,
                generator=noise,
                output_type="latent",
            )
            .images.flatten(1)
            .float()
        )
    return torch.cat(found)
