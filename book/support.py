"""The page that says which pipelines the library runs on: a table made from data/support.csv."""

from __future__ import annotations

import csv
import string

from chapter import BOOK, ROOT

FILE = ROOT / "data" / "support.csv"
WORKS = "✓"


def support_page() -> str:
    """The page `support`, with its table and the reasons below it."""
    text = (BOOK / "chapters" / "support.md").read_text()
    with FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    letters = letters_of(rows)
    reasons = "\n".join(f"- **{letter}** “{reason}”" for reason, letter in letters.items())
    return text.replace("{table}", table(rows, letters)).replace("{reasons}", reasons)


def letters_of(rows: list[dict[str, str]]) -> dict[str, str]:
    """A letter for each reason, in the order of the table."""
    cells = (cell for row in rows for cell in list(row.values())[3:])
    reasons = dict.fromkeys(cell for cell in cells if cell != WORKS)
    return dict(zip(reasons, string.ascii_lowercase, strict=False))


def table(rows: list[dict[str, str]], letters: dict[str, str]) -> str:
    """The lines of the table: a model above its class, how a grid goes in, and what was tried."""
    heads = list(rows[0])[1:]
    lines = [f"| {' | '.join(heads)} |", "| " + " | ".join(["---"] * len(heads)) + " |"]
    for row in rows:
        model, pipeline, way, *cells = row.values()
        shown = (letters.get(cell, cell) for cell in cells)
        lines.append(f"| {' | '.join([f'{model}<br>`{pipeline}`', way, *shown])} |")
    return "\n".join(lines)
