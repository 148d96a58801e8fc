"""`tune`: the grid whose pictures are best, for one model, solver, guidance and number of steps."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from asddim_lib.errors import check
from asddim_lib.evidence.profile import SensitivityProfile
from asddim_lib.grids.grid import numbers
from asddim_lib.measure.calibrate import calibrate
from asddim_lib.measure.run import Run
from asddim_lib.metrics.encoders import Encoder
from asddim_lib.models.load import Pipeline
from asddim_lib.schedulers.laying import takes
from asddim_lib.schedulers.solvers import own_scheduler, solver_of
from asddim_lib.tune.family import family, peers
from asddim_lib.tune.goals import Embedding, Goal, goal_of
from asddim_lib.tune.result import Tuned
from asddim_lib.tune.search import pattern_search
from asddim_lib.tune.trials import Trials
from asddim_lib.tune.verify import accept, least_pairs

#: What the pipeline's own scheduler lays, as a peer.
OWN = "as it is"


@dataclass(frozen=True)
class Plan:
    """How much a tuning measures.

    `profile_prompts` are measured over `profile_steps`, with one sweep of each kind; `path_prompts`
    over `path_steps`, for the peers that are searched on a path. `trials` grids are tried at most,
    each on half of the prompts. Pictures are compared with those of `reference_steps`.
    """

    profile_prompts: int = 4
    profile_steps: int = 32
    path_prompts: int = 8
    path_steps: int = 60
    trials: int = 40
    reference_steps: int = 100


#: About the cost of ten guided pictures of 50 steps: a density is laid and verified, not searched.
QUICK = Plan(1, 16, path_prompts=0, trials=0, reference_steps=20)


def tune(
    pipe: Pipeline,
    prompts: list[str],
    *,
    steps: int,
    guidance_scale: float | None = 7.5,
    solver: str | None = None,
    goal: str | Goal = "embedding",
    encoder: str | Encoder | None = None,
    budget: int | None = None,
    quick: bool = False,
    plan: Plan | None = None,
    batch_size: int = 8,
    seed: int = 0,
    truncate: bool = False,
    folder: str | os.PathLike | None = None,
    progress: Callable[[str, int], None] = lambda doing, spent: None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Tuned:
    """Finds K timesteps for a pipeline, and hands them out only if their pictures win.

    A profile of a few prompts proposes a family of grids; half of the prompts choose among them and
    search on from the best; the other half compares the result with every peer's grid. Unless it
    wins over the best peer, that peer is handed out: the result says which, and why.

    `solver` is a name of `schedulers.solvers`, by default that of the pipeline's scheduler; `goal`
    one of `tune.goals`, whose image `encoder` is `encoder_for`'s. `budget` bounds the network
    evaluations, and `quick` costs about ten pictures. Prompt i starts from the noise of seed
    `seed` + i; `options` go to the pipeline. With a `folder`, what was drawn is kept there, and a
    run that was stopped goes on to the same grid. `progress` is told what is done, and what was
    spent. Raises WrongUse for too few prompts or too small a budget, with how many are needed.
    """
    seeds = range(seed, seed + len(prompts))
    run = Run(pipe, prompts, seeds, guidance_scale, batch_size, options, truncate)
    kind, order = _solver(pipe, solver)
    plan = plan or (QUICK if quick else Plan())
    place = Path(folder) if folder is not None else None
    aim = goal_of(goal, pipe, encoder)
    spent, profile, rivals = _measured(run, steps, order, aim, plan, place, progress)
    drawn = run.prepared_with(kind)
    half = len(prompts) // 2 if plan.trials else 0
    held = drawn.part(slice(half, None))
    _check_enough(len(prompts), half, len(rivals))
    ours = family(run.config, steps, profile, order)
    name, grid = next(iter(ours.items()))
    checked = Trials(held, aim, plan.reference_steps, place)
    later = checked.wanted_cost + checked.cost((len(rivals) + 1) * steps)
    if half:
        fit = Trials(drawn.part(slice(0, half)), aim, plan.reference_steps, place)
        most = fit.wanted_cost + fit.cost(plan.trials * steps)
        limit = _limit(budget, spent + later, fit.wanted_cost, most)
        name, grid = _searched(fit, {**ours, **rivals}, limit, progress)
        spent += fit.spent
    progress("verifying", spent)
    losses = {rival: checked(laid) for rival, laid in rivals.items()}
    accepted = accept(checked(grid), losses)
    best = grid if accepted.accepted else rivals[accepted.best]
    return Tuned(
        grid=best,
        name=name if accepted.accepted else accepted.best,
        candidate=grid,
        rivals=rivals,
        acceptance=accepted,
        evaluations=spent + checked.spent,
        setting=_setting(run, steps, kind, aim, len(prompts), half),
    )


def _solver(pipe: Pipeline, solver: str | None) -> tuple[Any, int]:
    """The scheduler class that draws, and its order."""
    own = pipe.scheduler
    if solver is not None:
        return solver_of(solver, own)
    kind = type(own) if takes(own) else own_scheduler(own)
    return kind, 2 if "solver_order" in own.config else 1


def _measured(
    run: Run,
    steps: int,
    order: int,
    goal: Goal,
    plan: Plan,
    folder: Path | None,
    progress: Callable[[str, int], None],
) -> tuple[int, SensitivityProfile, dict[str, list[int]]]:
    """The evaluations spent, the profile, and the peers' grids."""
    progress("measuring the model", 0)
    seen = isinstance(goal, Embedding)
    assert run.seeds is not None
    profile = calibrate(
        run.pipe,
        list(run.prompts[: plan.profile_prompts]),
        guidance_scale=run.guidance_scale,
        num_steps=plan.profile_steps,
        estimator="path",
        adjoint_probes=0 if seen else 1,
        feature_probes=1 if seen else 0,
        encoder=goal.encoder if isinstance(goal, Embedding) else None,
        batch_size=run.batch_size,
        seed=run.seeds[0],
        truncate=run.truncate,
        cache=folder,
        **run.options,
    )
    spent = profile.evaluations
    path = None
    if plan.path_prompts:
        part = run.part(slice(0, plan.path_prompts))
        path = part.path(plan.path_steps)
        spent += len(path) * part.evaluations_per_step
    rivals = peers(run.config, steps, path, order)
    own = numbers(run.config, steps, {})
    return spent, profile, rivals if own in rivals.values() else {OWN: own, **rivals}


def _check_enough(count: int, half: int, rivals: int) -> None:
    """A verdict needs so many pairs that it could be significant at all."""
    least = least_pairs(rivals)
    needed = 2 * least if half else least
    remedy = f"give at least {needed}: fewer cannot show a win over {rivals} peers"
    check(count - half >= least, "prompts", f"{count} prompts", remedy)


def _limit(budget: int | None, elsewhere: int, least: int, most: int) -> int:
    """How many evaluations the choice may spend, of a budget for all."""
    needed = elsewhere + least
    remedy = f"give more than {needed} evaluations, or fewer prompts"
    check(budget is None or budget > needed, "budget", budget, remedy)
    return most if budget is None else budget - elsewhere


def _searched(
    trials: Trials,
    grids: dict[str, list[int]],
    limit: int,
    progress: Callable[[str, int], None],
) -> tuple[str, list[int]]:
    """The best of some grids, moved while that helps, within a number of evaluations."""
    progress("comparing grids", trials.spent)
    name = race(trials, grids)

    def cost(grid: list[int]) -> float:
        progress("moving timesteps", trials.spent)
        return float(trials(grid).mean())

    def affordable() -> bool:
        return trials.spent + trials.cost(len(grids[name])) <= limit

    size = len(trials.run.schedule)
    found, _ = pattern_search(cost, grids[name], cost(grids[name]), size, affordable)
    return name if found == grids[name] else f"{name}, moved", found


def race(trials: Trials, grids: dict[str, list[int]]) -> str:
    """The name of the best grid, by successive halving.

    All grids are tried on the first batch of prompts, the better half of them also on the second,
    and so on; the last ones on all.
    """
    total, batches, alive = len(list(trials.run.batches())), 1, list(grids)
    while True:
        alive.sort(key=lambda name: float(trials(grids[name], batches).mean()))
        if batches == total:
            return alive[0]
        alive = alive[: max(2, math.ceil(len(alive) / 2))]
        batches = min(total, 2 * batches) if len(alive) > 2 else total


def _setting(run: Run, steps: int, kind: Any, goal: Goal, count: int, half: int) -> dict[str, Any]:
    """What the grid is for, and on what it was chosen."""
    schedule = run.config
    shift = {"shift": schedule["shift"]} if "shift" in schedule else {}
    return {
        "model": str(getattr(run.pipe, "name_or_path", "")),
        "pipeline": type(run.pipe).__name__,
        "solver": kind.__name__,
        "steps": steps,
        "guidance_scale": run.guidance_scale,
        "options": {name: str(value) for name, value in run.options.items()},
        **shift,
        "goal": goal.name,
        "encoder": goal.encoder.name if isinstance(goal, Embedding) else "",
        "chosen_on": half,
        "verified_on": count - half,
    }
