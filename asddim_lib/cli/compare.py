"""`asddim compare`."""

from __future__ import annotations

from typing import Annotated

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
    load,
    scale_of,
    texts,
    words,
)
from asddim_lib.cli.output import check_folder, progress_line
from asddim_lib.cli.tune import SEED, GoalName, check_choices, show

Out = Annotated[str, typer.Option(help="Folder for the report, the pictures and the scheduler.")]
Grids = Annotated[
    str,
    typer.Option(
        help="Names of `asddim export --list` that need nothing or a path, comma-separated.",
        show_default="those that tune compares with",
    ),
]


def compare(
    steps: StepCount = 8,
    grids: Grids = "",
    out: Out = "compared",
    model: Model = "bundled",
    prompts: Prompts = "",
    count: Count = 24,
    guidance_scale: Scale = None,
    solver: Solver = "",
    goal: GoalName = "embedding",
    encoder: EncoderName = "",
    check_encoder: CheckEncoder = "",
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
    """Compares grids with the scheduler that the model has, on the same prompts and noise.

    Example: asddim compare --steps 8 --grids trailing,karras,beta
    """
    folder, options = check_folder(out), called(call, width, height)
    names = words("grids", grids) if grids else None
    check_choices(steps, guidance_scale, solver, goal, batch_size)
    if names:
        from asddim_lib.grids.table import method_of

        for name in names:
            method_of(name, ("nothing", "path"))
    sentences = texts(prompts, model, count)

    from asddim_lib.tuning.compare import compare as judged

    pipe = load(model, device, dtype, save_memory, variant, pipeline_class)
    with progress_line() as progress:
        compared = judged(
            pipe,
            sentences,
            steps=steps,
            grids=names,
            guidance_scale=scale_of(pipe, guidance_scale),
            solver=solver or None,
            goal=goal,
            encoder=encoder or None,
            check_encoder=check_encoder or None,
            batch_size=batch_size,
            seed=SEED,
            truncate=truncate,
            folder=folder,
            progress=progress,
            options=options,
        )
    compared.save(folder)
    show(compared, folder, as_json)
