"""How far the fine references of `tune` end from 1,000 steps of DDIM.

python -m tests.reference [MODEL] [GUIDANCE]

Prints, for the bundled model, the geometric mean of the relative distance in latents (8 prompts) of
each solver's even steps. A reference should err less than the grids that it judges.
"""

import sys

import torch

from asddim_lib import load_pipeline, sigmas
from asddim_lib.metrics.distance import relative_distance
from asddim_lib.models.prompts import load_prompts
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.solvers import solver_of

#: Steps of each solver: few ones that are judged, then those that a reference may take.
TRIED = {"first": (8, 20, 64, 128, 256), "second": (8, 20, 32, 64, 128)}


def main(model: str = "bundled", scale: float = 3.0, count: int = 8) -> None:
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    options = {"max_sequence_length": 1} if model == "bundled-flow" else {}
    texts = list(load_prompts("bundled-tune", count)["prompt"])
    run = Run(pipe, texts, range(count), scale, options=options)
    first, second = ("euler", "dpm++") if model == "bundled-flow" else ("ddim", "dpm++")
    size = len(run.schedule)

    def ends(solver: str, steps: int) -> torch.Tensor:
        grid = sigmas(run.config, steps, allocation="trailing", shifted=True)
        return run.prepared_with(solver_of(solver, pipe.scheduler)[0]).ends(grid)

    exact = ends(first, size)
    for solver, tried in ((first, TRIED["first"]), (second, TRIED["second"])):
        for steps in tried:
            apart = relative_distance(ends(solver, steps), exact).log().mean().exp()
            print(
                f"{model} g{scale:g} {solver:6s} {steps:4d} steps: {float(apart):.5f}", flush=True
            )


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(float, sys.argv[2:3]))
