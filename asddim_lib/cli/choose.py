"""`asddim choose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asddim_lib.cli.options import (
    Call,
    Count,
    Device,
    Dtype,
    Json,
    Model,
    Override,
    PipelineClass,
    Profile,
    Prompts,
    Scale,
    Solver,
    StepCount,
    Truncate,
    Variant,
    called,
    loading,
    overridden,
    torch_dtype,
    words,
)
from asddim_lib.cli.output import say

#: Powers that a profile's density is raised to: multistep solvers dislike steps of uneven length.
TEMPERS = (1.0, 0.75, 0.5, 0.25)
#: No picture that is reported on starts from this seed.
SEED = 1_000_000

Grids = Annotated[str, typer.Option(help="Allocations to try, comma-separated: {allocations}.")]
ReferenceSteps = Annotated[
    int,
    typer.Option(
        help="Steps of the fine solution (DDIM, or Euler for flow matching) that distances are "
        "measured from."
    ),
]
Search = Annotated[
    bool,
    typer.Option(
        "--search",
        help="Then move the best grid's timesteps while that helps, for at most the cost of "
        "the fine solution.",
    ),
]


def choose(
    steps: StepCount = 10,
    solver: Solver = "ddim",
    profile: Profile = None,
    override: Override = "",
    grids: Grids = "trailing,leading,karras,logsnr,beta",
    model: Model = "bundled",
    prompts: Prompts = "bundled-tune",
    count: Count = 16,
    guidance_scale: Scale = 7.5,
    reference_steps: ReferenceSteps = 200,
    search: Search = False,
    call: Call = "",
    truncate: Truncate = False,
    variant: Variant = "",
    pipeline_class: PipelineClass = "",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Tries grids on a few prompts; prints each one's distance from a fine solution, best last.

    With a profile, each of its densities is tried too, at several tempers.

    Example: asddim choose --steps 8 --solver unipc
    """
    from asddim_lib.grids.grid import numbers
    from asddim_lib.models.load import load_pipeline
    from asddim_lib.models.prompts import load_prompts
    from asddim_lib.pipeline.run import Run
    from asddim_lib.schedulers.place import prepared
    from asddim_lib.schedulers.solvers import solver_of

    names, kind = _checked(words("grids", grids), solver), torch_dtype(dtype)
    may_differ, texts = overridden(override, profile), list(load_prompts(prompts, count)["prompt"])
    options, given = called(call), loading(variant, pipeline_class)
    pipe = load_pipeline(model, device=device, dtype=kind, **given)
    scheduler, order = solver_of(solver, pipe.scheduler)
    pipe.scheduler = prepared(scheduler, pipe.scheduler)
    run = Run(pipe, texts[:1], None, guidance_scale, options=options, truncate=truncate)
    trials = {name: numbers(run.config, steps, {"allocation": name}) for name in names}
    if profile is not None:
        made_for = {"model": model, "guidance_scale": guidance_scale, "schedule": run.schedule}
        trials |= _measured(run.config, steps, order, profile, made_for | {"override": may_differ})
    how = {"guidance_scale": guidance_scale, "truncate": truncate, "options": options}
    apart = _distances(pipe, texts, trials, reference_steps, search, {**how, "seed": SEED})
    worst_first = sorted(apart, key=apart.__getitem__, reverse=True)
    value = [{"grid": n, "distance": apart[n], "timesteps": trials[n]} for n in worst_first]
    lines = [f"{apart[n]:8.4f}  {n:28s} {trials[n]}" for n in worst_first]
    say(value, "\n".join(lines), as_json)


def _checked(grids: tuple[str, ...], solver: str) -> tuple[str, ...]:
    """The allocations, refused together with the solver before the model is loaded."""
    from asddim_lib.errors import check
    from asddim_lib.grids.table import check_allocation
    from asddim_lib.schedulers.solvers import SOLVERS

    check(solver in SOLVERS, "solver", solver, f"use one of {', '.join(SOLVERS)}")
    for name in grids:
        check_allocation(name)
    return grids


def _measured(
    config: dict[str, Any], steps: int, order: int, profile: Path, made_for: dict[str, Any]
) -> dict[str, list[int]]:
    """The grids of each density that a profile holds, at every temper."""
    from asddim_lib.evidence.profile import Profile
    from asddim_lib.grids.grid import numbers
    from asddim_lib.tuning.family import DENSITIES

    measured = Profile.load(profile, **made_for)
    how: dict[str, Any] = {"profile": measured, "order": order}
    return {
        f"{name}, temper {temper:g}": numbers(
            config, steps, {**how, "allocation": name, "temper": temper}
        )
        for kind, name in DENSITIES.items()
        if kind in (measured.local_error or {})
        for temper in TEMPERS
    }


def _distances(
    pipe: Any,
    texts: list[str],
    trials: dict[str, list[int]],
    reference_steps: int,
    search: bool,
    how: dict[str, Any],
) -> dict[str, float]:
    """Each grid's distance from the fine solution; with `search`, adds a grid to `trials`."""
    from asddim_lib.tuning.search import direct_search, distances, solution

    how = {**how, "goal": solution(pipe, texts, reference_steps=reference_steps, **how)}
    apart = distances(pipe, texts, trials, **how)
    if search:
        best = trials[min(apart, key=apart.__getitem__)]
        moved = direct_search(pipe, texts, [best], budget=reference_steps, **how)
        apart["searched"], trials["searched"] = moved.distance, moved.timesteps
    return apart
