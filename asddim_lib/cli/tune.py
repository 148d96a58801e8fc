"""`asddim tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asddim_lib.cli.options import (
    Batch,
    Call,
    CheckEncoder,
    Count,
    Device,
    Dtype,
    EncoderName,
    Height,
    Json,
    Model,
    PipelineClass,
    Prompts,
    Savers,
    Scale,
    Solver,
    StepCount,
    Truncate,
    Variant,
    Width,
    called,
    check_scale,
    check_steps,
    given,
    instead_of_quick,
    load,
    scale_of,
    texts,
)
from asddim_lib.cli.output import check_folder, progress_line, rows, say
from asddim_lib.errors import check

#: No picture that is reported on starts from this seed.
SEED = 1_000_000
#: As many prompts as --quick needs for a verdict.
QUICK_PROMPTS = 9

Out = Annotated[str, typer.Option(help="Folder for the scheduler, the report and all drawings.")]
GoalName = Annotated[
    str,
    typer.Option(
        "--goal",
        help="What pictures are compared by: embedding (an image encoder's) or latents.",
    ),
]
Budget = Annotated[int | None, typer.Option(help="Network evaluations to spend at most.")]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help=f"{QUICK_PROMPTS} prompts and no search: about ten guided pictures of 50 steps.",
    ),
]


def tune(
    context: typer.Context,
    steps: StepCount = 8,
    out: Out = "tuned",
    model: Model = "bundled",
    prompts: Prompts = "",
    count: Count = 48,
    guidance_scale: Scale = None,
    solver: Solver = "",
    goal: GoalName = "embedding",
    encoder: EncoderName = "",
    check_encoder: CheckEncoder = "",
    budget: Budget = None,
    quick: Quick = False,
    batch_size: Batch = 8,
    width: Width = None,
    height: Height = None,
    call: Call = "",
    truncate: Truncate = False,
    variant: Variant = "",
    pipeline_class: PipelineClass = "",
    device: Device = "auto",
    dtype: Dtype = "auto",
    save_memory: Savers = "",
    as_json: Json = False,
) -> None:
    """Searches for a grid, and replaces the model's scheduler only if its pictures win.

    A grid has to win over the scheduler that the model has, and over every other
    grid, on prompts that served no choice. Stopped, the same command continues.

    Example: asddim tune --steps 8 --out tuned
    """
    folder, options = check_folder(out), called(call, width, height)
    check_choices(steps, guidance_scale, solver, goal, batch_size)
    if quick:
        count = count if given(context, "count") else QUICK_PROMPTS
        instead_of_quick(context, "count")
    sentences = texts(prompts, model, count)

    from asddim_lib.tuning.tune import tune as search

    pipe = load(model, device, dtype, save_memory, variant, pipeline_class)
    with progress_line() as progress:
        tuned = search(
            pipe,
            sentences,
            steps=steps,
            guidance_scale=scale_of(pipe, guidance_scale),
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
    """Refuses, before the model is loaded, what needs no model to be refused."""
    check_steps(steps)
    check_scale(guidance_scale)
    check(batch_size >= 1, "batch_size", batch_size, "give at least 1")
    from asddim_lib.schedulers.solvers import FLOW_SOLVERS, SOLVERS
    from asddim_lib.tuning.goals import GOALS

    known = {**SOLVERS, **FLOW_SOLVERS}
    check(solver in ("", *known), "solver", solver, f"use one of {', '.join(known)}")
    check(goal in GOALS, "goal", goal, f"use one of {', '.join(GOALS)}")


def show(tuned: Any, folder: Path, as_json: bool) -> None:
    """Prints the verdict, the cost, and where the report and the scheduler are."""
    value = {"out": str(folder), "changed": tuned.changed, "name": tuned.name}
    value |= {"timesteps": tuned.grid, "skipped": tuned.skipped}
    value |= {"evaluations": tuned.evaluations, "rows": rows(tuned.table())}
    text = f"{tuned.summary()}\n{tuned.evaluations} network evaluations, as many as "
    text += f"{tuned.pictures:.0f} pictures now; {folder / 'report.md'} has every comparison."
    text += f" Draw: asddim generate PROMPT --model {folder}"
    say(value, text, as_json)
