"""Random plans under a search's verdict: python -m tests.null [RUNS]

Writes results/recipes/null.csv, a row per run: a random plan takes the place of the search's choice
and is judged, with the baselines, on 64 tuning prompts in 10 evaluations. Its scale is one of those
that a search tries, and which of its steps are guided is drawn by lot. So it is no better than it
happens to be, and the verdict should seldom return it. Half of the runs are of each bundled model.
What was drawn is kept: a stopped run goes on.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from asddim_lib import GuidancePlan, Recipe, Run, load_pipeline
from asddim_lib.cache import sealed, write_whole
from asddim_lib.models.prompts import load_prompts
from asddim_lib.pipeline.manifest import of_pipeline
from asddim_lib.tuning.acceptance import accept
from asddim_lib.tuning.candidates import Search
from asddim_lib.tuning.draw import Work
from asddim_lib.tuning.find import measures_of
from asddim_lib.tuning.forms import SCALES, Builder, Form
from asddim_lib.tuning.verify import CANDIDATE

FOLDER = Path(__file__).parents[1] / "results" / "recipes"
MODELS = {"unet": ("bundled", 7.5, {}), "flow": ("bundled-flow", 6.0, {"max_sequence_length": 1})}
ROWS = 10


def random_recipe(builder: Builder, draw: np.random.Generator) -> Recipe:
    """A recipe of `ROWS` evaluations whose guided steps and scale are drawn by lot."""
    steps, scale = int(draw.integers(ROWS // 2, ROWS - 1)), float(draw.choice(SCALES))
    guided = set(draw.choice(steps, ROWS - steps, replace=False).tolist())
    scales = [scale if place in guided else 1.0 for place in range(steps)]
    plan, name = GuidancePlan.steps(scales), f"scales {scales}"
    return replace(builder.of_steps(Form(scale), steps), name=name, plan=plan, rows=ROWS)


def runs(model: str, count: int) -> list[dict]:
    """The verdicts on `count` random recipes of a model."""
    source, scale, options = MODELS[model]
    pipe, draw = load_pipeline(source), np.random.default_rng(0)
    texts = list(load_prompts("bundled-tune", 64)["prompt"])
    run = Run(pipe, texts, range(1_000_000, 1_000_064), scale, 16, options)
    work = Work(folder=FOLDER / "null" / "drawn", identity=of_pipeline(pipe))
    search = Search(Builder(run), measures_of(pipe, None, None, None, {}), work)
    search.want(run, None)
    compared, found = sealed(FOLDER / model / str(ROWS) / "tune.json")["recipes"], []
    baselines = {
        name: search.verdict(run, Recipe.load(FOLDER / model / str(ROWS) / "recipes" / folder))
        for name in compared
        if name != CANDIDATE
        for folder in [name.replace(" ", "-")]
    }
    for _ in range(count):
        recipe = random_recipe(search.builder, draw)
        losses = baselines | {CANDIDATE: search.verdict(run, recipe)}
        returned, _ = accept(losses, "constant")
        found.append({"model": model, "recipe": recipe.name, "returned": returned})
    return found


if __name__ == "__main__":
    half = int(sys.argv[1]) // 2 if len(sys.argv) > 1 else 20
    table = pd.DataFrame([row for model in MODELS for row in runs(model, half)])
    write_whole(FOLDER / "null.csv", lambda part: table.to_csv(part, index=False))
    print(
        (table["returned"] == CANDIDATE).mean(), table.groupby("model")["returned"].value_counts()
    )
