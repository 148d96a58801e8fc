"""Whether a multistep solver had best forget its history where guidance sets in or ends.

python -m tests.switch [COUNT]

Writes results/guidance-plans/switch.csv. DPM-Solver++ (2M) and UniPC extrapolate from the last
step's prediction. Where a plan's scale goes from 1 to another or back, they extrapolate a jump. A
row has, for a model, scale, plan, solver and step count, the mean RMS distance of COUNT pictures
(in levels of 0 to 255) to those of 40 steps of 2M under the same plan: as the solvers are, with
first order at each such step, and the paired difference. At scale 3 the jump is smaller: fewer
cells are drawn there.
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

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
MODELS: dict[str, tuple[dict, float, int]] = {  # options, the larger scale, batch size
    "bundled": ({}, 7.5, 32),
    "bundled-flow": ({"max_sequence_length": 1}, 6.0, 16),
}
SOLVERS = {"dpm++": DPMSolverGridScheduler, "unipc": UniPCGridScheduler}
PLANS = {
    "interval": GuidancePlan.named("interval-sdxl"),
    "late": GuidancePlan.interval(7 / 3),
}
EVEN = {"allocation": "trailing"}
FINE = 40


def cells(larger: float) -> list[tuple[float, str, str, int]]:
    """Scale, plan, solver and step count of each row of a model; at scale 3 of three alone."""
    every = [*itertools.product(PLANS, SOLVERS, (6, 8))]
    return [*((larger, *one) for one in every), *((3.0, *one) for one in every[:3])]


class FirstOrder(Guided):
    """A plan on a pipeline, with no history in a step at which guidance sets in or ends."""

    def arrived(self, model_output: Tensor, sample: Tensor) -> Tensor:
        output, k = super().arrived(model_output, sample), self.evaluation - 1
        [scales] = self.scales.values()
        if k > 0 and (scales[k] == 1) != (scales[k - 1] == 1):
            self.pipe.scheduler.lower_order_nums = 0
        return output


def pictures(run: Run, steps: int, kind: type[Guided] = Guided) -> Tensor:
    assert run.guidance_plan is not None
    vars(run)["_guided"] = kind(run.pipe, run.guidance_plan)
    return run.pictures(num_inference_steps=steps).images.double()


def rows(count: int, done: list[dict]) -> Iterator[dict]:
    """One row for each model, scale, plan, solver and step count that is not done yet."""
    prompts = list(load_prompts("bundled-tune")["prompt"].drop_duplicates()[:count])
    for model, (options, larger, size) in MODELS.items():
        pipe = load_pipeline(model)
        fine: dict[tuple[float, str], Tensor] = {}
        for scale, name, solver, steps in cells(larger):
            row = {"model": model, "scale": scale, "plan": name, "solver": solver}
            row |= {"steps": steps, "pictures": count}
            if any(row.items() <= other.items() for other in done):
                continue
            plain = Run(pipe, prompts, None, scale, size, options, guidance_plan=PLANS[name])
            runs = {
                one: replace(plain, scheduler=of.from_config(pipe.scheduler.config, **EVEN))
                for one, of in SOLVERS.items()
            }
            if (scale, name) not in fine:
                fine[scale, name] = pictures(runs["dpm++"], FINE)
            differences = (
                pictures(runs[solver], steps, way) - fine[scale, name]
                for way in (Guided, FirstOrder)
            )
            own, first = (one.square().flatten(1).mean(1).sqrt() for one in differences)
            row |= {"distance": float(own.mean()), "first order": float(first.mean())}
            yield row | paired_difference(first, own)._asdict()


def main(count: int = 32) -> None:
    """Goes on where it was stopped."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    done = pd.read_csv(FILE).to_dict("records") if FILE.exists() else []
    for row in rows(count, list(done)):
        done.append(row)
        print(row, flush=True)
        write_whole(FILE, lambda part: pd.DataFrame(done).to_csv(part, index=False))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(int, sys.argv[1:]))
