"""What `tune` measures and proposes: a profile, a path, the baselines, and a family of our own.

Few parameters fit few prompts better than free timesteps do. The family has three: which error is
equalized, the exponent of its density, and where the first step begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from asddim_lib.calibration import Measurement, measure
from asddim_lib.configs import is_flow
from asddim_lib.errors import WrongUse, check
from asddim_lib.evidence.path import Trajectory
from asddim_lib.evidence.profile import Profile
from asddim_lib.grids.grid import sigmas
from asddim_lib.grids.table import METHODS
from asddim_lib.levels import fingerprint
from asddim_lib.pipeline.replay import REMEDY
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.draw import Setup
from asddim_lib.tuning.goals import Goal

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
#: Steps of the path that baselines such as `gits` are searched on.
PATH_STEPS = 60
#: How far below T the first step begins, in steps of an even grid.
LATER = (0.0, 1.0)
#: The largest number of grids in `family`: two densities are measured.
MOST = 2 * len(EXPONENTS) * len(LATER)
WITHOUT = "measure without derivatives: plan=Plan(sweeps=0)"


@dataclass(frozen=True)
class Plan:
    """How much `tune` measures.

    `profile_prompts` are measured over `profile_steps`, by so many `sweeps` of derivatives: with 0,
    only the error that a step makes is known, and not what of it arrives. Without such prompts
    nothing is proposed, and named grids alone are compared. `path_prompts` are recorded for
    baselines that are searched on a path. `trials` grids are tried at most, each on half of the
    prompts; with 0, the first of the family is the candidate. Pictures are compared with those of
    `reference_steps`, or twice as many as the grid's where that is more. `baselines` are names of
    `METHODS`, by default `BASELINES` or `FLOW_BASELINES`. The report shows `shown` prompts.
    """

    profile_prompts: int = 8
    profile_steps: int = 16
    sweeps: int = 1
    path_prompts: int = 8
    trials: int = 30
    reference_steps: int = 64
    baselines: Sequence[str] | None = None
    shown: int = 3

    def for_choice(self, texts: int) -> int:
        """How many of so many distinct prompts serve the choice; the others serve the verdict."""
        return max(self.profile_prompts, self.path_prompts, texts // 2 if self.trials else 0)


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
#: Compares the baselines and the current sampler, and proposes nothing.
COMPARE = Plan(profile_prompts=0, trials=0)


def planned(plan: Plan, config: Mapping[str, Any]) -> Plan:
    """The plan for a model: with its baselines, and without a path if none of them needs one.

    Raises WrongUse for a name that is no grid, or needs other evidence than a path.
    """
    names = plan.baselines or (FLOW_BASELINES if is_flow(config) else BASELINES)
    remedy = "name a grid that needs nothing or a path (asddim export --list)"
    for name in names:
        known = name in METHODS and METHODS[name].needs in ("nothing", "path")
        check(known, "baselines", name, remedy)
    needs = {METHODS[name].needs for name in names}
    return replace(plan, baselines=names, path_prompts=plan.path_prompts if "path" in needs else 0)


def measuring_cost(setup: Setup, plan: Plan) -> int:
    """The network evaluations of profile and path."""
    profile, path = measurement(setup.goal, plan).evaluations, PATH_STEPS + 1
    return setup.rows * (profile * plan.profile_prompts + path * plan.path_prompts)


def baselines(
    setup: Setup, plan: Plan, path: Trajectory | None
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Named grids of K + 1 sigmas, and why others are skipped.

    Baselines are skipped if they cannot make K steps, are the current sampler's or another's, or
    need a path that was not recorded.
    """
    grids: dict[str, list[float]] = {}
    skipped: dict[str, str] = {}
    for name in plan.baselines or ():
        try:
            grid = sigmas(
                setup.config,
                setup.steps,
                shifted=True,
                allocation=name,
                order=setup.order,
                path=path if METHODS[name].needs == "path" else None,
            )
        except WrongUse as error:
            skipped[name] = str(error)
            continue
        known = {"the current sampler": setup.current_grid, **grids}
        same = [other for other, one in known.items() if one == grid]
        if same:
            skipped[name] = f"it is the grid of {same[0]}"
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


def measurement(goal: Goal, plan: Plan) -> Measurement:
    """What is measured of each prompt: sweeps along what the goal's encoder sees, if it has one."""
    adjoint, feature = (0, plan.sweeps) if goal.encoder else (plan.sweeps, 0)
    return Measurement(plan.profile_steps, "frobenius", "path", 1, adjoint, feature)


def measured(setup: Setup, run: Run, plan: Plan) -> Profile:
    """The error of steps, and how much of it reaches the end, or is seen by the goal's encoder.

    Raises WrongUse for a pipeline whose derivatives are unknown, and for one that begins later.
    """
    part = run.part(slice(0, plan.profile_prompts))
    setup.work.report("measuring the model")
    what, encoder = measurement(setup.goal, plan), setup.goal.encoder if plan.sweeps else None
    try:
        profile = measure(part, what, encoder, setup.work.folder, progress=False)
    except WrongUse as error:  # its remedy names an option of `calibrate`
        raise WrongUse(str(error).replace(REMEDY, WITHOUT)) from error
    setup.work.spent += profile.evaluations
    begin = profile.timesteps[0]
    sampler = f"{type(run.pipe).__name__}, whose samples begin at timestep {begin}"
    remedy = "give strength=1, or the pipeline that begins with pure noise"
    check(begin == setup.size - 1, "pipe", sampler, remedy)
    return profile


def recorded(setup: Setup, run: Run, plan: Plan) -> Trajectory | None:
    """The model's own path, for baselines that are searched on it; None of no prompts."""
    if not plan.path_prompts:
        return None
    part = run.part(slice(0, plan.path_prompts))
    setup.work.doing = "recording its path"

    def drawn() -> dict[str, Tensor]:
        path = part.path(PATH_STEPS)
        return {
            "samples": path.samples,
            "noises": path.noises,
            "end": path.end,
            "timesteps": torch.tensor(path.timesteps, device="cpu"),
            "alpha_end": torch.tensor(path.alpha_end, dtype=torch.float64, device="cpu"),
        }

    cost = (PATH_STEPS + 1) * part.evaluations_per_step
    path = setup.work.do(cost, drawn, part.inputs, "path", PATH_STEPS)
    points, alpha = path["timesteps"].tolist(), float(path["alpha_end"])
    tensors = path["samples"], path["noises"], path["end"]
    return Trajectory(points, *tensors, alpha, schedule=fingerprint(run.schedule))
