"""`python -m experiments recipes`."""

from __future__ import annotations

from pathlib import Path

import typer

from asddim_lib.cli import options as opt
from asddim_lib.cli.output import rows, say
from asddim_lib.errors import check
from experiments.cli.options import CPU, text_of


@opt.command
def recipes(
    of: str = typer.Option(..., help="Comma-separated folders that `asddim recipe` wrote."),
    model: opt.ModelOptions = CPU,
    out: Path = typer.Option(Path("results/recipes/drawn"), help="Folder for the records."),
    leave_out: str = typer.Option(
        "current", help="Comma-separated names of recipes that are not drawn."
    ),
    count: int = typer.Option(1000, help="Number of prompts, of the bundled ones."),
    batch_size: int = typer.Option(32, help="Number of pictures drawn at once."),
    call: str = opt.CALL,
    as_json: bool = opt.JSON,
) -> None:
    """Draws the recipes that searches compared on prompts that no search has seen.

    Example: python -m experiments recipes --of results/recipes/unet/10 --out results/recipes/more
    """
    folders = [Path(one) for one in opt.words("of", of)]
    options = opt.CallOptions(call=call).options()
    for folder in folders:
        known = (folder / "tune.json").is_file() and (folder / "recipes").is_dir()
        check(known, "of", str(folder), "name a folder that `asddim recipe` wrote")
    from asddim_lib.models.prompts import load_prompts
    from experiments.recipes import draw_recipes

    table = load_prompts("bundled", count)
    left = opt.words("leave_out", leave_out)
    records = draw_recipes(model.load(), table, folders, out, left, batch_size, options)
    figures = ["right_all", "kid_share", "clip", "nfe"]
    shown = records.groupby(["steps", "method", "recipe"])[figures].mean().reset_index()
    say({"records": str(out / "records.parquet"), "rows": rows(shown)}, text_of(shown, 3), as_json)
