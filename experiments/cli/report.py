"""`python -m experiments report`."""

from __future__ import annotations

from pathlib import Path

import typer

from asddim_lib.cli.options import JSON
from asddim_lib.cli.output import rows, say


def report(
    folders: list[Path] = typer.Argument(help="Folders that evaluate, compare or mlperf wrote."),
    as_json: bool = JSON,
) -> None:
    """Prints the paper's tables (Markdown) from recorded runs, beside the paper's own figures.

    Example: python -m experiments report results/guidance-7.5/steps-20
    """
    from experiments.report import paper_markdown, read_record

    records = [read_record(folder) for folder in folders]
    values = [
        {"folder": str(one.folder), "provenance": one.provenance, "rows": rows(one.summary)}
        for one in records
    ]
    say(values, "\n\n".join(map(paper_markdown, records)), as_json)
