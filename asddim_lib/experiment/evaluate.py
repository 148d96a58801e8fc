"""The paper's experiment (Tables 1–6): pictures drawn once, kept, judged, and summed up in records that say where they come from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
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
from asddim_lib.core.coordinates import is_flow
from asddim_lib.errors import check
from asddim_lib.experiment.grids import find_grids, found_file
from asddim_lib.experiment.score import has_attributes, judge, real_figures, summarize
from asddim_lib.experiment.setting import (
    SOLVERS,
    TRIED,
    Batch,
    Cell,
    Setting,
    batches,
    cells,
    references,
)
from asddim_lib.experiment.shards import ALONE, Shard
from asddim_lib.experiment.store import draw, load, load_latents, made_from, save, whole
from asddim_lib.files import locked, seal, short_hash, unseal, write_whole
from asddim_lib.metrics.features.reference import Reference
from asddim_lib.models.load import Pipeline, data_folder, device_of, network, weights_hash
from asddim_lib.models.prompts import check_prompts, load_prompts

log = logging.getLogger(__name__)


def evaluate(
    pipe: Pipeline,
    table: pd.DataFrame,
    setting: Setting,
    out: Path,
    progress: Callable[[list[Batch]], Iterable[Batch]] = iter,
    teach_on: int = 256,
    shard: Shard = ALONE,
    clip: str | None = None,
    against: Sequence[Reference] = (),
) -> pd.DataFrame:
    """The whole experiment: grids, pictures, records, summary; all kept in `out`.

    What a grid needs is measured on prompts that are not reported on: profiles as the setting has it, the path of the oracle and of GITS on
    `teach_on` prompts over 60 steps, as GITS' authors do, and what is found by trying as the setting has it. One process measures, others
    wait for it. Each process draws its shard. One judges, when all pictures are there: it reads them from files, so that no figure is put
    together from several processes' parts, and none hangs on how many there were. Figures `against` real pictures are added for each kind of
    features that is given.
    Returns the summary, with the number of `failed_references` in its attrs; of a process that does not judge, a row that says how many of its
    pictures failed. Raises ValueError as `generate` does.
    """
    if clip:
        check_prompts(
            metrics.load_clip(clip, str(device_of(pipe)))[1], list(table["prompt"])
        )  # what does not serve is told now, not after the pictures
    for real in against:
        real.network(str(device_of(pipe)))
    tune = (
        [
            prompt
            for prompt in load_prompts(setting.tuning_prompts)["prompt"]
            if prompt not in set(table["prompt"])
        ]
        if setting.measures
        else []
    )
    check(
        bool(tune) or not setting.measures,
        "tuning_prompts",
        f"{setting.tuning_prompts}, all of which are reported on, too",
        "name another set",
    )
    grids, profiles = find_grids(pipe, setting, out, tune, teach_on)
    failed = generate(pipe, table, setting, grids, out, progress, shard)
    shard.part()
    if not shard.judges:
        return pd.DataFrame({"shard": [f"{shard.number}/{shard.count}"], "failed": [failed]})
    if (out / "records.parquet").exists():
        try:
            read_records(out)
        except ValueError as error:
            log.warning("%s", error)
    records, features = judge(table, setting, out, str(device_of(pipe)), clip)
    summary = summarize(records, features)
    by: dict[str, Any] = {
        real.name: real_figures(summary, len(table), setting, out, real, str(device_of(pipe)))
        for real in against
    }
    sound = [
        load(batch.file(out))["finite"]
        for cell in references(setting)
        for batch in batches(cell, len(table), setting)
    ]
    summary.attrs["failed_references"] = sum(int((~finite).sum()) for finite in sound)
    for scale, profile in profiles.items():
        profile.save(out / f"profile-g{scale:g}.json")
    write_whole(out / "records.parquet", lambda part: records.to_parquet(part, index=False))
    write_whole(out / "summary.csv", lambda part: summary.to_csv(part, index=False))
    tried = {cell.name: unseal(found_file(cell, out)) for cell in grids if cell.method in TRIED}
    by |= (
        {
            "reference_sha256": _file_hash(data_folder() / "reference.safetensors"),
            "reference_n": len(metrics.reference_features()),
        }
        if features
        else {}
    )
    found = provenance(setting, pipe, table) | {
        **by,
        "clip": clip or ("bundled" if has_attributes(table) else None),
        "records_sha256": _file_hash(out / "records.parquet"),
        "grids": {cell.name: grid for cell, grid in grids.items()},
        "tried": tried,
    }
    write_whole(out / "provenance.json", lambda part: part.write_text(json.dumps(found) + "\n"))
    return summary


def generate(
    pipe: Pipeline,
    table: pd.DataFrame,
    setting: Setting,
    grids: dict[Cell, Any],
    out: Path,
    progress: Callable[[list[Batch]], Iterable[Batch]] = iter,
    shard: Shard = ALONE,
) -> int:
    """Draws a shard's pictures of the experiment into `out`/images; image i starts from the noise of seed i, whatever the method.

    A batch is written, whole, as soon as it is drawn: a run that was stopped goes on where it stopped, a damaged file is named and drawn
    again, and a folder that holds other pictures under the same names is refused. Methods take turns batch by batch, in the same process, so
    that a drift in the machine's speed touches all alike. A picture that is not finite is named, and drawn again by the next run.
    Returns how many are not finite. Raises ValueError for wrong prompts or a missing grid.
    """
    prompts = list(table["prompt"])
    check_prompts(pipe, prompts)
    latents = load_latents(setting.latents)
    wanted = list(dict.fromkeys((*cells(setting), *references(setting))))
    for cell in wanted:
        check(cell in grids, "grids", f"without {cell.name}", "give the timesteps of every cell")
    origin = _origin(pipe, prompts, setting)
    with locked(out / "images"):
        _claim(out, origin, {cell.name: grids[cell] for cell in wanted})
    groups: dict[tuple[float, int], list[list[Batch]]] = {}
    for cell in wanted:
        groups.setdefault((cell.guidance_scale, cell.steps), []).append(
            batches(cell, len(prompts), setting)
        )
    turns = list(
        enumerate(turn for group in groups.values() for turn in zip(*group, strict=True))
    )  # each has all methods' batches of the same prompts
    found = [
        (number, left)
        for number, turn in shard.share(turns)
        if (left := [batch for batch in turn if not whole(batch.file(out))])
    ]
    original, failed, at_once, warm = pipe.scheduler, 0, setting.batch_size, False
    flow = is_flow(original)
    try:
        for batch in progress([batch for _, left in shard.deal(found) for batch in left]):
            pipe.scheduler = (
                original if flow else SOLVERS[batch.cell.solver][0].from_config(original.config)
            )
            pipe.scheduler.strict = (
                False  # one picture's fault does not stop the batch: draw tells which are finite
            )
            seeds = list(range(batch.start, batch.stop))
            what: dict[str, Any] = {
                "prompts": [prompts[seed] for seed in seeds],
                "seeds": seeds,
                "guidance_scale": batch.cell.guidance_scale,
            }
            what |= {"latents": latents, "negative_prompt": setting.negative_prompt}
            if (
                not warm
            ):  # the first call of a process pays for lazy initialisation; it is not timed
                draw(pipe, **what, batch_size=at_once, num_inference_steps=1)
                warm = True
            drawn = draw(
                pipe,
                **what,
                batch_size=at_once,
                **{"sigmas" if flow else "timesteps": grids[batch.cell]},
            )
            save(batch.file(out), drawn, {**origin, "grid": grids[batch.cell]})
            at_once = (
                min(at_once, drawn.at_once) if drawn.at_once < batch.pictures else at_once
            )  # what the memory did not hold, it is not asked for again
            for seed in (
                seed for seed, sound in zip(seeds, drawn.finite.tolist(), strict=True) if not sound
            ):
                log.warning(
                    "%s: not finite for prompt %r, seed %d; the picture counts as failed",
                    batch.cell.name,
                    prompts[seed],
                    seed,
                )
                failed += 1
    finally:
        pipe.scheduler = original
    return failed


def read_records(out: Path) -> pd.DataFrame:
    """An experiment's records. Raises ValueError, which names the file, where it does not hold what was written."""
    file, said = out / "records.parquet", out / "provenance.json"
    try:
        wanted = json.loads(said.read_text()).get("records_sha256") if said.exists() else None
        check(
            wanted in (None, _file_hash(file)),
            "its checksum",
            "another",
            "provenance.json has the right one",
        )
        return pd.read_parquet(file)
    except (ValueError, OSError) as error:  # Arrow's errors are of either kind
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{file} is damaged ({reason}); run the same command again: it is made anew from the pictures"
        ) from error


def _file_hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def provenance(setting: Setting, pipe: Pipeline, table: pd.DataFrame) -> dict[str, Any]:
    """What a record must say of where it came from: setting, weights, prompts, versions, machine."""
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
    """The commit of the checkout that the library is imported from, with a + where something was changed; of an installed one its version, if known."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        with contextlib.suppress(PackageNotFoundError):
            return version("asddim-lib")
        return None
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or None


def _origin(pipe: Pipeline, prompts: list[str], setting: Setting) -> dict[str, Any]:
    """What all pictures of a folder depend on, beside their grids."""
    found = {
        "batch_size": setting.batch_size,
        "prompts": short_hash(prompts),
        "weights": weights_hash(pipe),
        "dtype": str(network(pipe).dtype),
    }
    found |= {"negative_prompt": setting.negative_prompt} if setting.negative_prompt else {}
    found |= {"save_memory": saved} if (saved := pipe.config.get("_save_memory")) else {}
    return found | ({"latents": _file_hash(Path(setting.latents))} if setting.latents else {})


def _claim(out: Path, origin: dict[str, Any], grids: dict[str, Any]) -> None:
    """Writes what the folder's pictures depend on, or refuses a folder whose pictures depend on something else. New cells may join."""
    file = out / "images" / "claim.json"
    held = unseal(file) or _claimed(out) or origin
    other = [
        key for key in sorted({*origin, *held} - {"grids"}) if held.get(key) != origin.get(key)
    ]
    other += [
        f"grid of {name}"
        for name, grid in grids.items()
        if held.get("grids", {}).get(name, grid) != grid
    ]
    check(
        not other,
        "out",
        f"{out}, which holds pictures of another {', '.join(other)}",
        "name another folder or remove this one",
    )
    seal(file, {**origin, "grids": {**held.get("grids", {}), **grids}})


def _claimed(out: Path) -> dict[str, Any]:
    """What the claim said, as the pictures say it, each for its cell; nothing where there are none."""
    found: dict[str, Any] = {}
    for file in sorted((out / "images").glob("*.safetensors")):
        try:
            said = made_from(file) or {}
        except ValueError:  # damaged: it is named and drawn again in its turn
            continue
        cell, grid = file.stem.rpartition("-")[0], said.pop("grid", None)
        found = {**said, "grids": {**found.get("grids", {}), cell: grid}}
    return found
