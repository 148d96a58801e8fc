"""What `tune` measures and proposes: a profile, a path, the baselines, and a family of our own.

Few parameters fit few prompts better than free timesteps do. The family has three: which error is
equalized, the exponent of its density, and where the first step begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asddim_lib.calibration import calibrate
from asddim_lib.errors import WrongUse, check
from asddim_lib.evidence.path import Trajectory
from asddim_lib.evidence.profile import Profile
from asddim_lib.grids.grid import sigmas
from asddim_lib.grids.table import METHODS
from asddim_lib.levels import fingerprint, is_flow
from asddim_lib.pipeline.replay import REMEDY
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.draw import Setup
from asddim_lib.tuning.goals import Embedding, Goal

#: What a user would pick instead. The last two are searched on a recorded path.
BASELINES = (
    *("trailing", "leading", "karras", "logsnr", "beta", "arctan", "ays-sd15"),
    *("gits", "tors"),
)
FLOW_BASELINES = (
    *("trailing", "karras", "exponential", "beta", "comfy-beta57", "comfy-bong-tangent"),
    *("comfy-linear-quadratic", "gits", "tors"),
)
#: The densities by what is weighed, the last of them first.
DENSITIES = {"feature": "feature-weighted", "adjoint": "dual-weighted", "local": "equidistributed"}
EXPONENTS = (1.0, 0.5)
#: How far below T the first step begins, in steps of an even grid.
LATER = (0.0, 1.0)
#: The largest number of grids in `family`: two densities are measured.
MOST = 2 * len(EXPONENTS) * len(LATER)
WITHOUT = "measure without derivatives: plan=Plan(sweeps=0)"


@dataclass(frozen=True)
class Plan:
    """How much `tune` measures.

    `profile_prompts` are measured over `profile_steps`, by so many `sweeps` of derivatives: with 0,
    only the error that a step makes is known, and not what of it arrives. `path_prompts` are
    recorded over `path_steps` for baselines that are searched on a path. `trials` grids are tried
    at most, each on half of the prompts; with 0, the first of the family is the candidate. Pictures
    are compared with those of `reference_steps`, or twice as many as the grid's where that is more.
    `baselines` are names of `METHODS`, by default `BASELINES`. The report shows `shown` prompts.
    """

    profile_prompts: int = 8
    profile_steps: int = 16
    sweeps: int = 1
    path_prompts: int = 8
    path_steps: int = 60
    trials: int = 30
    reference_steps: int = 64
    baselines: tuple[str, ...] | None = None
    shown: int = 3

    def measuring_cost(self, rows: int, goal: Goal) -> int:
        """The network evaluations of profile and path, at so many for one step of one prompt."""
        points = self.profile_steps + 1
        looks = points if self.sweeps and isinstance(goal, Embedding) else 0
        profile = (points * (1 + 3 * self.sweeps) + looks) * self.profile_prompts
        return rows * (profile + (self.path_steps + 1) * self.path_prompts)

    def for_choice(self, texts: int) -> int:
        """How many of so many distinct prompts serve the choice; the others serve the verdict."""
        measured = max(self.profile_prompts, self.path_prompts)
        return max(measured, texts // 2 if self.trials else 0)

    def needed(self, verdict: int) -> int:
        """How many distinct prompts leave so many for the verdict."""
        measured = max(self.profile_prompts, self.path_prompts)
        return max(measured + verdict, 2 * verdict - 1 if self.trials else 0)


#: With 9 prompts and up to 8 steps it costs about ten guided pictures of 50 steps.
QUICK = Plan(
    profile_prompts=2,
    profile_steps=8,
    path_prompts=0,
    trials=0,
    reference_steps=16,
    baselines=("trailing", "beta"),
    shown=1,
)


def baseline_names(config: Any, names: Sequence[str] | None = None) -> list[str]:
    """The `names`, by default `BASELINES` or `FLOW_BASELINES`.

    Raises WrongUse for a name that is no grid, or one that needs other evidence than a path.
    """
    chosen = list(names or (FLOW_BASELINES if is_flow(config) else BASELINES))
    for name in chosen:
        known = name in METHODS and METHODS[name].needs in ("nothing", "path")
        remedy = "name a grid that needs nothing or a path (asddim export --list)"
        check(known, "baseline", name, remedy)
    return chosen


def needing_a_path(names: Sequence[str]) -> list[str]:
    """Those of some baselines that are searched on a recorded path."""
    return [name for name in names if METHODS[name].needs == "path"]


def baselines(
    setup: Setup, names: Sequence[str], path: Trajectory | None
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Named grids of K + 1 sigmas, and why others are skipped.

    Baselines are skipped if they cannot make K steps, are the current sampler's or another's, or
    need a path that was not recorded.
    """
    grids: dict[str, list[float]] = {}
    skipped: dict[str, str] = {}
    for name in names:
        along = path if name in needing_a_path(names) else None
        if name in needing_a_path(names) and path is None:
            skipped[name] = "it needs a recorded path, which the plan leaves out"
            continue
        try:
            grid = sigmas(
                setup.config,
                setup.steps,
                shifted=True,
                allocation=name,
                order=setup.order,
                path=along,
            )
        except WrongUse as error:
            skipped[name] = str(error)
            continue
        same = next((other for other, known in grids.items() if known == grid), None)
        if grid == setup.current_grid:
            skipped[name] = "it is the current sampler's grid"
        elif same is not None:
            skipped[name] = f"it is the same grid as {same}"
        else:
            grids[name] = grid
    return grids, skipped


def family(setup: Setup, profile: Profile) -> dict[str, list[float]]:
    """Grids of the profile's densities, by name: density, exponent, where the first step begins."""
    grids: dict[str, list[float]] = {}
    densities = [DENSITIES[kind] for kind in DENSITIES if kind in (profile.local_error or {})]
    for name, exponent, later in itertools.product(densities, EXPONENTS, LATER):
        begin = setup.size - 1 - round(later * setup.size / setup.steps)
        if begin + 1 < setup.steps:  # as many timesteps as steps must be left
            continue
        grid = sigmas(
            setup.config,
            setup.steps,
            shifted=True,
            allocation=name,
            profile=profile,
            order=setup.order,
            exponent=exponent,
            begin=begin,
        )
        if grid not in grids.values():
            grids[f"{name}^{exponent:g}, from {begin}"] = grid
    return grids


def check_derivatives(run: Run, goal: Goal, plan: Plan) -> None:
    """Raises WrongUse for a pipeline without the derivatives that an encoder's profile needs."""
    needed = plan.sweeps > 0 and isinstance(goal, Embedding)
    remedy = "its blocks have no derivative for an encoder: use goal latents, the ordinary pipeline"
    kind = type(run.pipe).__name__
    check(not needed or not hasattr(run.pipe, "blocks"), "pipe", kind, f"{remedy}, or {WITHOUT}")


def measured(setup: Setup, run: Run, plan: Plan) -> Profile:
    """The error of steps, and how much of it reaches the end, or is seen by the goal's encoder.

    Raises WrongUse for a pipeline whose derivatives are unknown, and for one that begins later.
    """
    part, goal = run.part(slice(0, plan.profile_prompts)), setup.goal
    setup.work.report("measuring the model")
    assert part.seeds is not None
    encoder = goal.encoder if isinstance(goal, Embedding) and plan.sweeps else None
    try:
        profile = calibrate(
            part.pipe,
            list(part.prompts),
            num_steps=plan.profile_steps,
            estimator="path",
            adjoint_probes=0 if encoder else plan.sweeps,
            feature_probes=plan.sweeps if encoder else 0,
            encoder=encoder,
            batch_size=part.batch_size,
            seed=part.seeds[0],
            truncate=part.truncate,
            cache=setup.work.folder,
            progress=False,
            shift_steps=part.shift_steps,
            **{"guidance_scale": part.guidance_scale, **part.options},
        )
    except WrongUse as error:  # its remedy names an option of `calibrate`
        raise WrongUse(str(error).replace(REMEDY, WITHOUT)) from error
    setup.work.spent += profile.evaluations
    begin = profile.timesteps[0]
    sampler = f"{type(run.pipe).__name__}, whose samples begin at timestep {begin}"
    remedy = "give strength=1, or the pipeline that begins with pure noise"
    check(begin == setup.size - 1, "pipe", sampler, remedy)
    return profile


def recorded(setup: Setup, run: Run, prompts: int, steps: int) -> Trajectory | None:
    """The model's own path, for baselines that are searched on it; None of no prompts."""
    if not prompts:
        return None
    part = run.part(slice(0, prompts))
    setup.work.doing = "recording its path"

    def drawn() -> dict[str, Tensor]:
        path = part.path(steps)
        return {
            "samples": path.samples,
            "noises": path.noises,
            "end": path.end,
            "timesteps": torch.tensor(path.timesteps, device="cpu"),
            "alpha_end": torch.tensor(path.alpha_end, dtype=torch.float64, device="cpu"),
        }

    cost = (steps + 1) * part.evaluations_per_step
    path = setup.work.do(cost, drawn, part.inputs, "path", steps)
    points, alpha = path["timesteps"].tolist(), float(path["alpha_end"])
    tensors = path["samples"], path["noises"], path["end"]
    return Trajectory(points, *tensors, alpha, schedule=fingerprint(run.schedule))
