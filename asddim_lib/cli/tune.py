"""`asddim tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asddim_lib.cli import options as opt
from asddim_lib.cli.output import check_folder, progress_line, rows, say
from asddim_lib.errors import check

#: No picture that is reported on starts from this seed.
SEED = 1_000_000
#: As many prompts as --quick needs for a verdict.
QUICK_PROMPTS = 9

Out = Annotated[str, typer.Option(help="Folder for the scheduler, the report and the pictures.")]
Budget = Annotated[int | None, typer.Option(help="Largest number of network evaluations.")]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help=f"{QUICK_PROMPTS} prompts and no search; it costs about ten guided pictures of "
        "50 steps.",
    ),
]


def tune(
    context: typer.Context,
    steps: opt.StepCount = 8,
    out: Out = "tuned",
    model: opt.Model = "bundled",
    prompts: opt.Prompts = "",
    count: opt.Count = 48,
    guidance_scale: opt.Scale = None,
    solver: opt.Solver = "",
    goal: opt.GoalName = "embedding",
    encoder: opt.EncoderName = "",
    check_encoder: opt.CheckEncoder = "",
    budget: Budget = None,
    quick: Quick = False,
    batch_size: opt.Batch = 8,
    width: opt.Pixels = None,
    height: opt.Pixels = None,
    call: opt.Call = "",
    truncate: opt.Truncate = False,
    variant: opt.Variant = "",
    pipeline_class: opt.PipelineClass = "",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    save_memory: opt.Savers = "",
    as_json: opt.Json = False,
) -> None:
    """Searches for a grid, and replaces the model's scheduler only if its pictures win.

    A grid has to win over the model's scheduler and over every other grid, on
    prompts that served no choice. If you stop it, the same command continues.

    Example: asddim tune --steps 8 --out tuned
    """
    folder, options = check_folder(out), opt.called(call, width, height)
    check_choices(steps, guidance_scale, solver, goal, batch_size)
    check(budget is None or budget >= 1, "budget", budget, "give at least 1")
    if quick:
        count = count if opt.given(context, "count") else QUICK_PROMPTS
        opt.instead_of_quick(context, "count")
    sentences = opt.texts(prompts, model, count)

    from asddim_lib.tuning.draw import split
    from asddim_lib.tuning.proposals import QUICK, Plan
    from asddim_lib.tuning.tune import tune as search

    split(sentences, (QUICK if quick else Plan()).for_choice(len(set(sentences))))  # enough?
    pipe = opt.load(model, device, dtype, save_memory, variant, pipeline_class)
    with progress_line() as progress:
        tuned = search(
            pipe,
            sentences,
            steps=steps,
            guidance_scale=opt.scale_of(pipe, guidance_scale),
            solver=solver or None,
            goal=goal,
            encoder=encoder or None,
            check_encoder=check_encoder or None,
            budget=budget,
            quick=quick,
            batch_size=batch_size,
            seed=SEED,
            truncate=truncate,
            folder=folder,
            progress=progress,
            options=options,
        )
    tuned.save(folder)
    show(tuned, folder, as_json)


def check_choices(
    steps: int, guidance_scale: float | None, solver: str, goal: str, batch_size: int
) -> None:
    """Raises WrongUse, before the model is loaded, for a value that needs no model to be wrong."""
    opt.check_steps(steps)
    opt.check_scale(guidance_scale)
    check(batch_size >= 1, "batch_size", batch_size, "give at least 1")
    from asddim_lib.schedulers.solvers import FLOW_SOLVERS, SOLVERS
    from asddim_lib.tuning.goals import GOALS

    known = {**SOLVERS, **FLOW_SOLVERS}
    check(solver in ("", *known), "solver", solver, f"use one of {', '.join(known)}")
    check(goal in GOALS, "goal", goal, f"use one of {', '.join(GOALS)}")


def show(tuned: Any, folder: Path, as_json: bool) -> None:
    """Prints the verdict, the cost, and where the report and the scheduler are."""
    value = {
        "out": str(folder),
        "changed": tuned.changed,
        "name": tuned.name,
        "timesteps": tuned.grid,
        "skipped": tuned.skipped,
        "evaluations": tuned.evaluations,
        "rows": rows(tuned.table()),
    }
    cost = f"as much as {tuned.cost_in_pictures:.0f} pictures of {tuned.setting.current}"
    text = (
        f"{tuned.summary()}\nIt cost {cost}; {folder / 'report.md'} has every comparison. "
        f"Draw: asddim generate PROMPT --model {folder}"
    )
    say(value, text, as_json)
