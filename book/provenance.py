"""The page that says how the book was made: each chapter's execution, each record's origin."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from chapter import BOOK, ROOT, git


def status_page(executed: dict[str, Path]) -> str:
    """The page `status`, given each chapter's executed notebook."""
    text = (BOOK / "chapters" / "status.md").read_text()
    chapters, records = "\n".join(chapter_table(executed)), "\n".join(record_table())
    return text.replace("{chapters}", chapters).replace("{records}", records)


def chapter_table(executed: dict[str, Path]) -> list[str]:
    """Lines of a table: each chapter's parameters, time, commit and number of figures."""
    lines = [
        "| chapter | parameters | time | commit | figures |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, file in executed.items():
        record = json.loads(file.with_suffix(".json").read_text())
        values = ", ".join(f"`{key} = {value}`" for key, value in record["parameters"].items())
        cells = (f"{record['seconds']} s", record["commit"], record["figures"])
        lines.append(f"| {{doc}}`{name}` | {values} | {' | '.join(map(str, cells))} |")
    return lines


def record_table() -> list[str]:
    """Lines of a table: each recorded experiment's setting, inputs and commit."""
    lines = [
        "| record in `results/` | drawn | prompts | weights | figures | commit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for file in sorted((ROOT / "results").rglob("provenance.json")):
        origin, records = json.loads(file.read_text()), file.with_name("records.parquet")
        cells = (
            f"`{file.parent.relative_to(ROOT / 'results')}`",
            drawn(origin),
            f"{origin['prompts']}, `{origin['prompts_sha256'][:8]}`",
            f"`{origin['weights_sha256'][:8]}`",
            f"`{hashlib.sha256(records.read_bytes()).hexdigest()[:8]}`",
            git("log", "-1", "--format=%h", "--", str(records)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def drawn(origin: dict[str, Any]) -> str:
    """What a record drew: its setting, or the recipes that it compared."""
    if "recipes" in origin:
        return f"{sum(map(len, origin['recipes'].values()))} recipes of asddim recipe"
    setting = origin["setting"]
    solvers, steps, scales = (
        ", ".join(map(str, setting[key])) for key in ("solvers", "steps", "guidance_scales")
    )
    return f"{len(setting['methods'])} grids; {solvers}; K = {steps}; guidance {scales}"
