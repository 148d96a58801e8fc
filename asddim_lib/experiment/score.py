"""Pictures that were drawn, judged: a record a picture, a row a method, and differences in pairs."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from asddim_lib import metrics
from asddim_lib.errors import check
from asddim_lib.experiment.setting import Batch, Cell, Setting, batches, cells, references
from asddim_lib.experiment.store import load
from asddim_lib.metrics.features.reference import Reference


def judge(
    table: pd.DataFrame, setting: Setting, out: Path, device: str = "cpu", clip: str | None = None
) -> tuple[pd.DataFrame, dict[Cell, Tensor]]:
    """Reads the pictures back: one record a picture (CLIP cosine, attributes, seconds, threads, NFE, distance), and each cell's judge features.

    The distance is that of a picture's latents from the reference's for the same seed, over the reference's spread about its mean. Attributes
    and features are those of prompts with the bundled ones' columns, for which alone the bundled judge was made; `clip`, a folder or hub id,
    scores the pictures of others. A picture that is `failed` has no figures. Pictures are read a batch at a time.
    """
    records, features = [], {}
    goals = {
        cell.guidance_scale: torch.cat(
            [load(b.file(out))["latents"] for b in batches(cell, len(table), setting)]
        ).flatten(1)
        for cell in references(setting)
    }
    for cell in cells(setting):
        parts = [
            _judged(load(b.file(out)), b, table.iloc[b.start : b.stop], device, clip)
            for b in batches(cell, len(table), setting)
        ]
        frame = pd.concat([part[0] for part in parts], ignore_index=True)
        if has_attributes(table):
            features[cell] = torch.cat([part[1] for part in parts])
        if cell.guidance_scale in goals:
            latents, goal = (
                torch.cat([part[2] for part in parts]).flatten(1),
                goals[cell.guidance_scale],
            )
            both = latents.isfinite().all(1) & goal.isfinite().all(1)
            frame.loc[both.numpy(), "distance"] = metrics.relative_distance(
                latents[both], goal[both]
            ).numpy()
        records.append(frame)
    return pd.concat(records, ignore_index=True), features


def _judged(
    held: dict[str, Tensor], batch: Batch, table: pd.DataFrame, device: str, clip: str | None
) -> tuple[pd.DataFrame, Tensor, Tensor]:
    """A batch's records, the judge's features of its sound pictures, and all its latents."""
    sound, features, measured = held["finite"].numpy(), torch.empty(0), {}
    images, asked = held["images"][held["finite"]], table[sound]
    if len(images) and (clip or has_attributes(table)):
        measured["clip"] = metrics.clip_cosine(
            images, list(asked["prompt"]), clip, device=device
        ).numpy()
    if len(images) and has_attributes(table):
        features = metrics.judge_features(images, device=device)
        right = metrics.attributes_right(features, {name: list(asked[name]) for name in asked})
        measured |= {f"right_{k}": v.numpy() for k, v in right.items()}
    index = pd.RangeIndex(batch.start, batch.stop)
    frame = pd.DataFrame(
        {
            **asdict(batch.cell),
            "index": index,
            **({"category": table["category"].to_numpy()} if "category" in table else {}),
            **{key: held[key].item() for key in ("seconds", "threads", "at_once")},
            "nfe": batch.cell.evaluations,
            "failed": ~sound,
        },
        index=index,
    )
    return frame.join(pd.DataFrame(measured, index=index[sound])), features, held["latents"]


def has_attributes(table: pd.DataFrame) -> bool:
    """Whether these prompts are of the bundled kind, whose attributes the bundled judge reads."""
    return {"garment_a", "count", "relation"} <= set(table)


def summarize(records: pd.DataFrame, features: dict[Cell, Tensor]) -> pd.DataFrame:
    """One row a cell: each metric and the half-width of its 95 % interval, and the numbers of pictures judged and failed.

    No FID of too few pictures for one.
    """
    rows, keys = [], [field.name for field in fields(Cell)]
    for key, every in records.groupby(keys, sort=False):
        cell, part = Cell(**dict(zip(keys, key, strict=True))), every[~every["failed"].astype(bool)]
        row: dict[str, Any] = {
            **asdict(cell),
            "n": len(part),
            "failed": len(every) - len(part),
            "nfe": int(every["nfe"].iloc[0]),
        }
        if cell in features and len(part) > 1:
            reference = metrics.reference_features()
            if len(part) > features[cell].shape[1]:
                row["fid"], row["fid_ci"] = metrics.fid_interval(features[cell], reference)
            if len(part) > 2 * features[cell].shape[1] + 1:
                row["fid_infinity"] = metrics.fid_infinity(features[cell], reference)
            row["kid"], row["kid_ci"] = metrics.kid(features[cell], reference)
        for name, column in (("clip", "clip"), ("right", "right_all"), ("distance", "distance")):
            if column in part and len(part):
                row[name], row[f"{name}_ci"] = metrics.mean_interval(part[column].dropna())
        seconds = every["seconds"].drop_duplicates()
        row["seconds"] = float(seconds.median())
        row["seconds_ci"] = metrics.mean_interval(seconds)[1]
        row["threads"] = " or ".join(str(n) for n in sorted(set(every["threads"])))
        rows.append(row)
    return pd.DataFrame(rows)


def real_figures(
    summary: pd.DataFrame,
    count: int,
    setting: Setting,
    out: Path,
    real: Reference,
    device: str = "cpu",
) -> dict[str, Any]:
    """Adds FID and KID against real pictures to a summary of `count` prompts, and FID at infinity where there are enough pictures for one.

    Returns what they were measured against. FID is given of any two pictures or more, since the paper has it of fewer than features; KID is
    unbiased.
    """
    goal, name = real.real(device)
    for row, cell in enumerate(cells(setting)):
        held = [load(batch.file(out)) for batch in batches(cell, count, setting)]
        sound = [part["images"][part["finite"]] for part in held if part["finite"].any()]
        if sum(map(len, sound)) < 2:
            continue
        features = torch.cat([real.features(images, device) for images in sound])
        found = dict(
            zip(
                ("fid", "fid_ci"),
                metrics.fid_interval(features, goal, resamples=10, rank_deficient=True),
                strict=True,
            )
        )
        if len(features) <= len(goal):
            found |= dict(zip(("kid", "kid_ci"), metrics.kid(features, goal), strict=True))
        if len(features) > 2 * features.shape[1] + 1:
            found["fid_infinity"] = metrics.fid_infinity(features, goal)
        for key, value in found.items():
            summary.loc[row, f"{real.name}_{key}"] = value
    return asdict(real) | {"reference_sha256": name, "reference_n": len(goal)}


def paired(records: pd.DataFrame, baseline: str, key: str) -> pd.DataFrame:
    """How each method differs from the baseline in `key`, picture by picture of the same prompt and noise: one row a cell.

    `difference` is the mean, `half` the half-width of its 95 % interval, `p_value` Wilcoxon's signed-rank test's.
    """
    from scipy.stats import wilcoxon

    rows = []
    for (scale, steps, solver), part in records.groupby(
        ["guidance_scale", "steps", "solver"], sort=False
    ):
        wide = part.pivot(index="index", columns="method", values=key).astype(float)
        check(baseline in wide, "baseline", baseline, f"use one of {', '.join(wide)}")
        for method in (name for name in part["method"].unique() if name != baseline):
            change = (
                (wide[method] - wide[baseline]).dropna().to_numpy()
            )  # without the pairs of which one failed
            mean, half = metrics.mean_interval(change)
            p_value = float(wilcoxon(change).pvalue) if change.any() else 1.0
            rows.append(
                {
                    "guidance_scale": scale,
                    "steps": steps,
                    "solver": solver,
                    "method": method,
                    "difference": mean,
                    "half": half,
                    "p_value": p_value,
                }
            )
    return pd.DataFrame(rows)
