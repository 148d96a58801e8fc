"""`tune`: the grid whose pictures are best, for one model, solver, guidance and number of steps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.metrics.encoders import Encoder
from asddim_lib.models.load import Pipeline
from asddim_lib.models.prompts import listed
from asddim_lib.pipeline.manifest import of_pipeline
from asddim_lib.pipeline.run import Run
from asddim_lib.progress import Progress
from asddim_lib.tuning.draw import Setup, Trials, Work, split
from asddim_lib.tuning.goals import Goal, goal_of
from asddim_lib.tuning.proposals import (
    MOST,
    QUICK,
    Plan,
    baselines,
    family,
    measured,
    measuring_cost,
    planned,
    recorded,
)
from asddim_lib.tuning.result import Tuned, TunedFor, result
from asddim_lib.tuning.search import pattern_search, race, race_cost
from asddim_lib.tuning.verify import CANDIDATE, CURRENT, by_text, decide


def tune(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    *,
    steps: int,
    guidance_scale: float | None = None,
    solver: str | None = None,
    goal: str | Goal = "embedding",
    encoder: str | Encoder | None = None,
    check_encoder: str | Encoder | None = None,
    budget: int | None = None,
    quick: bool = False,
    plan: Plan | None = None,
    batch_size: int = 8,
    seed: int = 0,
    truncate: bool = False,
    folder: str | os.PathLike | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Tuned:
    """Finds K timesteps for a pipeline, and replaces its scheduler only if their pictures win.

    A profile of a few prompts proposes a family of grids. Half of the distinct prompts choose among
    them and search on from the best. The other half compares the result with the pipeline's own
    scheduler, unchanged, in K steps, and with the grids that others would take. It is returned if
    it wins over each of them. A named grid is returned if it does. Otherwise nothing changes.

    - `steps`: K. `guidance_scale`: by default the pipeline's.
    - `solver`: one of `schedulers.solvers` for the grids; by default the pipeline's own, or DDIM
      (Euler) where that takes no grid.
    - `goal`: what pictures are compared by, "embedding" (of an `encoder`, as `encoder_for` takes
      it), "latents", or a `Goal`. A sampler that loses by the `check_encoder` is not returned.
    - `budget`: network evaluations to spend at most. `quick`: for 9 prompts, without a
      search (`QUICK`). `plan`: how much is measured, instead; `COMPARE` draws named grids alone.
    - `batch_size`: pictures that are drawn at once. `seed`: prompt i starts from the noise of seed
      `seed` + i. `truncate`: cuts prompts that are too long, which are refused otherwise.
    - `folder`: for one setting; what is drawn is kept in it, so that a stopped run continues, and
      `Tuned.save` may write there.
    - `progress`: called with what is being done, the evaluations spent, and those of the whole.
    - `options`: further arguments of the pipeline's call.

    Raises WrongUse for wrong use before anything is drawn, also for too few prompts and too small a
    budget, with how many are needed.
    """
    plan = plan or (QUICK if quick else Plan())
    texts = listed(prompts)
    seeds = range(seed, seed + len(texts))
    run = Run(pipe, texts, seeds, guidance_scale, batch_size, options, truncate)
    aim = goal_of(goal, pipe, encoder, check_encoder)
    setup = Setup(run, steps, aim, solver, plan.reference_steps, Work(progress=progress))
    plan, work = planned(plan, setup.config), setup.work
    first, second = split(run.prompts, plan.for_choice(len(set(run.prompts))))
    choice, verdict = setup.trials(first or second), setup.trials(second)
    limit = afforded(budget, plan, choice, verdict)
    if folder is not None:
        work.folder = TunedFor.of(setup).folder(folder) / "drawn"
        work.identity = of_pipeline(pipe)

    # What is measured, and what is proposed.
    profile = measured(setup, choice.run, plan) if plan.profile_prompts else None
    named, skipped = baselines(setup, plan, recorded(setup, choice.run, plan))
    grids, origin, known = dict(named), "", [*named.values(), setup.current_grid]
    if profile is not None:
        origin, grids[CANDIDATE] = candidate(choice, family(setup, profile), named, plan, limit)
    # The verdict, on the other prompts.
    work.doing = "verifying"
    drawn = {n: grid for n, grid in grids.items() if n != CANDIDATE or grid not in known}
    samplers = {CURRENT: setup.current, **{n: setup.sampler(g) for n, g in drawn.items()}}

    def judged(by: str) -> dict[str, Tensor]:
        texts = verdict.run.prompts
        return {name: by_text(verdict.losses(o, by=by), texts) for name, o in samplers.items()}

    decision = decide(judged("seen"), judged("checked") if aim.check else None)
    chosen_on = len(first) if plan.trials else 0
    return result(verdict, samplers, decision, grids, skipped, origin, chosen_on, plan.shown)


def afforded(budget: int | None, plan: Plan, choice: Trials, verdict: Trials) -> int:
    """How many evaluations may have been spent when the choice ends.

    Raises WrongUse where no verdict could be afforded, with the least that is needed.
    """
    whole = budget is None or (isinstance(budget, int) and budget > 0)
    check(whole, "budget", budget, "give a positive number of network evaluations")
    setup = choice.setup
    current, fine, steps = setup.current.calls, setup.reference.steps, setup.steps
    named, proposes = len(plan.baselines or ()), bool(plan.profile_prompts)
    before = measuring_cost(setup, plan)
    later = verdict.cost(current + (named + proposes) * steps + fine)
    later += plan.shown * setup.rows * (current + (2 if proposes else named) * steps + fine)
    least = full = 0
    if plan.trials:
        raced = race_cost(named + 1 + MOST, choice.sizes)
        least = setup.rows * steps * raced + choice.cost(fine)
        full = max(least, choice.cost(fine + plan.trials * steps))
    if budget is not None:
        needed = before + least + later
        check(budget >= needed, "budget", budget, f"give at least {needed}, or fewer prompts")
        full = min(full, budget - before - later)
    setup.work.total = before + full + later
    return before + full


def candidate(
    trials: Trials,
    proposed: Mapping[str, list[float]],
    named: Mapping[str, list[float]],
    plan: Plan,
    limit: int,
) -> tuple[str, list[float]]:
    """What competes with the named grids and the current one, and what it came of.

    It is the best of all of them and those `proposed`, moved while that helps and the limit of
    evaluations allows; without trials, the first that is proposed.
    """
    if not plan.trials:
        return next(iter(proposed.items()))
    setup, work, levels = trials.setup, trials.setup.work, trials.setup.levels

    def cost(grid: list[float], batches: int | None = None) -> float:
        return float(trials.losses(setup.sampler(grid), batches).mean())

    current = {} if setup.current_grid is None else {CURRENT: setup.current_grid}
    grids = {**proposed, **named, **current}
    work.doing = "comparing grids"
    name = race(cost, grids, trials.sizes)
    work.doing = "moving timesteps"
    room = limit - trials.cost(setup.steps)
    found = pattern_search(
        lambda timesteps: cost(levels.sigmas_at(timesteps)),
        levels.to_timesteps(grids[name]),
        setup.size,
        lambda: work.spent <= room,
    )
    moved = levels.sigmas_at(found)
    return (name if moved == grids[name] else f"{name}, moved"), moved
