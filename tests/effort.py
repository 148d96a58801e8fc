"""How little measuring the density `feature-weighted` needs.

python -m tests.effort [COUNT]

Writes results/compare/effort.csv. The bundled model's profile is measured from few or many prompts,
timesteps and random directions, each time from other tuning prompts and other noise. A row has one
profile's cost and, at one step count, how far its grid's pictures of COUNT unseen prompts are from
the fine ones, by the embedding: the mean change of the distance's logarithm against even steps, and
against the grid of the profile that was measured most.
"""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from asddim_lib import calibrate, load_pipeline, timesteps
from asddim_lib.cache import write_whole
from asddim_lib.evidence.profile import Profile
from asddim_lib.metrics.intervals import paired_difference
from asddim_lib.models.prompts import load_prompts
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.draw import Setup
from asddim_lib.tuning.goals import goal_of

FILE = Path(__file__).parents[1] / "results" / "compare" / "effort.csv"
SCALE = 3.0  # the bundled model's best guidance
STEPS = (5, 8)
SEED, OWN_SEED = 4_000_000, 5_000_000  # of the pictures that are compared, of the profiles
#: Prompts, timesteps and random directions of the profile that is measured most, and of the others.
MOST = (32, 32, 4)
EFFORTS = [(prompts, points, 1) for prompts in (1, 2, 4, 8) for points in (8, 12, 24)]
EFFORTS += [(1, 24, 4), (8, 24, 4)]
DRAWS = 4


def prompts_of(count: int) -> tuple[list[str], list[str]]:
    """The tuning prompts, and `count` prompts that none of them is."""
    unseen = list(load_prompts("bundled")["prompt"])[-count:]
    tuning = load_prompts("bundled-tune")["prompt"]
    return list(tuning[~tuning.isin(unseen)]), unseen


def profiles(pipe: Any, tuning: list[str], effort: tuple[int, int, int]) -> Iterator[Profile]:
    """Profiles, each from other prompts and noise."""
    prompts, points, directions = effort
    texts = iter(tuning)
    for draw in range(1 if effort == MOST else DRAWS):
        yield calibrate(
            pipe,
            list(islice(texts, prompts)),
            guidance_scale=SCALE,
            num_steps=points,
            estimator="path",
            feature_probes=directions,
            seed=OWN_SEED + 100 * draw,
        )


def rows(count: int) -> list[dict]:
    """One row for each profile and step count."""
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    tuning, unseen = prompts_of(count)
    run = Run(pipe, unseen, range(SEED, SEED + count), SCALE, 32)
    setups = {k: Setup(run, k, goal_of("embedding", pipe), "ddim") for k in STEPS}
    trials = {k: setup.trials(range(count)) for k, setup in setups.items()}

    def losses(grid: list[int]) -> torch.Tensor:
        return trials[len(grid)].losses(setups[len(grid)].sampler(grid))

    even = {k: losses(timesteps(pipe.scheduler, k, allocation="trailing")) for k in STEPS}
    found, best = [], {}
    for effort in [MOST, *EFFORTS]:
        for draw, profile in enumerate(profiles(pipe, tuning, effort)):
            how = dict(zip(("prompts", "timesteps", "directions"), effort, strict=True))
            how |= {"draw": draw, "evaluations": profile.evaluations, "unseen": count}
            for k in STEPS:
                grid = timesteps(pipe.scheduler, k, allocation="feature-weighted", profile=profile)
                values = losses(grid)
                rivals = {"even": even[k], "most": best.setdefault(k, values)}
                pairs = {name: paired_difference(values, other) for name, other in rivals.items()}
                said = {
                    f"{key} over {name}": value
                    for name, pair in pairs.items()
                    for key, value in pair._asdict().items()
                }
                found.append({**how, "steps": k, "grid": " ".join(map(str, grid)), **said})
                print(found[-1], flush=True)
    return found


def main(count: int = 128) -> None:
    table = pd.DataFrame(rows(count))
    write_whole(FILE, lambda part: table.to_csv(part, index=False))


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(*map(int, sys.argv[1:]))
