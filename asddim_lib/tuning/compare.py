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
from asddim_lib.models.prompts import listed
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.draw import Progress, Setup, Work, split
from asddim_lib.tuning.goals import Goal, goal_of
from asddim_lib.tuning.proposals import baseline_names, baselines, needing_a_path, recorded
from asddim_lib.tuning.result import Tuned, result
from asddim_lib.tuning.tune import judged
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
    texts = listed(prompts)
    seeds = range(seed, seed + len(texts))
    run = Run(pipe, texts, seeds, guidance_scale, batch_size, options, truncate)
    aim = goal_of(goal, pipe, encoder, check_encoder)
    setup = Setup(run, steps, aim, solver, reference_steps, Work(progress=progress))
    given: dict[str, list[float]] = {}
    names: list[str] = []
    if grids and isinstance(grids, Mapping):
        for name, grid in grids.items():
            check(name not in (CURRENT, CANDIDATE), "grids", name, "it is taken: use another name")
            times = check_timesteps(grid, setup.size, f"grids[{name!r}]")
            given[name] = setup.levels.at(times)
            same = f"{len(grid)} timesteps in {name}"
            check(len(grid) == steps, "grids", same, f"give {steps}, as many as steps")
    else:
        names = baseline_names(setup.config, list(grids or ()))
    searched = needing_a_path(names)
    first, second = split(run.prompts, PATH[0] if searched else 0)
    trials = setup.trials(second)
    count = setup.current.calls + (len(names) + len(given)) * steps + setup.reference.steps
    setup.work.total = trials.cost(count)
    setup.keep(folder)
    path = recorded(setup, setup.trials(first).run, *PATH) if searched else None
    named, skipped = baselines(setup, names, path)
    setup.work.doing = "drawing"
    drawn = {**named, **given}
    samplers = {CURRENT: setup.current, **{n: setup.sampler(g) for n, g in drawn.items()}}
    return result(
        trials,
        samplers,
        judged(trials, samplers),
        drawn,
        skipped=skipped,
        shown=list(samplers),
        examples_of=shown,
        needed=lambda count: count + (PATH[0] if searched else 0),
    )
