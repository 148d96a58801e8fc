"""What a multistep solver had best do where guidance sets in or ends.

python -m tests.switch [COUNT]

Writes results/guidance-plans/switch.csv. DPM-Solver++ (2M) and UniPC extrapolate from the last
step's prediction. Where a plan's scale goes from 1 to another or back, they extrapolate a jump. A
row has, for one model, solver, plan and step count, the RMS distance of COUNT pictures (in levels
of 0 to 255) to those of 60 steps under the same plan: with a remedy, and its paired difference from
no remedy. "first order" has no history at a switch. "prompt's history" has that of the prediction
with the prompt, and the new guidance.
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from asddim_lib import (
    DPMSolverGridScheduler,
    GuidancePlan,
    Run,
    UniPCGridScheduler,
    load_pipeline,
)
from asddim_lib.cache import write_whole
from asddim_lib.guidance.rows import Guided
from asddim_lib.metrics.intervals import paired_difference
from asddim_lib.models.prompts import load_prompts

FILE = Path(__file__).parents[1] / "results" / "guidance-plans" / "switch.csv"
MODELS: dict[str, tuple[dict, tuple[float, ...], int]] = {  # options, guidance scales, batch size
    "bundled": ({}, (3.0, 7.5), 32),
    "bundled-flow": ({"max_sequence_length": 1}, (3.0, 6.0), 16),
}
SOLVERS = {"dpm++": DPMSolverGridScheduler, "unipc": UniPCGridScheduler}
PLANS = {
    "interval": GuidancePlan.named("interval-sdxl"),
    "late": GuidancePlan.interval(7 / 3),
}
EVEN = {"allocation": "trailing"}
STEPS = (6, 8, 12)
FINE = 60
REMEDIES = {
    "dpm++": ("first order", "prompt's history"),
    "unipc": ("first order", "first order, corrected", "prompt's history"),
}


class Remedied(Guided):
    """A plan on a pipeline, with a remedy before each step at which guidance sets in or ends."""

    def __init__(self, pipe: Any, plan: GuidancePlan, remedy: str) -> None:
        self.remedy = remedy
        super().__init__(pipe, plan)

    def begin(self) -> None:
        self.clean: Tensor | None = None  # the last step's, predicted with the prompt
        super().begin()

    def _next(self) -> None:
        self.last_parts = getattr(self, "parts", [])
        super()._next()

    def arrived(self, model_output: Tensor, sample: Tensor) -> Tensor:
        output, solver = super().arrived(model_output, sample), self.pipe.scheduler
        if solver.step_index is None:
            solver._step_index = 0
        [formula] = [layout.formula for layout in self.layouts.values()]
        prompt = self.last_parts[formula.prompt].to(sample.dtype)
        before, self.clean = self.clean, solver.convert_model_output(prompt, sample=sample)
        scales, k = self.scales[formula.scale], self.evaluation - 1
        switches = k > 0 and (scales[k] == 1) != (scales[k - 1] == 1)
        if not switches or self.remedy == "none":
            return output
        if self.remedy != "prompt's history":
            solver.lower_order_nums = 0
        else:
            guidance = solver.convert_model_output(output, sample=sample) - self.clean
            solver.model_outputs[-1] = before + guidance
        if self.remedy != "first order, corrected":
            solver.last_sample = None  # UniPC's corrector would mend the last step by this one
        return output


def distances(run: Run, remedy: str, steps: int, fine: Tensor | None = None) -> Tensor:
    """The pictures with a remedy, or each one's distance to the fine ones."""
    vars(run)["_guided"] = Remedied(run.pipe, run.guidance_plan, remedy)
    images = run.pictures(num_inference_steps=steps).images.double()
    return images if fine is None else (images - fine).square().flatten(1).mean(1).sqrt()


def rows(count: int) -> Iterator[dict]:
    """One row for each model, scale, plan, solver, step count and remedy."""
    prompts = list(load_prompts("bundled-tune")["prompt"].drop_duplicates()[:count])
    for model, (options, scales, size) in MODELS.items():
        pipe = load_pipeline(model)
        for scale, (name, plan) in itertools.product(scales, PLANS.items()):
            plain = Run(pipe, prompts, None, scale, size, options, guidance_plan=plan)
            runs = {
                solver: replace(plain, scheduler=kind.from_config(pipe.scheduler.config, **EVEN))
                for solver, kind in SOLVERS.items()
            }
            fine = distances(runs["dpm++"], "none", FINE)
            for (solver, run), steps in itertools.product(runs.items(), STEPS):
                none = distances(run, "none", steps, fine)
                for remedy in REMEDIES[solver]:
                    values = distances(run, remedy, steps, fine)
                    row = {"model": model, "scale": scale, "plan": name, "solver": solver}
                    row |= {"steps": steps, "pictures": count, "remedy": remedy}
                    row |= {"distance": float(values.mean()), "without": float(none.mean())}
                    yield row | paired_difference(values, none)._asdict()


def main(count: int = 64) -> None:
    found = []
    for row in rows(count):
        found.append(row)
        print(row, flush=True)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    write_whole(FILE, lambda part: pd.DataFrame(found).to_csv(part, index=False))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(int, sys.argv[1:]))
