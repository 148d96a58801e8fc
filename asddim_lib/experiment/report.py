"""The paper's tables from an experiment's records: quality (Tables 1–3) and time (Tables 4–6), with the paper's own figures beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from asddim_lib.errors import check
from asddim_lib.experiment.evaluate import read_records
from asddim_lib.models.load import data_folder


class Figure(NamedTuple):
    """How a column of a summary is printed: under which title, times what, with how many decimals; and which column of the paper's tables it answers."""

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
TIME = {"seconds": Figure("seconds an image", 3, paper="seconds")}
_PAPER = {
    "fid": ("paper's FID", 1),
    "clip": ("paper's CLIP", 3),
    "seconds": ("paper's seconds", 2),
}  # with as many decimals as it prints


def paper_tables() -> pd.DataFrame:
    """The paper's Tables 1–6: fid, clip and seconds by step count and method."""
    return pd.read_csv(data_folder() / "paper_tables.csv").set_index(["steps", "method"])


def table(summary: pd.DataFrame, figures: dict[str, Figure]) -> pd.DataFrame:
    """A summary's rows as they are printed: each of the `figures` that it has, with half its 95 % interval, and what the paper prints of the same
    method at the same step count, where it does. Time stands beside the network evaluations that it took; N is a column where it is not the
    same in all rows."""
    paper = paper_tables()
    shown = {key: how for key, how in figures.items() if key in summary}
    known = any(
        same in paper.index for same in zip(summary["steps"], summary["method"], strict=True)
    )
    asked = list(dict.fromkeys(how.paper for how in shown.values() if how.paper and known))

    def cells(row: pd.Series) -> dict[str, Any]:
        same = (row["steps"], row["method"])
        found = {"steps": row["steps"], "method": row["method"]}
        found |= {"N": row["n"]} if summary["n"].nunique() > 1 else {}
        found |= {"evaluations": row["nfe"]} if "seconds" in shown else {}
        found |= {
            how.title: plus_minus(row[key], row[f"{key}_ci"], how) for key, how in shown.items()
        }
        printed = {
            _PAPER[name][0]: f"{paper.loc[same, name]:.{_PAPER[name][1]}f}"
            if same in paper.index
            else "–"
            for name in asked
        }
        return found | printed

    return pd.DataFrame([cells(row) for _, row in summary.iterrows()])


def plus_minus(value: float, half: float, how: Figure) -> str:
    """A figure and half its interval, or – where there is none."""
    return (
        "–"
        if pd.isna(value)
        else f"{how.times * value:.{how.decimals}f} ± {how.times * half:.{how.decimals}f}"
    )


class Run(NamedTuple):
    """What is on record in a folder: where it came from, and its summary."""

    folder: Path
    provenance: dict[str, Any]
    summary: pd.DataFrame


def read_run(folder: Path) -> Run:
    """The record of a finished run. Raises ValueError where there is none, or where it does not hold what was written."""
    files = [folder / name for name in ("records.parquet", "summary.csv", "provenance.json")]
    missing = [file.name for file in files if not file.is_file()]
    check(
        not missing,
        "folder",
        f"{folder}, without {', '.join(missing)}",
        "name the folder of a run that has ended (asddim evaluate --out …)",
    )
    read_records(folder)
    return Run(folder, json.loads(files[2].read_text()), pd.read_csv(files[1]))


def markdown(run: Run) -> str:
    """The tables of a run, under a line that says what they are of."""
    origin, parts = ", ".join(_origin(run.provenance)), []
    for (scale, solver), part in run.summary.groupby(["guidance_scale", "solver"], sort=False):
        parts.append(f"**{run.folder}**, guidance {scale:g}, {solver}: {origin}")
        parts += [
            f"{title}\n\n{_lines(table(part, figures))}"
            for title, figures in (("Tables 1–3: quality", QUALITY), ("Tables 4–6: time", TIME))
        ]
        if failed := int(part["failed"].sum()) if "failed" in part else 0:
            parts.append(f"{failed} pictures failed, and are in no figure.")
    return "\n\n".join(parts)


def _origin(said: dict[str, Any]) -> list[str]:
    """What the figures of a record hang on; older records say less."""
    found = [
        f"{said['prompts']} prompts a row{', of ' + said['prompts_from'] if 'prompts_from' in said else ''}"
    ]
    found += [f"{said['dtype'].removeprefix('torch.')} on {said['device']}"]
    found += [f"{key} {said[key]}" for key in ("model", "revision", "clip") if said.get(key)]
    found += [f"weights {said['weights_sha256']}", f"commit {said.get('commit') or 'unknown'}"]
    for name, against in (
        ("judge", said),
        ("inception", said.get("inception")),
        ("dinov2", said.get("dinov2")),
    ):
        if against and "reference_sha256" in against:
            how = f", prepared as {against['prepare']}" if "prepare" in against else ""
            found.append(
                f"{name} against {against['reference_n']} real pictures ({against['reference_sha256']}{how})"
            )
    return found


def _lines(shown: pd.DataFrame) -> str:
    rows = [list(shown), ["---"] * shown.shape[1], *shown.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
