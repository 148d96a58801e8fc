"""Scores of drawn pictures: a record per picture, a row per cell, and paired differences."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from asddim_lib import metrics
from asddim_lib.metrics.encoders import Encoder, embed, load_encoder
from asddim_lib.metrics.kid import kid, kid_shares
from asddim_lib.metrics.real import real_features
from asddim_lib.models.load import Pipeline, device_of
from experiments import attributes
from experiments.diversity import NEIGHBOUR, covered, spreads
from experiments.fid import fid_infinity, fid_interval
from experiments.fine import Observed, beside_fine, concatenated
from experiments.intervals import effective_size, proportion_half_width, proportion_interval
from experiments.setting import (
    Batch,
    Cell,
    Setting,
    batches,
    cells,
    picture_evaluations,
    references,
)
from experiments.store import load


def score_pictures(
    pipe: Pipeline, table: pd.DataFrame, setting: Setting, out: Path, clip: str | None = None
) -> tuple[pd.DataFrame, dict[Cell, Tensor]]:
    """Reads an experiment's pictures back, one batch at a time, and scores them on pipe's device.

    Returns one record per picture and the judge's features (n × d) of each cell. A record has the
    CLIP cosine, the attributes, seconds, threads, network evaluations, the share in the KID from
    real pictures (`kid_shares`), and with a reference the columns of `beside_fine`. Where texts
    occur again, `spread` is the distance from the other pictures of its text (`spreads`). Only
    prompts with the columns of the bundled ones have attributes and features, since the judge was
    trained on those. `clip`, a folder or a hub id, scores the pictures of other prompts. It embeds
    them, too, unless the setting has an `encoder`; their features are its `check_encoder`'s, if it
    has one. A picture that is `failed` has no figures.

    Raises WrongUse for a reference of one prompt, which has no spread.
    """

    def scored(cell: Cell) -> tuple[pd.DataFrame, Observed]:
        parts = [
            _scored(batch, table.iloc[batch.start : batch.stop], pipe, setting, out, clip)
            for batch in batches(cell, len(table), setting)
        ]
        frame = pd.concat([part[0] for part in parts], ignore_index=True)
        return frame, concatenated([part[1] for part in parts])

    records, features = [], {}
    goals = {cell.guidance_scale: scored(cell)[1] for cell in references(setting, pipe.scheduler)}
    for cell in cells(setting):
        frame, seen = scored(cell)
        if has_attributes(table):
            sound = ~frame["failed"].to_numpy()
            features[cell] = seen.features[torch.from_numpy(sound)]
            if sound.sum() > 1:
                real = (attributes.reference_features(), attributes.reference_kernel())
                shares = kid_shares(features[cell], *real)
                frame.loc[sound, "kid_share"] = shares.numpy()
            if frame["prompt"].duplicated().any():
                frame["spread"] = spreads(seen.features, frame["prompt"])
        if cell.guidance_scale in goals:
            frame = frame.join(beside_fine(seen, goals[cell.guidance_scale]))
        records.append(frame)
    return pd.concat(records, ignore_index=True), features


def _scored(
    batch: Batch,
    table: pd.DataFrame,
    pipe: Pipeline,
    setting: Setting,
    out: Path,
    clip: str | None,
) -> tuple[pd.DataFrame, Observed]:
    """A batch's records, and what encoders see of its pictures. `table` has the batch's rows."""
    stored, device = load(batch.file(out)), str(device_of(pipe))
    finite = stored["finite"].numpy()
    images, asked = stored["images"][stored["finite"]], table[finite]
    rows = stored["rows"].item() if "rows" in stored else 0  # counted under a guidance plan
    scores: dict[str, np.ndarray] = {}
    features = embeddings = torch.empty(len(finite), 0)
    if len(images):
        judged, encoder = has_attributes(table), setting.encoder
        if clip or judged:
            prompts = list(asked["prompt"])
            cosine = metrics.clip_cosine(
                images, prompts, clip, device=device, truncate=setting.truncate
            )
            scores["clip"], encoder = cosine.numpy(), encoder or clip or "bundled"
        if encoder:
            embeddings = _placed(embed(load_encoder(encoder, device), images), finite)
        if judged:
            found = attributes.judge_features(images, device=device)
            features = _placed(found, finite)
            right = attributes.attributes_right(found, {name: list(asked[name]) for name in asked})
            scores |= {f"right_{name}": hits.numpy() for name, hits in right.items()}
        elif setting.check_encoder:
            features = _placed(embed(load_encoder(setting.check_encoder, device), images), finite)
    index = pd.RangeIndex(batch.start, batch.stop)
    frame = pd.DataFrame(
        {
            **asdict(batch.cell),
            "index": index,
            **{name: table[name].to_numpy() for name in ("prompt", "category") if name in table},
            **{key: stored[key].item() for key in ("seconds", "threads", "at_once")},
            "nfe": rows / batch.pictures or picture_evaluations(pipe, setting, batch.cell),
            "failed": ~finite,
        },
        index=index,
    )
    figures = pd.DataFrame(scores, index=index[finite])
    return frame.join(figures), Observed(stored["latents"], embeddings, features)


def _placed(values: Tensor, finite: np.ndarray) -> Tensor:
    """Rows of values where pictures are finite, and NaN elsewhere (n × d, float64)."""
    whole = torch.full((len(finite), values.shape[1]), torch.nan, dtype=torch.float64)
    whole[torch.from_numpy(finite)] = values.double()
    return whole


def has_attributes(table: pd.DataFrame) -> bool:
    """Whether the prompts have the columns of the bundled ones, which the judge needs."""
    return {"garment_a", "count", "relation"} <= set(table)


def summarize(records: pd.DataFrame, features: dict[Cell, Tensor]) -> pd.DataFrame:
    """One row per cell: each figure with its 95 % half-width (`…_ci`), `n` judged and `failed`.

    `clip` and `distance` are means with Student's t. `right` is a share with Wilson's interval
    from `right_low` to `right_high`; `right_ci` reaches the farther end. `seconds` is the median of
    the batches, and `seconds_ci` the half-width of their mean by Student's t. FID needs more
    pictures than features, and is left out of a cell with fewer.
    """
    rows, keys = [], [field.name for field in fields(Cell)]
    for key, every in records.groupby(keys, sort=False):
        cell, nfe = Cell(**dict(zip(keys, key, strict=True))), float(every["nfe"].mean())
        judged = every[~every["failed"].astype(bool)]
        row: dict[str, Any] = {
            **asdict(cell),
            "n": len(judged),
            "failed": len(every) - len(judged),
            "nfe": int(nfe) if nfe.is_integer() else nfe,
        }
        if cell in features and len(judged) > 1:
            row |= _judge_figures(features[cell], judged["prompt"])
        row |= figures(judged)
        seconds = every["seconds"].drop_duplicates()
        row["seconds"] = float(seconds.median())
        row["seconds_ci"] = metrics.mean_interval(seconds)[1]
        row["threads"] = " or ".join(str(n) for n in sorted(set(every["threads"])))
        rows.append(row)
    return pd.DataFrame(rows)


def figures(judged: pd.DataFrame) -> dict[str, float]:
    """The figures of one cell's judged records that are means or shares over its pictures.

    Pictures of one prompt text are a cluster.
    """
    row: dict[str, float] = {}
    means = ("kid_share", "own_kid_share", "clip", "distance", "embedding", "looks", "spread")
    for column in means:
        name = column.removesuffix("_share")
        known = judged[judged[column].notna()] if column in judged else judged[:0]
        if len(known):
            row[name], row[f"{name}_ci"] = metrics.mean_interval(known[column], known.get("prompt"))
    known = judged[judged["right_all"].notna()] if "right_all" in judged else judged[:0]
    if len(known):
        right = known["right_all"].to_numpy(float)
        size = effective_size(right, known.get("prompt"))
        hits = right.mean() * size
        row["right"], row["right_ci"] = right.mean(), proportion_half_width(hits, size)
        row["right_low"], row["right_high"] = proportion_interval(hits, size)
    return row


def _judge_figures(features: Tensor, texts: pd.Series) -> dict[str, float]:
    """FID, FID at infinity and recall by the judge's features (n × d), of enough pictures."""
    row: dict[str, float] = {}
    reference = attributes.reference_features()
    if len(features) > NEIGHBOUR:
        hits = covered(features, reference)
        row["recall"] = float(hits.mean())
        row["recall_ci"] = proportion_half_width(float(hits.sum()), len(hits))
    if len(features) > features.shape[1]:
        row["fid"], row["fid_ci"] = fid_interval(features, reference, clusters=texts)
    if len(features) > 2 * features.shape[1] + 1:
        row["fid_infinity"] = fid_infinity(features, reference)
    return row


def real_figures(
    summary: pd.DataFrame, count: int, setting: Setting, out: Path, encoder: Encoder, folder: str
) -> dict[str, Any]:
    """Adds FID and KID against a folder's real pictures to a summary of `count` prompts, in place.

    FID needs two pictures, since the paper reports it of fewer pictures than features; KID is
    unbiased. FID at infinity needs more than twice as many pictures as features. Returns the
    provenance of the reference.
    """
    goal, name = real_features(encoder, folder)
    for row, cell in enumerate(cells(setting)):
        stored = [load(batch.file(out)) for batch in batches(cell, count, setting)]
        finite = [part["images"][part["finite"]] for part in stored if part["finite"].any()]
        if sum(map(len, finite)) < 2:
            continue
        features = torch.cat([embed(encoder, images) for images in finite])
        value, half = fid_interval(features, goal, resamples=10, rank_deficient=True)
        scores = {"fid": value, "fid_ci": half}
        if len(features) <= len(goal):
            scores["kid"], scores["kid_ci"] = kid(features, goal)
        if len(features) > 2 * features.shape[1] + 1:
            scores["fid_infinity"] = fid_infinity(features, goal)
        for key, score in scores.items():
            summary.loc[row, f"{encoder.name}_{key}"] = score
    origin = {"reference": folder, "weights": encoder.weights, "prepare": encoder.preparation}
    return origin | {"reference_sha256": name, "reference_n": len(goal)}
