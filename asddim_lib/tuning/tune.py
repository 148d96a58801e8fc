"""`tune`: the grid whose pictures are best, for one model, solver, guidance and number of steps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from asddim_lib.errors import check
from asddim_lib.metrics.encoders import Encoder
from asddim_lib.models.load import Pipeline
from asddim_lib.tuning.draw import Progress, Sampler, Setup, Trials, Work, begun, claimed, split
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
from asddim_lib.tuning.report import examples
from asddim_lib.tuning.result import Tuned, result
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

    A profile of a few prompts proposes a family of grids; half of the distinct prompts choose among
    them and search on from the best; the other half compares the result with the pipeline's own
    scheduler, drawn as it is at K steps, and with the grids that others would take. It is returned
    if it wins over each of them. A named grid is returned if it does. Otherwise nothing changes.

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
    run = begun(pipe, prompts, guidance_scale, batch_size, seed, truncate, options)
    whole = budget is None or (isinstance(budget, int) and budget > 0)
    check(whole, "budget", budget, "give a positive number of network evaluations")
    aim = goal_of(goal, pipe, encoder, check_encoder)
    setup = Setup(run, steps, aim, solver, plan.reference_steps, Work(progress=progress))
    check_derivatives(run, aim, plan)
    tuning = _Tuning(setup, plan)
    limit = tuning.limit(budget)
    setup.work.open(claimed(folder, setup), pipe)
    return tuning.tuned(limit)


class _Tuning:
    """One call of `tune`."""

    def __init__(self, setup: Setup, plan: Plan) -> None:
        self.setup, self.plan, prompts = setup, plan, setup.run.prompts
        self.names = baseline_names(setup.config, plan.baselines)
        known, _ = baselines(setup, self.names, None)
        self.most = len(known) + (len(needing_a_path(self.names)) if plan.path_prompts else 0)
        first, second = split(prompts, plan.for_choice(len(set(prompts))))
        self.choice, self.verdict = setup.trials(first), setup.trials(second)

    def limit(self, budget: int | None) -> int:
        """How many evaluations may have been spent when the choice ends.

        Raises WrongUse where no verdict could be afforded, with the least that is needed.
        """
        setup, plan, steps = self.setup, self.plan, self.setup.steps
        before = plan.measuring_cost(setup.rows, setup.goal)
        verdict = setup.current.calls + (self.most + 1) * steps + setup.reference.steps
        later = self.verdict.cost(verdict)
        later += plan.shown * setup.rows * (setup.current.calls + 2 * steps + setup.reference.steps)
        least = most = 0
        if plan.trials:
            sizes = self.choice.sizes
            racing = setup.rows * steps * race_cost(self.most + 1 + MOST, sizes)
            fine = self.choice.cost(setup.reference.steps)
            least = fine + racing
            most = fine + max(racing, self.choice.cost(plan.trials * steps))
        if budget is not None:
            needed = before + least + later
            check(budget >= needed, "budget", budget, f"give at least {needed}, or fewer prompts")
            most = min(most, budget - before - later)
        setup.work.total = before + most + later
        return before + most

    def tuned(self, limit: int) -> Tuned:
        """The whole tuning."""
        setup, plan, work = self.setup, self.plan, self.setup.work
        profile = measured(setup, self.choice.run, plan)
        path = recorded(setup, self.choice.run, plan.path_prompts, plan.path_steps)
        named, skipped = baselines(setup, self.names, path)
        ours = family(setup, profile)
        origin, grid = next(iter(ours.items()))
        if plan.trials:
            own = {} if setup.current_grid is None else {CURRENT: setup.current_grid}
            origin, grid = self._searched({**ours, **named, **own}, limit)
        work.doing = "verifying"
        samplers = {CURRENT: setup.current, **{n: setup.sampler(g) for n, g in named.items()}}
        if grid not in (*named.values(), setup.current_grid):
            samplers[CANDIDATE] = setup.sampler(grid)
        decision = verdict(self.verdict, samplers)
        shown = {n: s for n, s in samplers.items() if n in (CURRENT, CANDIDATE, decision.returned)}
        sheet = examples(self.verdict, shown, plan.shown)
        return result(
            setup,
            self.verdict,
            samplers,
            decision,
            {**named, CANDIDATE: grid},
            origin=origin,
            skipped=skipped,
            chosen_on=len(self.choice.run.prompts) if plan.trials else 0,
            needed=plan.needed,
            sheet=sheet,
        )

    def _searched(self, grids: dict[str, list[int]], limit: int) -> tuple[str, list[int]]:
        """The best of some grids, moved while that helps and the limit of evaluations allows."""
        trials, work, steps = self.choice, self.setup.work, self.setup.steps

        def cost(grid: list[int], batches: int | None = None) -> float:
            return float(trials.losses(self.setup.sampler(grid), batches).mean())

        work.doing = "comparing grids"
        name = race(cost, grids, trials.sizes)
        work.doing = "moving timesteps"
        room = limit - trials.cost(steps)
        found = pattern_search(cost, grids[name], self.setup.size, lambda: work.spent <= room)
        return (name if found == grids[name] else f"{name}, moved"), found


def verdict(trials: Trials, samplers: Mapping[str, Sampler]) -> Any:
    """Which of some samplers is returned, by the pictures of prompts that served no choice."""
    texts = trials.run.prompts
    losses = {name: by_text(trials.losses(one), texts) for name, one in samplers.items()}
    if getattr(trials.setup.goal, "check", None) is None:
        return decide(losses)
    return decide(losses, {n: by_text(trials.checked(one), texts) for n, one in samplers.items()})
