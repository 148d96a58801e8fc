"""`asddim recipe`."""

from __future__ import annotations

import typer

from asddim_lib.cli import options as opt
from asddim_lib.cli.output import check_folder, rows, say
from asddim_lib.cli.tune import SEED
from asddim_lib.errors import check_whole
from asddim_lib.progress import progress_line

#: Prompts of which a third choose and the others judge.
PROMPTS = 96


@opt.command
def recipe(
    model: opt.ModelOptions,
    pictures: opt.CallOptions,
    evaluations: int = typer.Option(
        16, help="Network evaluations for one picture: two in a guided step, one in another."
    ),
    out: str = typer.Option("recipe", help="Folder for the recipe and the report."),
    prompts: str = opt.PROMPTS,
    count: int = typer.Option(PROMPTS, help="Number of prompts."),
    reference: str = typer.Option(
        "",
        help="Folder of real pictures that drawn ones should be like.",
        show_default="the model's own pictures of other noise, in 20 steps",
    ),
    clip: str = typer.Option(
        "",
        help="CLIP model that judges prompts.",
        show_default="the bundled CLIP for a bundled model, else CLIP ViT-L/14",
    ),
    encoder: str = opt.ENCODER,
    check_encoder: str = typer.Option("", help="A second image encoder, for the verdict alone."),
    batch_size: int = opt.BATCH_SIZE,
    as_json: bool = opt.JSON,
) -> None:
    """Finds the best way to spend N network evaluations on a picture.

    It chooses steps, guidance scale, when to guide, grid and solver, and returns
    them only if their pictures are proven better than the model's own, on prompts
    that served no choice. If you stop it, the same command continues.

    Example: asddim recipe --evaluations 16 --guidance-scale 7.5
    """
    folder, options = check_folder(out), pictures.options()
    check_whole("evaluations", evaluations, 4)
    check_whole("batch_size", batch_size, 1)
    texts = model.texts(prompts, count)

    from asddim_lib.tuning.find import find_recipe, parted

    parted(texts)  # are there enough for a verdict?
    pipe = model.load()

    with progress_line() as progress:
        outcome = find_recipe(
            pipe,
            texts,
            evaluations=evaluations,
            guidance_scale=pictures.guidance_scale,
            reference=reference or None,
            clip=clip or None,
            encoder=encoder or None,
            check_encoder=check_encoder or None,
            batch_size=batch_size,
            seed=SEED,
            truncate=pictures.truncate,
            folder=folder,
            progress=progress,
            options=options,
        )
    outcome.save(folder)
    value = {
        "out": str(folder),
        "changed": outcome.changed,
        "recipe": outcome.recipe.name,
        "call": outcome.recipe.call,
        "evaluations": outcome.evaluations,
        "rows": rows(outcome.table()),
    }
    cost = f"as much as {outcome.cost_in_pictures:,.0f} guided pictures of 20 steps"
    text = (
        f"{outcome.summary()}\nIt cost {cost}; {folder / 'report.md'} has every comparison. "
        f"Draw: asddim generate PROMPT --model {folder}"
    )
    say(value, text, as_json)
