"""`asddim compare`."""

from __future__ import annotations

from dataclasses import replace

import typer

from asddim_lib.cli import options as opt
from asddim_lib.cli.tune import OUT, ContestOptions


@opt.command
def compare(
    model: opt.ModelOptions,
    pictures: opt.CallOptions,
    contest: ContestOptions,
    steps: int = opt.STEPS,
    grids: str = typer.Option(
        "",
        help="Comma-separated names of `asddim export --list` that need nothing or a path.",
        show_default="those that tune compares with",
    ),
    out: str = typer.Option("compared", help=OUT),
    prompts: str = opt.PROMPTS,
    count: int = typer.Option(24, help="Number of prompts."),
    as_json: bool = opt.JSON,
) -> None:
    """Compares grids with the model's scheduler, on the same prompts and noise.

    Example: asddim compare --steps 8 --grids trailing,karras,beta
    """
    names = opt.words("grids", grids) if grids else None
    texts = model.texts(prompts, count)

    from asddim_lib.grids.table import method_of
    from asddim_lib.tuning.draw import split
    from asddim_lib.tuning.proposals import COMPARE

    for name in names or ():
        method_of(name, ("nothing", "path"))
    split(texts, 0)  # are there enough for a verdict?
    plan = replace(COMPARE, baselines=names)
    contest.run(model, pictures, texts, steps, plan, out, as_json)
