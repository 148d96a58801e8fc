"""The paper's tables from an experiment's records, with the paper's own figures beside them.

Tables 1–3 are quality, Tables 4–6 time.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from asddim_lib.errors import check
from asddim_lib.models.load import data_folder
from experiments.records import by_plan, read_records


class Figure(NamedTuple):
    """How a column of a summary is printed: its title, decimals and factor.

    `paper` names the column of the paper's tables that corresponds to it.
    """

    title: str
    decimals: int
    times: int = 1
    paper: str = ""


QUALITY = {
    "fid": Figure("FID", 1, paper="fid"),
    "kid": Figure("KID", 0),
    "inception_fid": Figure("FID, Inception", 1, paper="fid"),
    "inception_kid": Figure("KID, Inception", 4),
    "dinov2_fid": Figure("FD-DINOv2", 1),
    "dinov2_kid": Figure("KD-DINOv2", 4),
    "clip": Figure("CLIP", 3, paper="clip"),
    "right": Figure("all right, %", 1, times=100),
    "distance": Figure("distance", 3),
}
TIME = {"seconds": Figure("seconds per image", 3, paper="seconds")}
#: The title of each of the paper's columns, and the decimals that the paper prints.
_PAPER = {
    "fid": ("paper's FID", 1),
    "clip": ("paper's CLIP", 3),
    "seconds": ("paper's seconds", 2),
}
#: What ± means in these tables.
INTERVALS = (
    "± is the half-width of a 95 % interval: Student's t for means, Wilson's for shares (its "
    "longer side), the bootstrap for FID. Time is the median of the batches. Methods share prompts "
    "and noise, so only paired differences tell them apart (`python -m experiments compare`)."
)


def paper_tables() -> pd.DataFrame:
    """The paper's Tables 1–6: fid, clip and seconds by step count and method."""
    return pd.read_csv(data_folder() / "paper_tables.csv").set_index(["steps", "method"])


def table(summary: pd.DataFrame, figures: dict[str, Figure]) -> pd.DataFrame:
    """A summary as it is printed: each of `figures` that it has, with its half-width.

    The paper's figures of the same method and step count follow, if any row has them. Time comes
    with the number of network evaluations. N is a column where rows differ in it.
    """
    columns = {key: figure for key, figure in figures.items() if key in summary}
    pairs = pd.MultiIndex.from_frame(summary[["steps", "method"]])
    paper = paper_tables().reindex(pairs)
    printed: dict[str, Any] = {"steps": summary["steps"], "method": summary["method"]}
    if summary["n"].nunique() > 1:
        printed["N"] = summary["n"]
    if "seconds" in columns:
        printed["evaluations"] = summary["nfe"]
    for key, figure in columns.items():
        values = zip(summary[key], summary[f"{key}_ci"], strict=True)
        printed[figure.title] = [plus_minus(value, half, figure) for value, half in values]
    for name in dict.fromkeys(figure.paper for figure in columns.values() if figure.paper):
        title, decimals = _PAPER[name]
        if paper.notna().any(axis=None):
            printed[title] = [f"{v:.{decimals}f}" if pd.notna(v) else "–" for v in paper[name]]
    return pd.DataFrame(printed).reset_index(drop=True)


def plus_minus(value: float, half: float, figure: Figure) -> str:
    """A value and its half-width; a dash without a figure, and ∞ for the interval of one value."""
    if pd.isna(value):
        return "–"
    width = f"{figure.times * half:.{figure.decimals}f}" if math.isfinite(half) else "∞"
    return f"{figure.times * value:.{figure.decimals}f} ± {width}"


class Record(NamedTuple):
    """What a finished experiment left: its folder, its provenance and its summary."""

    folder: Path
    provenance: dict[str, Any]
    summary: pd.DataFrame


def read_record(folder: str | os.PathLike) -> Record:
    """The record of a finished experiment.

    Raises WrongUse where files are missing, and ValueError where the records are damaged.
    """
    folder = Path(folder)
    files = [folder / name for name in ("records.parquet", "summary.csv", "provenance.json")]
    missing = [file.name for file in files if not file.is_file()]
    check(
        not missing,
        "folder",
        f"{folder}, without {', '.join(missing)}",
        "name the folder of a run that has ended (python -m experiments evaluate --out …)",
    )
    read_records(folder)
    return Record(folder, json.loads(files[2].read_text()), by_plan(pd.read_csv(files[1])))


def paper_markdown(record: Record) -> str:
    """The tables of a record in Markdown, under a line that states their provenance."""
    origin, parts = ", ".join(_origin(record.provenance)), []
    for (scale, solver), part in record.summary.groupby(["guidance_scale", "solver"], sort=False):
        parts.append(f"**{record.folder}**, guidance {scale:g}, {solver}: {origin}")
        parts += [
            f"{title}\n\n{_lines(table(part, figures))}"
            for title, figures in (("Tables 1–3: quality", QUALITY), ("Tables 4–6: time", TIME))
        ]
        if failed := int(part["failed"].sum()) if "failed" in part else 0:
            parts.append(f"{failed} pictures failed, and are in no figure.")
    return "\n\n".join([*parts, INTERVALS])


def _origin(provenance: dict[str, Any]) -> list[str]:
    """All that the figures of a record depend on; older records state less."""
    prompts = f"{provenance['prompts']} prompts per row"
    if "prompts_from" in provenance:
        prompts += f", of {provenance['prompts_from']}"
    lines = [prompts, f"{provenance['dtype'].removeprefix('torch.')} on {provenance['device']}"]
    lines += [
        f"{key} {provenance[key]}" for key in ("model", "revision", "clip") if provenance.get(key)
    ]
    lines += [f"weights {provenance['weights_sha256']}"]
    lines += [f"commit {provenance.get('commit') or 'unknown'}"]
    networks = {name: provenance.get(name) for name in ("inception", "dinov2")}
    for name, against in ({"judge": provenance} | networks).items():
        if against and "reference_sha256" in against:
            how = f", prepared as {against['prepare']}" if against.get("prepare") else ""
            count, digest = against["reference_n"], against["reference_sha256"]
            lines.append(f"{name} against {count} real pictures ({digest}{how})")
    return lines


def _lines(printed: pd.DataFrame) -> str:
    rows = [list(printed), ["---"] * printed.shape[1], *printed.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
