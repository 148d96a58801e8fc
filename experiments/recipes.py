"""The recipes of a search, drawn again on prompts that served neither choice nor verdict."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from asddim_lib import metrics
from asddim_lib.cache import kept, sealed, short_hash, write_whole
from asddim_lib.digest import of_values
from asddim_lib.errors import check
from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.metrics.kid import kid_shares
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.recipe import Recipe
from experiments import attributes
from experiments.draw import file_hash, weights_hash
from experiments.evaluate import commit


def compared(folder: Path) -> tuple[dict[str, Recipe], dict[str, Any]]:
    """The recipes that a search compared, by name, and what its tune.json says."""
    said = sealed(folder / "tune.json")
    names = said["recipes"]
    return {name: Recipe.load(folder / "recipes" / name.replace(" ", "-")) for name in names}, said


def draw_recipes(
    pipe: Any,
    table: pd.DataFrame,
    folders: Iterable[Path],
    out: Path,
    leave_out: Iterable[str] = ("current",),
    batch_size: int = 32,
    options: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Draws and judges each search's recipes on the prompts of `table`, image i from seed i.

    What is seen of each batch is kept in `out`/drawn, so a stopped run goes on. Writes
    `out`/records.parquet, a row per picture, and provenance.json, and returns the records. The
    column `steps` has the search's number of evaluations, `nfe` the recipe's. Raises WrongUse where
    there is no recipe, and for pictures that are not finite.
    """
    weights, parts = weights_hash(pipe), []
    found: dict[str, dict[str, str]] = {}
    for folder in folders:
        recipes, said = compared(folder)
        found[folder.name] = said["recipes"]
        for name, recipe in recipes.items():
            if name in leave_out:
                continue
            run = _run(pipe, table, recipe, batch_size, options or {})
            seen = _seen(run, table, recipe, out / "drawn", weights)
            parts.append(_frame(table, seen, name, recipe, said["asked"]))
    check(bool(parts), "folders", "without a recipe", "give folders that `asddim recipe` wrote")
    records = pd.concat(parts, ignore_index=True)
    file = out / "records.parquet"
    write_whole(file, lambda part: records.to_parquet(part, index=False))
    said = {
        "recipes": found,
        "prompts": len(table),
        "prompts_sha256": short_hash(list(table["prompt"])),
        "weights_sha256": weights,
        "torch": torch.__version__,
        "commit": commit(),
        "records_sha256": file_hash(file),
    }
    text = json.dumps(said) + "\n"
    write_whole(out / "provenance.json", lambda part: part.write_text(text))
    return records


def _run(pipe: Any, table: pd.DataFrame, recipe: Recipe, size: int, options: dict) -> Run:
    return Run(
        pipe,
        list(table["prompt"]),
        range(len(table)),
        recipe.guidance_scale,
        size,
        options,
        scheduler=recipe.scheduler,
        guidance_plan=None if recipe.plan == GuidancePlan.constant() else recipe.plan,
        shift_steps=recipe.steps,
    )


def _seen(
    run: Run, table: pd.DataFrame, recipe: Recipe, drawn: Path, weights: str
) -> dict[str, Tensor]:
    """What the CLIP model and the judge see of a recipe's pictures."""
    parts = []
    for batch in tqdm(list(run.batches()), desc=recipe.name):
        part, asked = run.part(batch), table.iloc[batch.start : batch.stop]
        key = of_values(part.inputs, recipe.steps, weights)

        def look(part: Run = part, asked: pd.DataFrame = asked) -> dict[str, Tensor]:
            pictures = part.pictures(num_inference_steps=recipe.steps)
            check(bool(pictures.finite.all()), "pictures", "not finite", "draw in float32")
            judged = attributes.judge_features(pictures.images)
            right = attributes.attributes_right(judged, {name: list(asked[name]) for name in asked})
            clip = metrics.clip_cosine(pictures.images, list(asked["prompt"]), "bundled")
            return {"clip": clip, "judge": judged, **{f"right_{n}": r for n, r in right.items()}}

        parts.append(kept(drawn / f"{key}.safetensors", look))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _frame(
    table: pd.DataFrame, seen: dict[str, Tensor], name: str, recipe: Recipe, asked: dict[str, Any]
) -> pd.DataFrame:
    """A row per picture, with the columns that comparisons need."""
    real = attributes.reference_features(), attributes.reference_kernel()
    scores = {name: seen[name].numpy() for name in sorted(seen) if name != "judge"}
    return pd.DataFrame(
        {
            "method": name,
            "recipe": recipe.name,
            "solver": "",
            "guidance_scale": asked["guidance_scale"],
            "steps": asked["evaluations"],
            "nfe": recipe.rows,
            "index": range(len(table)),
            "prompt": table["prompt"].to_numpy(),
            "failed": False,
            "kid_share": kid_shares(seen["judge"], *real).numpy(),
            **scores,
        }
    )
