"""What each step's error adds at the end, on the flow model without guidance.

    python -m tests.carried     writes results/compare/carried.csv

The error of step k is the vector between two exact ends: from the point before the step and from
the point after it. The vectors of a picture's steps add up to its error at the end. One row per
grid, number of steps, prompt and step: `size`, the vector's length, and `end`, that of the sum,
both over the spread of the exact ends.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from asddim_lib import load_pipeline
from asddim_lib.models.prompts import load_prompts

RECORD, OUT = Path("results/pictures/bundled-flow"), Path("results/compare/carried.csv")
GRIDS, COUNTS, PROMPTS = ("trailing", "equidistributed", "dual-weighted"), (5, 10), 8
FINE = 40  # Heun steps of an exact path from pure noise


def main() -> None:
    pipe = load_pipeline("bundled-flow")
    texts = list(load_prompts("bundled", PROMPTS)["prompt"])
    grids = json.loads((RECORD / "provenance.json").read_text())["grids"]
    shift = pipe.scheduler.config.shift
    words, _, pooled, _ = pipe.encode_prompt(
        texts, texts, None, do_classifier_free_guidance=False, max_sequence_length=1
    )

    def shifted(u: np.ndarray) -> np.ndarray:
        return shift * u / (1 + (shift - 1) * u)

    @torch.no_grad()
    def velocity(x: Tensor, s: float) -> Tensor:
        told = torch.full((len(x),), 1000 * s)
        parts = {"encoder_hidden_states": words, "pooled_projections": pooled}
        return pipe.transformer(x.float(), timestep=told, **parts).sample.double()

    def end_of(x: Tensor, s: float) -> Tensor:
        """Where the exact path through x at level s ends, by Heun's method."""
        u = s / (shift - (shift - 1) * s)
        levels = shifted(np.linspace(u, 0, max(4, round(FINE * u)) + 1)) if s else [0.0]
        for now, after in pairwise(levels):
            slope = velocity(x, now)
            if after:
                slope = (slope + velocity(x + (after - now) * slope, after)) / 2
            x = x + (after - now) * slope
        return x.flatten(1)

    seeds = [torch.Generator().manual_seed(i) for i in range(PROMPTS)]
    noise = torch.cat([torch.randn(1, 4, 16, 16, generator=one) for one in seeds]).double()
    exact = end_of(noise, 1.0)
    spread = (exact - exact.mean(0)).square().sum(1).mean().sqrt()
    rows = []
    for name in GRIDS:
        for count in COUNTS:
            grid = np.array(grids[f"{name}-euler-g1-k{count}"])
            levels = [*shifted((grid + 1) / 1000), 0.0]
            x, before = noise, exact
            sizes, whole = [], torch.zeros_like(exact)
            for now, after in pairwise(levels):
                x = x + (after - now) * velocity(x, now)
                reached = end_of(x, after)
                sizes.append((reached - before).norm(dim=1) / spread)
                whole, before = whole + reached - before, reached
            end = whole.norm(dim=1) / spread
            for step, size in enumerate(sizes):
                rows += [
                    {"grid": name, "steps": count, "prompt": i, "step": step}
                    | {"size": float(size[i]), "end": float(end[i])}
                    for i in range(PROMPTS)
                ]
    pd.DataFrame(rows).to_csv(OUT, index=False, float_format="%.6f")


if __name__ == "__main__":
    main()
