"""Goals and models whose best grid is known, for tests of `tune`."""

import numpy as np
import torch
from diffusers import DDIMScheduler

from asddim_lib.digest import of_values
from asddim_lib.tuning.goals import Goal
from asddim_lib.tuning.proposals import Plan
from tests.tiny import PLAIN, autoencoder, coarse, parts, unet

WORDS = [f"a red boot, number {n}" for n in range(24)]
#: What a tiny pipeline needs.
SMALL = Plan(
    profile_prompts=1,
    profile_steps=5,
    path_prompts=0,
    trials=24,
    reference_steps=6,
    baselines=("trailing", "beta"),
    shown=1,
)


class Planted(Goal):
    """The loss is how far a grid lies from a given one, and noise of prompts, and of each grid.

    A scheduler without a grid in its config, such as a pipeline's own, lies `current` away.
    """

    name = "planted"
    relative = False

    def __init__(self, best, shared=0.1, own=1e-4, current=0.5):
        self.best, self.shared, self.own, self.current = list(best), shared, own, current
        self.looks = 0

    @property
    def identity(self):
        return of_values(self.name, self.best, self.shared, self.own, self.current)

    def look(self, run, steps):
        self.looks += 1
        grid = run.scheduler.config.get("grid")
        apart = self.current
        if grid is not None and len(grid) == len(self.best):
            apart = np.mean(np.abs(np.subtract(grid, self.best))) / 1000
        noise = [np.random.default_rng([s, *(grid or [])]).standard_normal() for s in run.seeds]
        prompt = [np.random.default_rng([s]).standard_normal() for s in run.seeds]
        losses = 1 + apart + self.shared * np.array(prompt) + self.own * np.array(noise)
        return {"seen": torch.from_numpy(losses)[:, None]}

    def losses(self, seen, fine):
        return seen[:, 0]


#: Timesteps evenly spaced in arctan σ, from nearly π / 2.
ANGLES = 0.999 * np.pi / 2 * np.arange(1, 1001) / 1000
MEAN = 10.0


def gaussian():
    """Normal data of variance 1 about a far mean, exact, on a schedule that is even in arctan σ.

    There a step of DDIM shrinks what a sample differs from the mean by to the cosine of the step's
    angle, and the whole by less than any other grid where all angles are alike (Sabour et al. 2024,
    Theorem 3.1). With these timesteps that grid is `trailing`. To begin later would lose the mean.
    """
    bars = np.cos(ANGLES) ** 2
    betas = 1 - bars / np.concatenate([[1.0], bars[:-1]])
    how = {"trained_betas": betas.tolist(), "set_alpha_to_one": True, "clip_sample": False}
    pipe = type(coarse())(
        **parts(
            vae=autoencoder(8, 8, 8, 16), unet=unet(sample_size=8), scheduler=DDIMScheduler(**how)
        ),
        **PLAIN,
    )
    alphas = pipe.scheduler.alphas_cumprod

    def forward(sample, timestep, *_, **__):
        bar = alphas[int(timestep)]
        return ((1 - bar) ** 0.5 * (sample - bar**0.5 * MEAN),)

    pipe.unet.forward = forward
    pipe.set_progress_bar_config(disable=True)
    return pipe


def kept_share(grid):
    """What DDIM leaves of a sample's difference from the mean, on the schedule of `gaussian`."""
    return float(np.prod(np.cos(-np.diff([*ANGLES[grid], 0.0]))))
