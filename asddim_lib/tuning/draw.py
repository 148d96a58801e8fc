"""Samplers that draw the same prompts from the same noise, and how far each ends from the fine one.

A sampler is a scheduler as it is returned: it is put into the pipeline, which is called with the
number of steps and nothing else that says where they go. So what is judged is what a user gets.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asddim_lib.cache import kept
from asddim_lib.configs import completed
from asddim_lib.digest import of_values
from asddim_lib.errors import WrongUse, check
from asddim_lib.grids.current import printed_sigmas
from asddim_lib.grids.grid import sigmas
from asddim_lib.levels import Levels
from asddim_lib.pipeline.run import Run
from asddim_lib.progress import Progress
from asddim_lib.schedulers.place import counterpart, drawing, with_grid
from asddim_lib.schedulers.solvers import own_scheduler, solver_of
from asddim_lib.tuning.goals import Goal, Seen
from asddim_lib.tuning.verify import CURRENT, LEAST

#: diffusers' classes whose solver ours have.
SAME = (
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)
#: The fine solution's sampler.
REFERENCE = "fine"
#: A distance below this counts as this: its logarithm is finite.
SMALLEST = 1e-6


@dataclass
class Work:
    """Network evaluations: counted, reported before they are made, their results kept in a folder.

    Results that a stopped run left in the `folder` are read and counted as if drawn again.
    `identity` is the pipeline's hash. The `drawn` evaluations of this process took `seconds`.
    """

    folder: Path | None = None
    identity: str = ""
    progress: Progress | None = None
    spent: int = 0
    total: int = 0
    doing: str = ""
    drawn: int = 0
    seconds: float = 0.0

    def do(self, evaluations: int, make: Callable[[], Seen], *depends: Any) -> Seen:
        """The result of `make`, or the folder's file for the same `depends`."""
        self.report()
        self.spent += evaluations

        def timed() -> Seen:
            start, value = time.perf_counter(), make()
            self.seconds += time.perf_counter() - start
            self.drawn += evaluations
            return value

        name = f"{of_values(self.identity, *depends)}.safetensors" if self.folder else ""
        return kept(self.folder / name if self.folder else None, timed)

    def report(self, doing: str = "") -> None:
        """Calls `progress`, from now on with `doing`."""
        self.doing = doing or self.doing
        if self.progress is not None:
            self.progress(self.doing, self.spent, max(self.total, self.spent))


@dataclass(frozen=True, eq=False)
class Sampler:
    """A scheduler that draws in `steps` by so many `calls` of the network."""

    name: str
    scheduler: Any
    steps: int
    calls: int


@dataclass
class Setup:
    """A pipeline at one guidance scale, and who draws: its current sampler, grids, the reference.

    `solver` names one of `schedulers.solvers`; by default grids are drawn by the pipeline's own
    solver, or by DDIM (Euler) where that takes no grid. The reference draws in `reference_steps`,
    or in twice as many as `steps`. Raises WrongUse for wrong use, and for a pipeline that sets
    levels of its own whatever its scheduler's grid.
    """

    run: Run
    steps: int
    goal: Goal
    solver: str | None = None
    reference_steps: int = 64
    work: Work = field(default_factory=Work)

    def __post_init__(self) -> None:
        scheduler = self.run.pipe.scheduler
        self.run = replace(self.run, shift_steps=self.steps)
        self.mu, self.config = self.run.mu, self.run.config
        self.levels = Levels.from_diffusers(self.config)
        self.size = len(self.levels)
        if self.solver is None:
            kind = counterpart(scheduler)
            self.order = min(2, completed(scheduler).get("solver_order", 1)) if kind else 1
        else:
            kind, self.order = solver_of(self.solver, scheduler)
            kind = counterpart(drawing(kind, scheduler))
        self.plain = drawing(kind or own_scheduler(scheduler), scheduler)
        even = sigmas(self.config, self.steps, allocation="trailing", shifted=True)
        self.run.check_grid_used(self.sampler(even).scheduler, self.steps)

    @property
    def rows(self) -> int:
        """Network evaluations of one step for one prompt."""
        return self.run.evaluations_per_step // len(self.run.prompts)

    @cached_property
    def current(self) -> Sampler:
        """The pipeline as the user has it: a copy of its scheduler, whose state stays."""
        scheduler = self.run.pipe.scheduler
        asked = self.run.asked(scheduler, self.steps)
        return Sampler(CURRENT, copy.deepcopy(scheduler), self.steps, len(asked.timesteps))

    @cached_property
    def current_grid(self) -> list[float] | None:
        """The current sampler's sigmas; None unless `sampler` draws the same with them."""
        scheduler = self.run.pipe.scheduler
        # diffusers' DDIM steps by T // K, whatever its timesteps: linspace's lie farther apart.
        ddim = type(scheduler).__name__ == "DDIMScheduler"
        if ddim and self.config["timestep_spacing"] == "linspace":
            return None
        solvers = tuple(kind for kind in type(self.plain).__mro__ if kind.__name__ in SAME)
        asked = self.run.asked(scheduler, self.steps)
        try:
            times = self.levels.to_timesteps(printed_sigmas(asked, self.levels))
            grid = self.levels.sigmas_at(times)
            ours = self.run.asked(self.sampler(grid).scheduler, self.steps)
        except WrongUse:
            return None
        theirs, mine = (one.timesteps.cpu().double() for one in (asked, ours))
        same = len(theirs) == len(mine) and torch.allclose(theirs, mine, rtol=0, atol=1e-3)
        return grid if same and isinstance(asked, solvers) else None

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
        even = sigmas(self.config, steps, allocation="trailing", shifted=True)
        return Sampler(REFERENCE, self._placed(plain, even), steps, steps)

    def sampler(self, grid: Sequence[float]) -> Sampler:
        """The solver on a grid of K + 1 sigmas: its scheduler is ready for `pipe.scheduler`."""
        times = self.levels.to_timesteps(grid)
        scheduler = self._placed(self.plain, grid)
        return Sampler(" ".join(map(str, times)), scheduler, len(times), len(times))

    def _placed(self, plain: Any, grid: Sequence[float]) -> Any:
        """`plain` on a grid, which ends where it ends: the current scheduler's end may differ."""
        begins = self.levels.grid_of(grid)[:-1]
        return with_grid(plain, Levels.from_diffusers(plain, self.mu).ended(begins), self.mu)

    def drawn(self, run: Run, sampler: Sampler, look: Callable[[Run, int], Seen], by: str) -> Seen:
        """What `look` sees in a run's pictures by a sampler; `by` names all that it depends on."""
        part, steps = replace(run, scheduler=sampler.scheduler), sampler.steps
        cost = sampler.calls * part.evaluations_per_step
        return self.work.do(cost, lambda: look(part, steps), part.inputs, by, steps)

    def trials(self, places: Sequence[int]) -> Trials:
        """The pictures of some of the prompts."""
        return Trials(self, self.run.part(places))


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

    def losses(self, sampler: Sampler, batches: int | None = None, by: str = "seen") -> Tensor:
        """A sampler's losses (n, float64): of all prompts, or of those in the first batches.

        They are logarithms if the goal is `relative`. With `by` "checked" they are by the goal's
        second encoder. Raises WrongUse if one is not finite.
        """
        goal, fine = self.setup.goal, self._all(self.setup.reference)[by]
        losses = goal.losses(self._all(sampler, batches)[by], fine)
        losses = losses.clamp(min=SMALLEST).log() if goal.relative else losses
        remedy = "the network gave numbers that are not finite: run it in float32"
        check(bool(losses.isfinite().all()), "loss", f"of {sampler.name}", remedy)
        return losses

    def cost(self, calls: int) -> int:
        """The network evaluations of all pictures, of so many calls each."""
        return calls * self.run.evaluations_per_step

    def _all(self, sampler: Sampler, batches: int | None = None) -> Seen:
        parts = [self._look(sampler, batch) for batch in list(self.run.batches())[:batches]]
        return {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]}

    def _look(self, sampler: Sampler, batch: slice) -> Seen:
        key, look = (sampler.name, batch.start), self.setup.goal.look
        if key not in self._seen:
            self._seen[key] = self.setup.drawn(self.run.part(batch), sampler, look, self._aim)
        return self._seen[key]


def split(prompts: Sequence[str], first: int) -> tuple[list[int], list[int]]:
    """Two lists of places: of the prompts with one of the `first` distinct texts, and the others.

    Raises WrongUse unless `LEAST` distinct texts are left for the second.
    """
    texts = list(dict.fromkeys(prompts))
    known = "" if len(texts) == len(prompts) else f", {len(texts)} of them distinct"
    uses = f": {first} to choose a grid by, and {LEAST} for the verdict"
    remedy = f"give {first + LEAST} or more distinct ones{uses if first else ' for a verdict'}"
    check(len(texts) >= first + LEAST, "prompts", f"a list of {len(prompts)}{known}", remedy)
    chosen = set(texts[:first])
    return (
        [place for place, text in enumerate(prompts) if text in chosen],
        [place for place, text in enumerate(prompts) if text not in chosen],
    )
