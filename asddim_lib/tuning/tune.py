"""`tune`: the grid whose pictures are best, for one model, solver, guidance and number of steps."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from types import MappingProxyType
from typing import Any

from asddim_lib.errors import check
from asddim_lib.grids.grid import numbers
from asddim_lib.levels import Levels, completed, is_flow
from asddim_lib.metrics.encoders import Encoder
from asddim_lib.models.load import Pipeline
from asddim_lib.models.prompts import listed
from asddim_lib.pipeline.manifest import of_pipeline
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.place import holding, prepared, takes
from asddim_lib.schedulers.solvers import own_scheduler, solver_of
from asddim_lib.tuning.ahead import MOST as MOST_SHARES
from asddim_lib.tuning.ahead import best_share, check_told, verified
from asddim_lib.tuning.family import MOST, family, needing_a_path, own_grid, peer_names, peers
from asddim_lib.tuning.goals import Goal, goal_of
from asddim_lib.tuning.measured import check_derivatives, measure, recorded
from asddim_lib.tuning.plan import QUICK, Limits, Plan, evaluations_in
from asddim_lib.tuning.race import race_cost, searched
from asddim_lib.tuning.report import examples
from asddim_lib.tuning.result import Tuned
from asddim_lib.tuning.trials import Meter, Progress, Shelf, Trials
from asddim_lib.tuning.verify import Acceptance, accept, confirm, least_pairs


def tune(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    *,
    steps: int,
    guidance_scale: float | None = 7.5,
    solver: str | None = None,
    goal: str | Goal = "embedding",
    encoder: str | Encoder | None = None,
    check_encoder: str | Encoder | None = None,
    budget: int | None = None,
    minutes: float | None = None,
    quick: bool = False,
    look_ahead: bool = False,
    plan: Plan | None = None,
    batch_size: int = 8,
    seed: int = 0,
    truncate: bool = False,
    folder: str | os.PathLike | None = None,
    progress: Progress = lambda doing, spent, total: None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Tuned:
    """Finds K timesteps for a pipeline, and hands them out only if their pictures win.

    A profile of a few prompts proposes a family of grids; half of the prompts choose among them and
    search on from the best; the other half compares the result with every peer's grid. Unless it
    wins over the best peer, that peer is handed out: the result says which, and why.

    `solver` is a name of `schedulers.solvers`; by default the pipeline's scheduler draws, or DDIM
    (Euler) where that takes no grid. `goal` is one of `tune.goals`, its `encoder` as `encoder_for`
    takes it; a candidate that loses by the `check_encoder` is not handed out. `budget` bounds the
    network evaluations, or `minutes` do, by `evaluations_in`. `quick` is the plan `QUICK`, about
    ten pictures. With `look_ahead` it is also tried to tell the network other times than the steps'
    own: one number, handed out if it wins over the same grid without it. Prompt i starts from the
    noise of seed `seed` + i; `options` go to the pipeline. In a `folder` what was drawn is kept: a
    run that was stopped goes on to the same grid. `progress` is told what is done. Raises WrongUse
    for wrong use, and, before anything is drawn, for too few prompts and too small a budget, with
    how many are needed.
    """
    prompts = listed(prompts)
    seeds, limits = range(seed, seed + len(prompts)), Limits(budget, minutes)
    given = pipe, prompts, seeds, guidance_scale, batch_size, options, truncate
    run = Run(*given, shift_steps=steps)
    kind, order = _solver(run, solver, steps)
    aim = goal_of(goal, pipe, encoder, check_encoder)
    place = None if folder is None else Path(folder)
    shelf = Shelf(place, "" if place is None else of_pipeline(pipe))
    plan, meter = plan or (QUICK if quick else Plan()), Meter(progress)
    drawn = run.prepared_with(kind)
    return _Tuning(drawn, steps, order, aim, plan, shelf, meter, look_ahead).tuned(limits)


def _solver(run: Run, solver: str | None, steps: int) -> tuple[Any, int]:
    """The scheduler class that draws, and its order.

    It is the one of ours that can hold a grid. Raises WrongUse where there is none.
    """
    own = run.pipe.scheduler
    grid = numbers(run.config, steps, {"allocation": "trailing"})
    if solver is None and takes(own):
        return type(holding(own, grid, run.mu)), min(2, completed(own).get("solver_order", 1))
    kind, order = (own_scheduler(own), 1) if solver is None else solver_of(solver, own)
    return type(holding(prepared(kind, own, run.end), grid, run.mu)), order


@dataclass
class _Tuning:
    """One call of `tune`, whose run draws with the scheduler class that is handed out."""

    run: Run
    steps: int
    order: int
    goal: Goal
    plan: Plan
    shelf: Shelf
    meter: Meter
    look_ahead: bool = False

    def __post_init__(self) -> None:
        plan, count = self.plan, len(self.run.prompts)
        if self.look_ahead:
            check_told(self.run.scheduler, plan.trials)
        check_derivatives(self.run, self.goal, plan)
        self.goal.check_prompts(self.run)
        self.fine_steps = min(max(plan.reference_steps, 2 * self.steps), len(self.run.schedule))
        self.rows = self.run.evaluations_per_step // count
        self.names = peer_names(self.run.config, plan.peers)
        self.own = own_grid(self.run, self.steps)
        known, _ = peers(self.run.config, self.steps, self.names, None, self.own)
        waiting = needing_a_path(self.names) if plan.path_prompts else []
        self.most_peers = len(known) + len(waiting)
        apart, least = plan.kept_apart(count), least_pairs(self.most_peers)
        remedy = f"fewer cannot show a win over {self.most_peers} peers"
        remedy = f"give at least {plan.needed(least)}: {remedy}"
        check(count - apart >= least, "prompts", f"{count} in number", remedy)
        self.fit = self._trials(slice(0, apart)) if plan.trials else None
        self.held = self._trials(slice(apart, None))

    def _trials(self, part: slice) -> Trials:
        return Trials(self.run.part(part), self.goal, self.fine_steps, self.shelf, self.meter)

    def tuned(self, limits: Limits) -> Tuned:
        """The whole tuning."""
        limit, tools = self._limit(limits), (self.plan, self.shelf, self.meter)
        profile = measure(self.run, self.goal, *tools)
        path, config = recorded(self.run, *tools), self.run.config
        rivals, left_out = peers(config, self.steps, self.names, path, self.own, self.order)
        ours = family(config, self.steps, profile, self.order)
        name, grid = next(iter(ours.items()))
        if self.fit is not None:
            name, grid = searched(self.fit, {**ours, **rivals}, limit)
        accepted = self._verified(grid, rivals)
        best_name = "tuned" if accepted.accepted else accepted.best
        best = grid if accepted.accepted else rivals[accepted.best]
        share, told = self._told(best, rivals)
        ahead = share if told is not None and told.accepted else 0.0
        teller = self.held.telling(ahead) if ahead else self.held
        columns = {"tuned" if accepted.accepted else "candidate": (self.held, grid)}
        columns |= {f"{best_name}, told {ahead:+g}": (teller, best)} if ahead else {}
        page, shown = self._shown(rivals, accepted.best, columns)
        scheduler = holding(teller.run.scheduler, best, self.run.mu)
        self.meter.end()
        return Tuned(
            grid=best,
            name=name if accepted.accepted else accepted.best,
            candidate=grid,
            rivals=rivals,
            left_out=left_out,
            acceptance=accepted,
            evaluations=self.meter.spent,
            setting={**self._setting(), **shown},
            look_ahead=ahead,
            share=share,
            told=told,
            scheduler_config=json.loads(scheduler.to_json_string()),
            sheet=page,
        )

    def _limit(self, limits: Limits) -> int:
        """How many evaluations may have been spent when the choice ends.

        Raises WrongUse where no verdict could be afforded, with the least that is needed.
        """
        plan, budget = self.plan, limits.budget
        if limits.minutes is not None:
            tools = self.steps, self.shelf, self.meter
            budget = evaluations_in(limits.minutes, self.held.run, self.goal, *tools)
        before = self.meter.spent + plan.measuring_cost(self.rows, self.goal)
        later = self.held.wanted_cost + self.held.cost((self.most_peers + 1) * self.steps)
        later += plan.shown * self.rows * (4 * self.steps + self.fine_steps) + self._told_cost
        least, most = 0, 0
        if self.fit is not None:
            race = race_cost(self.fit.run, self.most_peers + MOST, self.steps)
            least = self.fit.wanted_cost + race
            most = self.fit.wanted_cost + max(race, self.fit.cost(plan.trials * self.steps))
        if budget is not None:
            limits.check(budget, before + least + later)
            most = min(most, budget - before - later)
        self.meter.total = before + most + later
        return before + most

    def _verified(self, grid: list[int], rivals: dict[str, list[int]]) -> Acceptance:
        """The verdict on the prompts that were held out."""
        self.meter.doing = "verifying"
        others = {name: self.held(laid) for name, laid in rivals.items()}
        found = accept(self.held(grid), others, self.goal.test)
        if getattr(self.goal, "check", None) is None:
            return found
        return confirm(found, self.held.checked(grid), self.held.checked(rivals[found.best]))

    @property
    def _told_cost(self) -> int:
        """The network evaluations of all that is tried of other times, and of the verdict."""
        if not self.look_ahead or self.fit is None:
            return 0
        return MOST_SHARES * self.fit.cost(self.steps) + self.held.cost(self.steps)

    def _told(
        self, grid: list[int], rivals: dict[str, list[int]]
    ) -> tuple[float, Acceptance | None]:
        """The best share to look ahead by on a grid, and the verdict on it, if it is not 0."""
        if not self.look_ahead or self.fit is None:
            return 0.0, None
        self.meter.doing = "telling other times"
        share = best_share(self.fit, grid)
        if share == 0:
            return 0.0, None
        self.meter.doing = "verifying"
        checked = getattr(self.goal, "check", None) is not None
        return share, verified(self.held, grid, share, rivals, checked)

    def _shown(
        self,
        rivals: dict[str, list[int]],
        best: str,
        ours: dict[str, tuple[Trials, list[int]]],
    ) -> tuple[bytes, dict[str, Any]]:
        """The sheet of a few held-out prompts, and what is on it."""
        if not self.plan.shown:
            return b"", {}
        few = slice(0, self.plan.shown)
        columns = {f"{best}, best peer": (self.held, rivals[best])}
        if "trailing" in rivals:
            columns["trailing"] = (self.held, rivals["trailing"])
        different: dict[str, tuple[Run, list[int]]] = {}
        for name, (drawn, grid) in {**columns, **ours}.items():
            seen = any(grid == other and drawn is self.held for _, other in different.values())
            if not seen:
                different[name] = (drawn.run.part(few), grid)
        page, width, height = examples(different, self.fine_steps, self.shelf, self.meter)
        shown = self.held.run.part(few).prompts
        return page, {"width": width, "height": height, "shown": list(shown)}

    def _setting(self) -> dict[str, Any]:
        """What the grid is for, and on what it was chosen."""
        run, config = self.run, self.run.config
        encoder, second = (getattr(self.goal, name, None) for name in ("encoder", "check"))
        shift = {"shift": Levels.from_diffusers(config).shift} if is_flow(config) else {}
        return {
            "model": str(getattr(run.pipe, "name_or_path", None) or ""),
            "pipeline": type(run.pipe).__name__,
            "solver": type(run.scheduler).__name__,
            "steps": self.steps,
            "guidance_scale": run.guidance_scale,
            "options": {name: shorten(str(value), 80) for name, value in run.options.items()},
            "flow": is_flow(config),
            **shift,
            "num_train_timesteps": len(run.schedule),
            "evaluations_per_step": self.rows,
            "goal": self.goal.name,
            "relative": self.goal.relative,
            "encoder": getattr(encoder, "name", ""),
            "check_encoder": getattr(second, "name", ""),
            "reference_steps": self.fine_steps,
            "chosen_on": len(self.fit.run.prompts) if self.fit else 0,
            "verified_on": len(self.held.run.prompts),
        }
