"""`compare`: named grids against the pipeline as the user has it, without a search."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from asddim_lib.errors import check
from asddim_lib.levels import check_timesteps
from asddim_lib.metrics.encoders import Encoder
from asddim_lib.models.load import Pipeline
from asddim_lib.tuning.draw import Progress, Setup, Work, begun, claimed, split
from asddim_lib.tuning.goals import Goal, goal_of
from asddim_lib.tuning.proposals import baseline_names, baselines, needing_a_path, recorded
from asddim_lib.tuning.report import examples
from asddim_lib.tuning.result import Tuned, result
from asddim_lib.tuning.tune import verdict
from asddim_lib.tuning.verify import CANDIDATE, CURRENT

#: Prompts and steps of a path that grids such as `gits` are searched on.
PATH = (8, 60)


def compare(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    *,
    steps: int,
    grids: Sequence[str] | Mapping[str, Sequence[int]] | None = None,
    guidance_scale: float | None = None,
    solver: str | None = None,
    goal: str | Goal = "embedding",
    encoder: str | Encoder | None = None,
    check_encoder: str | Encoder | None = None,
    reference_steps: int = 64,
    shown: int = 3,
    batch_size: int = 8,
    seed: int = 0,
    truncate: bool = False,
    folder: str | os.PathLike | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Tuned:
    """Draws the prompts in K steps by the pipeline as the user has it and by grids, and compares.

    `grids` are names of `METHODS`, by default those that `tune` compares with, or timesteps by a
    name of their own. Those that are searched on a path take the first eight distinct prompts for
    it, which then serve no verdict. `shown` prompts are on the sheet of pictures. The other
    arguments, the rule and the errors are those of `tune`: a grid that wins over the current
    sampler and over every other is the one returned.
    """
    run = begun(pipe, prompts, guidance_scale, batch_size, seed, truncate, options)
    aim = goal_of(goal, pipe, encoder, check_encoder)
    setup = Setup(run, steps, aim, solver, reference_steps, Work(progress=progress))
    given: dict[str, list[int]] = {}
    for name, grid in grids.items() if isinstance(grids, Mapping) else ():
        check(name not in (CURRENT, CANDIDATE), "grids", name, "it is taken: use another name")
        given[name] = check_timesteps(grid, setup.size, f"grids[{name!r}]")
        same = f"{len(grid)} timesteps in {name}"
        check(len(grid) == steps, "grids", same, f"give {steps}, as many as steps")
    names = [] if given else baseline_names(setup.config, grids)  # type: ignore[arg-type]
    searched = needing_a_path(names)
    first, second = split(run.prompts, PATH[0] if searched else 0)
    trials, work = setup.trials(second), setup.work
    most = setup.current.calls + (len(names) + len(given)) * steps + setup.reference.steps
    work.total = trials.cost(most)
    work.open(claimed(folder, setup), pipe)
    path = recorded(setup, setup.trials(first).run, *PATH) if searched else None
    found, skipped = baselines(setup, names, path)
    found |= given
    work.doing = "drawing"
    samplers = {CURRENT: setup.current, **{n: setup.sampler(g) for n, g in found.items()}}
    decision = verdict(trials, samplers)
    sheet = examples(trials, samplers, shown)
    return result(
        setup,
        trials,
        samplers,
        decision,
        found,
        skipped=skipped,
        needed=lambda count: count + (PATH[0] if searched else 0),
        sheet=sheet,
    )
