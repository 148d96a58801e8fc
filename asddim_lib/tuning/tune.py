"""`tune`: the grid whose pictures are best, for one model, solver, guidance and number of steps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from asddim_lib.errors import check
from asddim_lib.metrics.encoders import Encoder
from asddim_lib.models.load import Pipeline
from asddim_lib.models.prompts import listed
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.draw import Progress, Setup, Trials, Work, split
from asddim_lib.tuning.goals import Goal, goal_of
from asddim_lib.tuning.proposals import (
    MOST,
    QUICK,
    Plan,
    baseline_names,
    baselines,
    check_derivatives,
    family,
    measured,
    needing_a_path,
    recorded,
)
from asddim_lib.tuning.result import Tuned, result
from asddim_lib.tuning.search import pattern_search, race, race_cost
from asddim_lib.tuning.verify import CANDIDATE, CURRENT, Decision, by_text, decide


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
      search (`QUICK`). `plan`: how much is measured, instead.
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
    check_derivatives(run, aim, plan)
    names = baseline_names(setup.config, plan.baselines)
    first, second = split(run.prompts, plan.for_choice(len(set(run.prompts))))
    choice, verdict = setup.trials(first), setup.trials(second)
    limit = afforded(budget, plan, names, choice, verdict)
    setup.keep(folder)

    # What is measured: the profile, and a path for baselines that are searched on one.
    profile = measured(setup, choice.run, plan)
    path = recorded(setup, choice.run, plan.path_prompts, plan.path_steps)
    # What is proposed: a family of grids of the profile, beside the named baselines.
    named, skipped = baselines(setup, names, path)
    proposed = family(setup, profile)
    # The race among them all, and the search from its winner.
    origin, grid = next(iter(proposed.items()))
    if plan.trials:
        current = {} if setup.current_grid is None else {CURRENT: setup.current_grid}
        origin, grid = best_of(choice, {**proposed, **named, **current}, limit)
    # The verdict, on the other prompts.
    setup.work.doing = "verifying"
    samplers = {CURRENT: setup.current, **{n: setup.sampler(g) for n, g in named.items()}}
    if grid not in (*named.values(), setup.current_grid):
        samplers[CANDIDATE] = setup.sampler(grid)
    decision = judged(verdict, samplers)
    # What is returned.
    shown = [n for n in samplers if n in (CURRENT, CANDIDATE, decision.returned)]
    return result(
        verdict,
        samplers,
        decision,
        {**named, CANDIDATE: grid},
        skipped=skipped,
        origin=origin,
        chosen_on=len(first) if plan.trials else 0,
        shown=shown,
        examples_of=plan.shown,
        needed=plan.needed,
    )


def afforded(
    budget: int | None, plan: Plan, names: Sequence[str], choice: Trials, verdict: Trials
) -> int:
    """How many evaluations may have been spent when the choice ends.

    Raises WrongUse where no verdict could be afforded, with the least that is needed.
    """
    whole = budget is None or (isinstance(budget, int) and budget > 0)
    check(whole, "budget", budget, "give a positive number of network evaluations")
    setup = choice.setup
    known, _ = baselines(setup, names, None)
    most = len(known) + (len(needing_a_path(names)) if plan.path_prompts else 0)
    current, fine, steps = setup.current.calls, setup.reference.steps, setup.steps
    before = plan.measuring_cost(setup.rows, setup.goal)
    later = verdict.cost(current + (most + 1) * steps + fine)
    later += plan.shown * setup.rows * (current + 2 * steps + fine)
    least = full = 0
    if plan.trials:
        least = setup.rows * steps * race_cost(most + 1 + MOST, choice.sizes) + choice.cost(fine)
        full = max(least, choice.cost(fine + plan.trials * steps))
    if budget is not None:
        needed = before + least + later
        check(budget >= needed, "budget", budget, f"give at least {needed}, or fewer prompts")
        full = min(full, budget - before - later)
    setup.work.total = before + full + later
    return before + full


def best_of(
    trials: Trials, grids: Mapping[str, list[float]], limit: int
) -> tuple[str, list[float]]:
    """The best of some grids, moved while that helps and the limit of evaluations allows."""
    setup, work, levels = trials.setup, trials.setup.work, trials.setup.levels

    def cost(grid: list[float], batches: int | None = None) -> float:
        return float(trials.losses(setup.sampler(grid), batches).mean())

    work.doing = "comparing grids"
    name = race(cost, grids, trials.sizes)
    work.doing = "moving timesteps"
    room = limit - trials.cost(setup.steps)
    found = pattern_search(
        lambda timesteps: cost(levels.at(timesteps)),
        levels.whole(grids[name]),
        setup.size,
        lambda: work.spent <= room,
    )
    moved = levels.at(found)
    return (name if moved == grids[name] else f"{name}, moved"), moved


def judged(trials: Trials, samplers: Mapping[str, Any]) -> Decision:
    """Which sampler is returned, by the pictures of prompts that served no choice."""
    texts = trials.run.prompts
    losses = {name: by_text(trials.losses(one), texts) for name, one in samplers.items()}
    if getattr(trials.setup.goal, "check", None) is None:
        return decide(losses)
    return decide(losses, {n: by_text(trials.checked(one), texts) for n, one in samplers.items()})
