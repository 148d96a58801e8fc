"""What it does to pictures to tell the network other times than the steps' own.

python -m tests.told_times [bundled bundled-flow]

Writes results/compare/told.csv: for each model, grid, number of steps and share of a step, the mean
change of the logarithm of the embedding's distance from the fine picture, against the same grid
with its own times, over unseen prompts, and the verdict after Holm's correction for the model.
"""

import sys
from pathlib import Path

import pandas as pd
import torch

from asddim_lib import load_pipeline
from asddim_lib.cache import write_whole
from asddim_lib.grids.grid import numbers
from asddim_lib.metrics.intervals import holm, paired_difference, verdict
from asddim_lib.models.prompts import load_prompts
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.solvers import own_scheduler
from asddim_lib.tuning.goals import goal_of
from asddim_lib.tuning.trials import Trials

FILE = Path(__file__).parents[1] / "results" / "compare" / "told.csv"
SHARES = (-0.2, -0.1, -0.05, 0.05, 0.1, 0.2)
#: Each model's guidance, and the options of its calls.
MODELS = {
    "bundled": (3.0, {}),
    "bundled-flow": (3.0, {"max_sequence_length": 1}),  # its pictures, four times as fast
}
SEED = 3_000_000


def rows(model: str, count: int = 64, grids=("trailing", "beta"), steps=(5, 10)) -> list[dict]:
    """The rows of one model."""
    scale, options = MODELS[model]
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    prompts = list(load_prompts("bundled")["prompt"])[-count:]
    seeds = range(SEED, SEED + count)
    run = Run(pipe, prompts, seeds, scale, 32, options).prepared_with(own_scheduler(pipe.scheduler))
    plain, found = Trials(run, goal_of("embedding", pipe), 64), []
    for name in grids:
        for number in steps:
            grid = numbers(run.config, number, {"allocation": name})
            own = plain(grid)  # logarithms
            for share in SHARES:
                told = plain.telling(share)(grid)
                change = paired_difference(told, own)._asdict()
                where = {"model": model, "guidance_scale": scale, "grid": name, "steps": number}
                found.append({**where, "look_ahead": share, "prompts": count, **change})
                print(found[-1], flush=True)
    adjusted = holm([row["p_value"] for row in found])
    for row, p_value in zip(found, adjusted, strict=True):
        row["p_adjusted"] = float(p_value)
        row["verdict"] = verdict(row["difference"], row["half"], row["p_adjusted"], "lower")
    return found


def main(models: list[str]) -> None:
    torch.set_num_threads(1)
    known = pd.read_csv(FILE) if FILE.exists() else pd.DataFrame({"model": []})
    kept = known[~known["model"].isin(models)].to_dict("records")
    table = pd.DataFrame([*kept, *(row for model in models for row in rows(model))])
    write_whole(FILE, lambda part: table.to_csv(part, index=False))


if __name__ == "__main__":
    main(sys.argv[1:] or list(MODELS))
