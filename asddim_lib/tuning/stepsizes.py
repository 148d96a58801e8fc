"""Optimal stepsizes: the grid that best imitates a fine path, by dynamic programming.

Pei, Hu and Gu 2025 (OSS), Algorithm 1. The oracle and GITS weigh every step from the fine path
itself; here each step begins where the steps before it have really led, and the network is asked
there. That costs K more sweeps over the fine path's levels.

As in the authors' program (github.com/bebebe666/OptimalSteps, search_OSS), the first step may begin
at any level, with the initial noise taken for a sample there. Unlike it, every grid has exactly K
steps, and steps are DDIM's also where the model is no flow. The paper's search for multistep
solvers (Algorithm 2) and its calibration of amplitudes (Eq 13) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.evidence.path import Trajectory
from asddim_lib.levels import Levels
from asddim_lib.metrics.distance import relative_distance
from asddim_lib.models.load import Pipeline
from asddim_lib.paper import distinct
from asddim_lib.pipeline.calls import one_step_more
from asddim_lib.pipeline.recorder import FlowRecorderScheduler, RecorderScheduler
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers import ASDDIMScheduler, ASFlowScheduler
from asddim_lib.schedulers.place import prepared
from asddim_lib.tuning.search import Found

#: The number of a level, and what is predicted there, clean sample and noise, to the sample that is
#: to come next, or None for the one that the run began with.
Following = Callable[[int, Tensor, Tensor], Tensor | None]


def optimal_stepsizes(
    pipe: Pipeline,
    prompts: list[str],
    num_inference_steps: int,
    *,
    guidance_scale: float | None = 7.5,
    teacher_steps: int = 200,
    batch_size: int = 32,
    seed: int = 0,
    truncate: bool = False,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Found:
    """The K timesteps of OSS for a first-order solver: DDIM, or Euler for flow matching.

    The teacher is `Run.path` over `teacher_steps` (200). Each prompt has a grid of its own; the
    median of each step over prompts is the grid for all, as the authors' `cal_medium`. `distance`
    is how far it ends from the teacher, measured by drawing once more. The cost is (K + 1) N
    evaluations per prompt and guidance branch, and K for that last run; N levels are teacher's.
    Prompt i starts from the noise of seed `seed` + i. The other arguments are those of
    `direct_search`. Raises WrongUse as `Run.path` does, for fewer than two prompts, and for more
    steps than the teacher has levels.
    """
    count = len(prompts)
    remedy = "give at least two: distances are measured against the spread between pictures"
    check(count >= 2, "prompts", f"{count} prompt", remedy)
    seeds = range(seed, seed + count)
    run = Run(pipe, prompts, seeds, guidance_scale, batch_size, options, truncate)
    path = run.path(teacher_steps)
    most = len(_levels(path, run)) - 1
    remedy = f"give 1 to {most}, the levels that the teacher leaves"
    check(1 <= num_inference_steps <= most, "num_inference_steps", num_inference_steps, remedy)
    nodes = np.concatenate(
        [_search(run, path, batch, num_inference_steps, teacher_steps) for batch in run.batches()]
    )
    places = np.median(nodes, axis=0)  # rising for every prompt, and so in the median
    grid = distinct(np.interp(places, np.arange(len(path)), path.timesteps))
    flow = Levels.from_diffusers(pipe.scheduler, run.mu).kind == "flow"
    same = replace(run, end="zero" if flow else "sigma_min")  # where the teacher ends
    ends = same.prepared_with(ASFlowScheduler if flow else ASDDIMScheduler).ends(grid)
    distance = float(relative_distance(ends, path.end.float()).mean())
    sweeps = len(path) * (num_inference_steps + 1) + num_inference_steps
    return Found(grid, distance, sweeps * run.evaluations_per_step)


def _levels(path: Trajectory, run: Run) -> Tensor:
    """σ at the path's points, and at its end where that is lower: M numbers."""
    sigma = path.sigmas(run.schedule)
    return sigma[:-1] if sigma[-1] >= sigma[-2] else sigma


def _search(run: Run, path: Trajectory, batch: slice, steps: int, fine: int) -> np.ndarray:
    """The nodes of each prompt's own grid, as numbers of the path's points: n × K."""
    sigma, scheduler = _levels(path, run), _steered(run)
    goals = path.clean(run.schedule)[: len(sigma), batch] / (1 + sigma).reshape(-1, 1, 1)
    signal = Levels.from_diffusers(run.pipe.scheduler, run.mu).signal(sigma) * (1 + sigma)
    student = Student(sigma / (1 + sigma), goals)
    points = {timestep: point for point, timestep in enumerate(path.timesteps)}

    def following(number: int, clean: Tensor, noise: Tensor) -> Tensor | None:
        point = points[number]
        student.land(point, *(part.flatten(1).float().cpu() for part in (clean, noise)))
        reached = student.reached(point + 1)
        return None if reached is None else float(signal[point + 1]) * reached

    for _ in range(steps):
        student.begin_step()
        scheduler.steer(following)
        with torch.no_grad(), one_step_more(run.pipe):
            how = {"num_inference_steps": fine, "output_type": "latent"}
            run.call(batch, scheduler, run.generators(batch), **how)
    return student.trace()


class Student:
    """The best that m steps reach at each level of a teacher, one sample beside another.

    `shares` (M) are the levels' shares of noise s, falling, and `goals` (M × n × d) the teacher's
    samples there, in the scale of flow matching, x = (1 − s) x₀ + s ε, where a first-order step
    goes straight. z[m][j], the sample that m steps lead to at level j, comes from
    z[m − 1][r], where r < j is the level from which one step ends nearest to the teacher (Eqs 9
    and 11). Before the first step z is the initial noise at every level, as in the authors'
    program: a grid may begin below the teacher.
    """

    def __init__(self, shares: Tensor, goals: Tensor) -> None:
        self.shares, self.goals = shares.float(), goals.float()
        self._origins: list[Tensor] = []
        self._before: Tensor | None = None
        self._after = torch.zeros_like(self.goals)
        self._error = torch.empty(0)

    def begin_step(self) -> None:
        """Begins the next step, which is to be made from every level by `land`."""
        self._before = self._after if self._origins else None
        self._after = torch.zeros_like(self.goals)
        self._error = torch.full(self.goals.shape[:2], torch.inf)
        self._origins.append(torch.zeros(self.goals.shape[:2], dtype=torch.long))

    def land(self, level: int, clean: Tensor, noise: Tensor) -> None:
        """Steps from a level to all below, by what is predicted there (n × d each)."""
        if level < len(self._origins) - 1:  # no m steps lead here
            return
        lower = slice(level + 1, None)
        landing = clean + self.shares[lower].reshape(-1, 1, 1) * (noise - clean)
        error = (landing - self.goals[lower]).square().mean(2)
        nearer = error < self._error[lower]
        self._error[lower] = torch.where(nearer, error, self._error[lower])
        self._after[lower] = torch.where(nearer[..., None], landing, self._after[lower])
        self._origins[-1][lower][nearer] = level

    def reached(self, level: int) -> Tensor | None:
        """Where the steps before this one lead at a level: n × d.

        None where none is made yet, or they do not lead there.
        """
        made = len(self._origins) - 1
        inside = made <= level < len(self.goals)
        return self._before[level] if self._before is not None and inside else None

    def trace(self) -> np.ndarray:
        """The levels that each sample's steps begin at, from the first to the last: n × m.

        Raises WrongUse where the network gave a number that is not finite.
        """
        remedy = "the network gave numbers that are not finite: run it in float32"
        check(bool(self._error[-1].isfinite().all()), "error", "not finite at the end", remedy)
        samples = torch.arange(self.goals.shape[1])
        level, nodes = torch.full_like(samples, len(self.goals) - 1), []
        for origin in reversed(self._origins):
            level = origin[level, samples]
            nodes.append(level)
        return torch.stack(nodes[::-1], 1).numpy()


def _steered(run: Run) -> Any:
    """The scheduler that a sweep is made with: it clips nothing, and ends where the path does."""
    source = run.pipe.scheduler
    if Levels.from_diffusers(source, run.mu).kind == "flow":
        scheduler = prepared(_SteeredFlow, source, "zero")
        scheduler.register_to_config(stochastic_sampling=False)
        return scheduler
    scheduler = prepared(_SteeredDDIM, source, "sigma_min")
    plain = {"allocation": "trailing", "profile": None, "clip_sample": False}
    scheduler.register_to_config(**plain, thresholding=False)
    return scheduler


class _Steered:
    """Visits the levels of a recorder, each with a sample that it is told."""

    def steer(self, following: Following) -> None:
        """Forgets the last run; `following` says what sample comes next."""
        self.start()  # type: ignore[attr-defined]
        self._following = following
        self._first: Tensor | None = None

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, eta: float = 0.0, **options: Any
    ) -> Any:
        """As the recorder's own `step`, but the next sample is the one that is told."""
        self._first = sample if self._first is None else self._first
        stepped = super().step(model_output, timestep, sample, eta, **options)  # type: ignore[misc]
        visit, coordinates = self.visits.pop(), self.coordinates  # type: ignore[attr-defined]
        level = float(coordinates.sigmas[visit.timestep])
        told = self._following(visit.timestep, *coordinates.predict(sample, model_output, level))
        self.landed = self._first if told is None else told.reshape(sample.shape).to(sample)
        if isinstance(stepped, tuple):
            return (self.landed, *stepped[1:])
        stepped.prev_sample = self.landed
        return stepped


class _SteeredDDIM(_Steered, RecorderScheduler):  # type: ignore[misc]
    """DDIM's recorder, steered."""


class _SteeredFlow(_Steered, FlowRecorderScheduler):  # type: ignore[misc]
    """The recorder of Euler for flow matching, steered."""
