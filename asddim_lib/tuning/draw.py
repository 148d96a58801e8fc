"""Samplers that draw the same prompts from the same noise, and how far each ends from the fine one.

A sampler is a scheduler as it is returned: it is put into the pipeline, which is called with the
number of steps and nothing else that says where they go. So what is judged is what a user gets.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asddim_lib.cache import check_writable, kept, locked, seal, unseal
from asddim_lib.errors import WrongUse, check
from asddim_lib.grids.grid import level_indices
from asddim_lib.grids.rules import uniform
from asddim_lib.levels import Levels, completed, is_flow
from asddim_lib.models.load import Pipeline
from asddim_lib.models.prompts import listed
from asddim_lib.pipeline import calls
from asddim_lib.pipeline.manifest import of_pipeline, of_values
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.place import drawing, numbers_held, with_grid
from asddim_lib.schedulers.solvers import own_scheduler, solver_of
from asddim_lib.tuning.goals import Goal, Seen, distances
from asddim_lib.tuning.verify import CURRENT, LEAST

#: diffusers' classes whose solver ours have.
SAME = (
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)
#: A distance below this counts as this: its logarithm is finite.
SMALLEST = 1e-6
#: Receives what is being done, how many evaluations were spent, and how many may be in all.
Progress = Callable[[str, int, int], None]


@dataclass
class Work:
    """Network evaluations: counted, reported before they are made, their results kept in a folder.

    What a stopped run has drawn is read from the `folder`, and counted as if it were drawn again.
    `identity` is the pipeline's hash. Evaluations that were made here, `drawn`, took `seconds`.
    """

    folder: Path | None = None
    identity: str = ""
    progress: Progress | None = None
    spent: int = 0
    total: int = 0
    doing: str = ""
    drawn: int = 0
    seconds: float = 0.0

    def open(self, folder: Path | None, pipe: Pipeline) -> None:
        """Keeps what is drawn in a folder from now on, if there is one."""
        self.folder, self.identity = folder, "" if folder is None else of_pipeline(pipe)

    def do(self, evaluations: int, make: Callable[[], Seen], *depends: Any) -> Seen:
        """What `make` returns for so many evaluations, or the folder's file of the same depends."""
        self.report()
        self.spent += evaluations

        def timed() -> Seen:
            begun, made = time.perf_counter(), make()
            self.seconds += time.perf_counter() - begun
            self.drawn += evaluations
            return made

        if self.folder is None:
            return timed()
        return kept(self.folder / f"{of_values(self.identity, *depends)}.safetensors", timed)

    def report(self) -> None:
        """Calls `progress`."""
        if self.progress is not None:
            self.progress(self.doing, self.spent, max(self.total, self.spent))


@dataclass(frozen=True, eq=False)
class Sampler:
    """A scheduler as it is returned: it draws in `steps`, by so many calls of the network."""

    name: str
    scheduler: Any
    steps: int
    calls: int


@dataclass
class Setup:
    """Who draws: a pipeline at one guidance scale, its current sampler, grids, and the fine one.

    `solver` names one of `schedulers.solvers`; by default grids are drawn by the pipeline's own
    solver, or by DDIM (Euler) where that takes no grid. Pictures are compared with those of
    `reference_steps`, or twice as many as `steps`. Raises WrongUse for wrong use, and for a
    pipeline that sets levels of its own whatever its scheduler's grid.
    """

    run: Run
    steps: int
    goal: Goal
    solver: str | None = None
    reference_steps: int = 64
    work: Work = field(default_factory=Work)

    def __post_init__(self) -> None:
        own = self.run.pipe.scheduler
        self.run = replace(self.run, shift_steps=self.steps)
        self.mu, self.config = self.run.mu, self.run.config
        self.size = len(Levels.from_diffusers(self.config))
        self._trailing = even = level_indices(self.config, self.steps, allocation="trailing")
        self.order = 1
        if self.solver is not None:
            kind, self.order = solver_of(self.solver, own)
            kind = type(with_grid(drawing(kind, own), even, self.mu))
        else:
            try:
                kind = type(with_grid(own, even, self.mu))
                self.order = min(2, completed(own).get("solver_order", 1))
            except WrongUse:  # no class of ours has its solver
                kind = own_scheduler(own)
        self._plain = drawing(kind, own)
        self.run.check_grid_used(self.sampler(even).scheduler, self.steps)

    @property
    def rows(self) -> int:
        """Network evaluations of one step for one prompt."""
        return self.run.evaluations_per_step // len(self.run.prompts)

    @cached_property
    def current(self) -> Sampler:
        """The pipeline's own scheduler, as the user has it."""
        asked = self.run.asked(self.run.pipe.scheduler, self.steps)
        own = copy.deepcopy(self.run.pipe.scheduler)  # the user's keeps its state
        return Sampler(CURRENT, own, self.steps, len(asked.timesteps))

    @cached_property
    def current_grid(self) -> list[int] | None:
        """The current sampler's timesteps; None unless `sampler` draws the same with them."""
        asked = self.run.asked(self.run.pipe.scheduler, self.steps)
        try:
            grid = numbers_held(asked, self.mu)
            same = _times(asked) == _times(self._set(self.sampler(grid).scheduler))
        except WrongUse:
            return None
        # diffusers' DDIM steps by T // K, whatever its timesteps: linspace's lie farther apart.
        same &= type(self.run.pipe.scheduler).__name__ != "DDIMScheduler" or (
            self.config["timestep_spacing"] != "linspace"
        )
        solvers = [kind for kind in type(self._plain).__mro__ if kind.__name__ in SAME]
        return grid if same and isinstance(asked, tuple(solvers)) else None

    def _set(self, scheduler: Any) -> Any:
        """A copy of a scheduler, set for K steps without the pipeline."""
        alone = copy.deepcopy(scheduler)
        alone.set_timesteps(self.steps, **({} if self.mu is None else {"mu": self.mu}))
        return alone

    @cached_property
    def reference(self) -> Sampler:
        """The fine solution's: even steps of DPM-Solver++ (2M), whatever solver is judged.

        It errs less than first order for as many evaluations. On the bundled UNet, 64 steps end
        0.011 from 1,000 of DDIM in latents, 64 of DDIM 0.022, and 20 of 2M 0.037; on the flow
        model, 64 end 0.011 from 1,000 of Euler, 64 of Euler 0.016 (`python -m tests.reference`).
        """
        steps = min(max(self.reference_steps, 2 * self.steps), self.size)
        kind, _ = solver_of("dpm++", self.run.pipe.scheduler)
        plain = drawing(kind, self.run.pipe.scheduler)
        even = uniform("trailing", self.size, steps)
        return Sampler("fine", with_grid(plain, even, self.mu), steps, steps)

    def sampler(self, grid: Sequence[int]) -> Sampler:
        """The solver on a grid: its scheduler is ready for `pipe.scheduler`."""
        name, count = " ".join(map(str, grid)), len(grid)
        return Sampler(name, with_grid(self._plain, grid, self.mu), count, count)

    def trials(self, places: Sequence[int]) -> Trials:
        """The pictures of some of the prompts."""
        return Trials(self, some(self.run, places))

    def described(self) -> dict[str, Any]:
        """What a result is for, as JSON holds it."""
        run, flow = self.run, is_flow(self.config)
        encoder, second = (getattr(self.goal, name, None) for name in ("encoder", "check"))
        return {
            "model": str(getattr(run.pipe, "name_or_path", None) or ""),
            "pipeline": type(run.pipe).__name__,
            "current": type(run.pipe.scheduler).__name__,
            "solver": type(self._plain).__name__,
            "steps": self.steps,
            "guidance_scale": run.guidance_scale,
            "options": {name: shorten(str(value), 80) for name, value in run.options.items()},
            "flow": flow,
            **({"shift": Levels.from_diffusers(self.config).shift} if flow else {}),
            "num_train_timesteps": self.size,
            "evaluations_per_step": self.rows,
            "evaluations_per_picture": self.rows * self.current.calls,
            "takes": [n for n in ("timesteps", "sigmas") if n in calls.parameters(run.pipe)],
            "goal": self.goal.name,
            "relative": self.goal.relative,
            "encoder": getattr(encoder, "name", ""),
            "check_encoder": getattr(second, "name", ""),
            "reference_steps": self.reference.steps,
        }


class Trials:
    """A run's pictures by each sampler, each drawn once, and their losses by the goal."""

    def __init__(self, setup: Setup, run: Run) -> None:
        self.setup, self.run = setup, run
        self._seen: dict[tuple[str, int], Seen] = {}

    @cached_property
    def _aim(self) -> str:
        """The goal's hash, where it is needed: it reads all of an encoder's weights."""
        return self.setup.goal.identity if self.setup.work.folder else ""

    @property
    def sizes(self) -> list[int]:
        """The batches' numbers of prompts."""
        return [batch.stop - batch.start for batch in self.run.batches()]

    def losses(self, sampler: Sampler, batches: int | None = None) -> Tensor:
        """A sampler's losses (n, float64): of all prompts, or of those in the first batches.

        Of a goal whose losses are `relative` they are logarithms. Raises WrongUse where one is not
        finite.
        """
        goal, fine = self.setup.goal, self._all(self.setup.reference)["seen"]
        losses = goal.losses(self._all(sampler, batches)["seen"], fine)
        return _finite(_logarithms(losses) if goal.relative else losses, sampler)

    def checked(self, sampler: Sampler) -> Tensor:
        """The logarithm of the distance (n) that the goal's second encoder sees."""
        fine = self._all(self.setup.reference)["checked"]
        return _finite(_logarithms(distances(self._all(sampler)["checked"], fine)), sampler)

    def cost(self, calls: int) -> int:
        """The network evaluations of all pictures, of so many calls each."""
        return calls * self.run.evaluations_per_step

    def _all(self, sampler: Sampler, batches: int | None = None) -> Seen:
        parts = [self._look(sampler, batch) for batch in list(self.run.batches())[:batches]]
        return {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]}

    def _look(self, sampler: Sampler, batch: slice) -> Seen:
        key, goal, steps = (sampler.name, batch.start), self.setup.goal, sampler.steps
        if key not in self._seen:
            part = replace(self.run.part(batch), scheduler=sampler.scheduler)
            self._seen[key] = self.setup.work.do(
                sampler.calls * part.evaluations_per_step,
                lambda: goal.look(part, steps),
                *(part.inputs, self._aim, steps),
            )
        return self._seen[key]


def begun(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    guidance_scale: float | None,
    batch_size: int,
    seed: int,
    truncate: bool,
    options: Mapping[str, Any],
) -> Run:
    """The run of all prompts. Raises WrongUse for what are no prompts."""
    named = isinstance(prompts, Mapping) or hasattr(prompts, "columns")
    remedy = "give a list of texts, such as list(table['prompt'])"
    check(not named, "prompts", type(prompts).__name__, remedy)
    texts = listed(prompts)
    seeds = range(seed, seed + len(texts))
    return Run(pipe, texts, seeds, guidance_scale, batch_size, options, truncate)


def split(prompts: Sequence[str], first: int) -> tuple[list[int], list[int]]:
    """Two lists of places: of the prompts with one of the `first` distinct texts, and the others.

    Raises WrongUse unless `LEAST` distinct texts are left for the second.
    """
    texts = list(dict.fromkeys(prompts))
    known = "" if len(texts) == len(prompts) else f", of which {len(texts)} are distinct"
    needed = first + LEAST
    remedy = f"give at least {needed} distinct ones: {LEAST} for the verdict"
    check(len(texts) >= needed, "prompts", f"{len(prompts)} in number{known}", remedy)
    chosen = set(texts[:first])
    both = [], []  # type: tuple[list[int], list[int]]
    for place, text in enumerate(prompts):
        both[text not in chosen].append(place)
    return both


def some(run: Run, places: Sequence[int]) -> Run:
    """The run of some of the prompts, with their own seeds and options."""
    options, count = dict(run.options), len(run.prompts)
    for name, value in options.items():
        if calls.per_prompt(run.pipe, name, value, count):
            several = isinstance(value, list)
            options[name] = [value[n] for n in places] if several else value[list(places)]
    assert run.seeds is not None
    prompts, seeds = [run.prompts[n] for n in places], [run.seeds[n] for n in places]
    return replace(run, prompts=prompts, seeds=seeds, options=options)


def claimed(folder: str | os.PathLike | None, setup: Setup) -> Path | None:
    """The folder for what is drawn, in a folder for one setting.

    Raises WrongUse where the folder holds results for another one, and could not be written.
    """
    if folder is None:
        return None
    check(bool(str(folder)), "folder", "''", "name one")
    place = Path(folder)
    check_writable("folder", place)
    said = setup.described() | {"weights": of_pipeline(setup.run.pipe)}
    with locked(place):
        file = place / "setting.json"
        before = unseal(file) or said
        other = [name for name in {**said, **before} if before.get(name) != said.get(name)]
        what = f"{folder}, which has a result for another {', '.join(other)}"
        check(not other, "folder", what, "name another folder, or remove this one")
        seal(file, said)
    (place / "drawn").mkdir(exist_ok=True)
    return place / "drawn"


def _times(scheduler: Any) -> list[float]:
    """The times that a scheduler gives the network, to a thousandth."""
    return np.round(scheduler.timesteps.double().cpu().numpy(), 3).tolist()


def _logarithms(found: Tensor) -> Tensor:
    """log d, also of pictures that are the fine ones themselves."""
    return found.clamp(min=SMALLEST).log()


def _finite(losses: Tensor, sampler: Sampler) -> Tensor:
    remedy = "the network gave numbers that are not finite: run it in float32"
    check(bool(losses.isfinite().all()), "loss", f"of {sampler.name}", remedy)
    return losses
