"""`asddim recipe`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import typer

from asddim_lib.cli import options as opt
from asddim_lib.cli.output import check_folder, rows, say
from asddim_lib.cli.tune import SEED
from asddim_lib.errors import check, check_whole
from asddim_lib.progress import Progress, progress_line

#: Prompts of which a third choose and the others judge.
PROMPTS = 64


@opt.command
def recipe(
    model: opt.ModelOptions,
    pictures: opt.CallOptions,
    evaluations: str = typer.Option(
        "16",
        help="Network evaluations for one picture: two in a guided step, one in another. Several, "
        "comma-separated, give the frontier: a table and a figure of what each number buys.",
    ),
    aim: str = typer.Option(
        "better",
        help="better: better pictures than the model's own, in N evaluations. cheaper: the fewest "
        "evaluations whose pictures are not worse than the model's own in N.",
    ),
    margin: float = typer.Option(
        0.2,
        help="How much worse is still not worse, in standard deviations of the model's pictures.",
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
    plan: bool = typer.Option(False, "--plan", help="Print the cost, and draw nothing."),
    as_json: bool = opt.JSON,
) -> None:
    """Finds the best way to spend N network evaluations on a picture.

    It chooses steps, guidance scale, when to guide, grid and solver, and returns
    them only if their pictures are proven better than the model's own, on prompts
    that served no choice. If you stop it, the same command continues.

    Example: asddim recipe --evaluations 16 --guidance-scale 7.5

    What can be saved: asddim recipe --aim cheaper --evaluations 100 --count 192
    """
    folder, options = check_folder(out), pictures.options()
    numbers = _numbers(evaluations)
    check_whole("batch_size", batch_size, 1)
    texts = model.texts(prompts, count)

    from asddim_lib.tuning import frontier
    from asddim_lib.tuning.find import check_question, find_recipe, parted

    for number in numbers:
        check_question(number, aim, margin)
    alone = aim == "better" or len(numbers) == 1
    check(alone, "evaluations", evaluations, "give one number with --aim cheaper")
    parted(texts, aim, margin)  # are there enough for a verdict?
    pipe = model.load()

    def search(number: int, place: Path, progress: Progress) -> Any:
        return find_recipe(
            pipe,
            texts,
            evaluations=number,
            aim=aim,
            margin=margin,
            guidance_scale=pictures.guidance_scale,
            reference=reference or None,
            clip=clip or None,
            encoder=encoder or None,
            check_encoder=check_encoder or None,
            every=len(numbers) > 1,
            batch_size=batch_size,
            seed=SEED,
            truncate=pictures.truncate,
            folder=place,
            drawn=folder / "drawn",
            progress=progress,
            options=options,
        )

    places = {n: folder / str(n) if len(numbers) > 1 else folder for n in numbers}
    if plan:
        costs = {number: _cost(partial(search, number, place)) for number, place in places.items()}
        text = [f"{number} evaluations: {_as_pictures(cost)}" for number, cost in costs.items()]
        say({"evaluations": costs}, "\n".join(text), as_json)
        return
    with progress_line() as progress:
        found = {number: search(number, place, progress) for number, place in places.items()}
    if len(found) > 1:
        table = frontier.save(found, folder)
        _say_frontier(found, table, folder, as_json)
    else:
        _say_one(found[numbers[0]], folder, as_json)


def _numbers(text: str) -> list[int]:
    """The numbers of evaluations, each once, in order."""
    words = opt.words("evaluations", text)
    remedy = "give whole numbers, comma-separated"
    check(all(word.isdecimal() for word in words), "evaluations", text, remedy)
    return sorted({int(word) for word in words})


class _Planned(Exception):
    """Ends a search before it draws."""


def _cost(search: Callable[[Progress], Any]) -> int:
    """The network evaluations of a search, which says them before it draws."""
    costs: list[int] = []

    def stop(doing: str, spent: int, total: int) -> None:
        costs.append(total)
        raise _Planned

    with suppress(_Planned):
        search(stop)
    return costs[0]


def _as_pictures(cost: float) -> str:
    from asddim_lib.tuning.outcome import PICTURE

    return f"as much as {cost / PICTURE:,.0f} guided pictures of 20 steps"


def _say_one(outcome: Any, folder: Path, as_json: bool) -> None:
    outcome.save(folder)
    value = {
        "out": str(folder),
        "changed": outcome.changed,
        "recipe": outcome.recipe.name,
        "call": outcome.recipe.call,
        "evaluations": outcome.evaluations,
        "rows": rows(outcome.table()),
    }
    text = (
        f"{outcome.summary()}\nIt cost {_as_pictures(outcome.evaluations)}; "
        f"{folder / 'report.md'} has every comparison. "
        f"Draw: asddim generate PROMPT --model {folder}"
    )
    say(value, text, as_json)


def _say_frontier(found: Any, table: Any, folder: Path, as_json: bool) -> None:
    changed = {number: outcome.changed for number, outcome in found.items()}
    value = {"out": str(folder), "changed": changed, "rows": rows(table)}
    lines = [f"{number} evaluations: {one.summary()}" for number, one in found.items()]
    cost = sum(outcome.evaluations for outcome in found.values())
    lines.append(
        f"It cost at most {_as_pictures(cost)}; {folder / 'frontier.md'} has every recipe. "
        f"Draw: asddim generate PROMPT --model {folder / str(max(found))}"
    )
    say(value, "\n".join(lines), as_json)
