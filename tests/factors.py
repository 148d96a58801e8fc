"""The factor by which a guided step multiplies a deviation, predicted and measured.

python -m tests.factors [PROMPTS]

Writes results/guidance-plans/factors.csv. Each row is one of `STEPS` even steps, for one tuning
prompt, noise and guidance scale. κ is measured at the step's start, and `predicted` is
1 − κ (1 − σ'/σ). For `measured` a DDIM or Euler scheduler makes the step twice: from the sample,
and from the sample moved by half a standard deviation of its noise in the direction of κ.
PROMPTS prompts have the UNet's first step and the flow model's fourth, whose κ is larger than the
first one's. The first few also have all steps of the UNet, along its path of 32 steps.
"""

import sys
from pathlib import Path

import pandas as pd
import torch

from asddim_lib import ASDDIMScheduler, ASFlowScheduler, load_pipeline
from asddim_lib.cache import write_whole
from asddim_lib.grids.rules import uniform
from asddim_lib.guidance.steps import steps_of
from asddim_lib.models.prompts import load_prompts
from asddim_lib.pipeline.run import Run
from asddim_lib.sensitivity import largest_eigenvalue

FILE = Path(__file__).parents[1] / "results" / "guidance-plans" / "factors.csv"
STEPS, FINE, FEW, PROBES, SEED = 8, 32, 3, 6, 6_000_000
SIZE = 0.5  # of the deviation, whose standard deviation is 1 in any direction


class Stepper:
    """A scheduler with `STEPS` even steps, and what each makes of a sample and its noise."""

    def __init__(self, run):
        self.levels, flow = run.schedule, run.schedule.kind == "flow"
        kind = ASFlowScheduler if flow else ASDDIMScheduler
        self.scheduler = kind.from_config(run.config, allocation="trailing")
        self.scheduler.set_timesteps(STEPS)
        self.sigmas = steps_of(self.scheduler).sigmas

    def __call__(self, k, sample, epsilon):
        """y after step k, from the sample of a variance-preserving model with the step's σ."""
        sigma = float(self.sigmas[k])
        clean = (1 + sigma**2) ** 0.5 * sample - sigma * epsilon
        own = (clean + sigma * epsilon) * self.levels.signal(sigma)
        output = epsilon - clean if self.levels.kind == "flow" else epsilon
        if self.levels.kind == "flow":
            self.scheduler._step_index = k
        after = self.scheduler.step(output, self.scheduler.timesteps[k], own).prev_sample
        return after / self.levels.signal(float(self.sigmas[k + 1]))


def rows(pipe, scale, prompts, steps, points):
    """A row for each prompt and each of the `steps`, along the path of so many `points`."""
    options = {"max_sequence_length": 1} if "flow" in pipe.name_or_path else {}
    run = Run(pipe, prompts, range(SEED, SEED + len(prompts)), scale, 8, options)
    stepper, found = Stepper(run), []
    wanted = {uniform("trailing", len(run.schedule), STEPS)[k]: k for k in steps}

    def look(eps, x, t):
        if int(t) not in wanted:
            return
        k = wanted[int(t)]
        sigma, after = (float(s) for s in stepper.sigmas[k : k + 2])
        starts = [torch.Generator().manual_seed(n) for n in range(len(x))]
        value, direction = largest_eigenvalue(eps, x, t, probes=PROBES, generator=starts)
        kappa = value * sigma / (1 + sigma**2) ** 0.5
        moved = x + SIZE * direction.to(x)
        begin, end = (stepper(k, one, eps(one, t)) for one in (x, moved))
        along = ((end - begin) * direction.to(x)).flatten(1).sum(1)
        for n in range(len(x)):
            found.append(
                {
                    "model": pipe.name_or_path,
                    "guidance_scale": scale,
                    "points": points,
                    "step": k + 1,
                    "sigma": sigma,
                    "ratio": after / sigma,
                    "kappa": float(kappa[n]),
                    "predicted": 1 - float(kappa[n]) * (1 - after / sigma),
                    "measured": float(along[n]) / SIZE / (1 + sigma**2) ** 0.5,
                }
            )

    run.path(points, also=look)
    print(pd.DataFrame(found).groupby("step").mean(numeric_only=True).round(2), flush=True)
    return found


def main(count=48):
    """Writes the table."""
    prompts = list(load_prompts("bundled-tune")["prompt"].drop_duplicates())[-count:]
    found = []
    for model, scale, step in (("bundled", 7.5, 0), ("bundled-flow", 6.0, 3)):
        pipe = load_pipeline(model)
        pipe.set_progress_bar_config(disable=True)
        found += rows(pipe, scale, prompts, [step], STEPS if step else 2)
        for each in (1.0, 3.0, 7.5) if model == "bundled" else ():
            found += rows(pipe, each, prompts[:FEW], range(STEPS), FINE)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(found).round(5)
    write_whole(FILE, lambda part: table.to_csv(part, index=False))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(int, sys.argv[1:]))
