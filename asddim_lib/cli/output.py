"""What commands print: JSON or text, tables, the progress bar, and failed pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from asddim_lib.errors import check


def say(value: Any, text: str, as_json: bool) -> None:
    """Prints a result: `value` as JSON for programs, or `text` for people."""
    typer.echo(json.dumps(value) if as_json else text)


def rows(table: Any) -> list[dict[str, Any]]:
    """A data frame as JSON values, one dict per row; NaN becomes null."""
    return json.loads(table.to_json(orient="records", double_precision=15))


def text_of(table: Any, digits: int) -> str:
    """A data frame as text, its numbers with so many significant digits."""
    return table.to_string(index=False, float_format=lambda value: f"{value:.{digits}g}")


def check_file(out: Path) -> None:
    """Raises WrongUse for a file that could not be written once it has been computed."""
    check(out.parent.is_dir(), "out", f"{out}, in a folder that is not there", "make the folder")
    check(not out.is_dir(), "out", f"{out}, a folder", "give the name of a file")


def report_failures(summary: Any) -> None:
    """Exits with 1, after one line on stderr, if some pictures failed."""
    failed = int(summary["failed"].sum()) + summary.attrs.get("failed_references", 0)
    if failed:
        reason = "the network returned numbers that are not finite"
        rest = "the figures leave them out; the next run draws them again"
        typer.echo(f"asddim: {failed} pictures failed: {reason}; {rest}", err=True)
        raise typer.Exit(1)


def bar(waiting: list, shard: Any, evaluations: Callable[[Any], int]) -> Iterator:
    """Yields batches under a progress bar.

    It counts network evaluations, so that the time left holds for any mixture of step counts:
    `evaluations` says how many a picture of a cell has.
    """
    from tqdm import tqdm

    total, done, start = sum(batch.pictures for batch in waiting), 0, time.perf_counter()
    with tqdm(
        total=sum(batch.pictures * evaluations(batch.cell) for batch in waiting),
        desc=f"shard {shard.number}/{shard.count} " if shard.count > 1 else "",
        bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}",
        disable=not shard.speaks,
    ) as progress:
        for batch in waiting:
            yield batch
            done += batch.pictures
            rate = done / (time.perf_counter() - start)
            text = f"{done}/{total} images, {rate:.3g} images/s"
            progress.set_postfix_str(text, refresh=False)
            progress.update(batch.pictures * evaluations(batch.cell))
