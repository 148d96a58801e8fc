"""`asddim compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from asddim_lib.cli import options as opt
from asddim_lib.cli.output import check_folder, progress_line
from asddim_lib.cli.tune import SEED, Out, check_choices, show

Grids = Annotated[
    str,
    typer.Option(
        help="Comma-separated names of `asddim export --list` that need nothing or a path.",
        show_default="those that tune compares with",
    ),
]


def compare(
    steps: opt.StepCount = 8,
    grids: Grids = "",
    out: Out = "compared",
    model: opt.Model = "bundled",
    prompts: opt.Prompts = "",
    count: opt.Count = 24,
    guidance_scale: opt.Scale = None,
    solver: opt.Solver = "",
    goal: opt.GoalName = "embedding",
    encoder: opt.EncoderName = "",
    check_encoder: opt.CheckEncoder = "",
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
    """Compares grids with the model's scheduler, on the same prompts and noise.

    Example: asddim compare --steps 8 --grids trailing,karras,beta
    """
    folder, options = check_folder(out), opt.called(call, width, height)
    names = opt.words("grids", grids) if grids else None
    check_choices(steps, guidance_scale, solver, goal, batch_size)
    from asddim_lib.grids.table import method_of

    for name in names or ():
        method_of(name, ("nothing", "path"))
    sentences = opt.texts(prompts, model, count)

    from asddim_lib.tuning.compare import compare as judged
    from asddim_lib.tuning.draw import split

    split(sentences, 0)  # are there enough for a verdict?
    pipe = opt.load(model, device, dtype, save_memory, variant, pipeline_class)
    with progress_line() as progress:
        compared = judged(
            pipe,
            sentences,
            steps=steps,
            grids=names,
            guidance_scale=opt.scale_of(pipe, guidance_scale),
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
