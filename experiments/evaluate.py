"""The paper's experiment (Tables 1–6): drawn once, kept, judged, and summed up in records."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from asddim_lib import metrics
from asddim_lib.cache import short_hash, unseal, write_whole
from asddim_lib.errors import WrongUse, check
from asddim_lib.metrics.encoders import Encoder, load_encoder
from asddim_lib.metrics.real import picture_files
from asddim_lib.models.load import Pipeline, data_folder, device_of, network
from asddim_lib.models.prompts import check_prompts, load_prompts
from experiments import attributes
from experiments.draw import file_hash, generate, weights_hash
from experiments.grids import find_grids, find_plans, grid_file
from experiments.records import read_records
from experiments.score import has_attributes, real_figures, score_pictures, summarize
from experiments.setting import (
    Batch,
    Cell,
    Setting,
    batches,
    check_plans,
    needs,
    references,
)
from experiments.shards import ALONE, Shard
from experiments.store import load

log = logging.getLogger(__name__)


def evaluate(
    pipe: Pipeline,
    table: pd.DataFrame,
    setting: Setting,
    out: str | os.PathLike,
    progress: Callable[[list[Batch]], Iterable[Batch]] = iter,
    teach_on: int = 256,
    shard: Shard = ALONE,
    clip: str | None = None,
    reference: str = "",
    against: Sequence[Encoder] = (),
) -> pd.DataFrame:
    """Runs the whole experiment: grids, pictures, records and summary, all saved in `out`.

    Grids are measured on prompts that are not reported on, as the setting says; the path of the
    oracle and of GITS on `teach_on` prompts over 60 steps, as GITS' authors do. One process
    measures while others wait. Each process draws its shard. One judges when all pictures are
    there: it reads them from files, so no figure depends on the number of processes.
    FID and KID from the real pictures in the folder `reference` are added by the features of each
    encoder in `against`.
    Returns the summary, with the number of `failed_references` in its attrs; a process that does
    not judge returns a row with the number of its pictures that failed. Raises WrongUse as
    `generate` does.
    """
    out, prompts = Path(out), list(table["prompt"])
    remedy = "give at least two prompts, or reference_steps=0: distances are over their spread"
    check(len(prompts) > 1 or not setting.reference_steps, "prompts", "only one", remedy)
    check_plans(pipe, setting)
    _check_networks(pipe, setting, prompts, clip)
    if against:
        picture_files(reference)
    tuning = _tuning_prompts(setting, prompts)
    grids, profiles = find_grids(pipe, setting, out, tuning, teach_on)
    plans = find_plans(pipe, setting, out, tuning)
    failed = generate(pipe, prompts, setting, grids, out, progress, shard, plans)
    shard.part()
    if not shard.judges:
        return pd.DataFrame({"shard": [f"{shard.number}/{shard.count}"], "failed": [failed]})
    _name_damage(out)
    records, features = score_pictures(pipe, table, setting, out, clip)
    summary = summarize(records, features)
    if not setting.planned:  # the files are those of versions without plans
        records, summary = (one.drop(columns="guidance_plan") for one in (records, summary))
    origin: dict[str, Any] = {"clip": clip or ("bundled" if has_attributes(table) else None)}
    for encoder in against:
        where = (setting, out, encoder, reference)
        origin[encoder.name] = real_figures(summary, len(table), *where)
    summary.attrs["failed_references"] = _failed_references(pipe, setting, len(table), out)
    for scale, profile in profiles.items():
        profile.save(out / f"profile-g{scale:g}.json")
    if features:
        reference = file_hash(data_folder() / "reference.safetensors")
        origin["reference_sha256"] = reference
        origin["reference_n"] = len(attributes.reference_features())
    if plans:
        origin["plans"] = {cell.name: plan.to_dict() for cell, plan in plans.items()}
    _write(out, records, summary, provenance(setting, pipe, table) | origin | _grids(grids, out))
    return summary


def _tuning_prompts(setting: Setting, prompts: list[str]) -> list[str]:
    """The prompts that grids are measured on: none that is reported on."""
    if not setting.measures:
        return []
    reported = set(prompts)
    known = load_prompts(setting.tuning_prompts)["prompt"]
    tuning = [prompt for prompt in known if prompt not in reported]
    what = f"{setting.tuning_prompts}, all of which are reported on, too"
    check(bool(tuning), "tuning_prompts", what, "name another set")
    return tuning


def _name_damage(out: Path) -> None:
    """Logs that the records are damaged; they are about to be written again from the pictures."""
    if (out / "records.parquet").exists():
        try:
            read_records(out)
        except WrongUse as error:
            log.warning("%s", error)


def _failed_references(pipe: Pipeline, setting: Setting, count: int, out: Path) -> int:
    wanted = references(setting, pipe.scheduler)
    files = [b.file(out) for cell in wanted for b in batches(cell, count, setting)]
    return sum(int((~load(file)["finite"]).sum()) for file in files)


def _grids(grids: dict[Cell, Any], out: Path) -> dict[str, Any]:
    """Every cell's grid, and the trials of those that a search chose."""
    tried = [cell for cell in grids if needs(cell.method) == "trials"]
    return {
        "grids": {cell.name: grid for cell, grid in grids.items()},
        "tried": {cell.name: unseal(grid_file(cell, out)) for cell in tried},
    }


def _write(out: Path, records: pd.DataFrame, summary: pd.DataFrame, origin: dict[str, Any]) -> None:
    file = out / "records.parquet"
    write_whole(file, lambda part: records.to_parquet(part, index=False))
    write_whole(out / "summary.csv", lambda part: summary.to_csv(part, index=False))
    text = json.dumps(origin | {"records_sha256": file_hash(file)}) + "\n"
    write_whole(out / "provenance.json", lambda part: part.write_text(text))


def _check_networks(pipe: Pipeline, setting: Setting, prompts: list[str], clip: str | None) -> None:
    """Loads the encoders, so that a wrong one is refused before any picture is drawn."""
    device = str(device_of(pipe))
    if clip:
        check_prompts(metrics.load_clip(clip, device)[1], prompts, truncate=setting.truncate)
    for encoder in filter(None, (setting.encoder, setting.check_encoder)):
        load_encoder(encoder, device)


def provenance(setting: Setting, pipe: Pipeline, table: pd.DataFrame) -> dict[str, Any]:
    """The provenance of a record: setting, weights, prompts, versions, machine."""
    import diffusers

    return {
        "setting": asdict(setting),
        "prompts": len(table),
        "prompts_sha256": short_hash(list(table["prompt"])),
        **table.attrs,
        "model": pipe.config.get("_name_or_path"),
        "revision": pipe.config.get("_revision"),
        "weights_sha256": weights_hash(pipe),
        "dtype": str(network(pipe).dtype),
        "save_memory": pipe.config.get("_save_memory", []),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(device_of(pipe)),
    }


def commit() -> str | None:
    """The commit of the checkout that the library is imported from, with a + after changes.

    Of an installed library it is the version, if known.
    """
    root = Path(__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        with contextlib.suppress(PackageNotFoundError):
            return version("asddim-lib")
        return None
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
