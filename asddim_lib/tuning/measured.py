"""What a tuning measures of a model before it tries grids: a profile, and a path."""

from __future__ import annotations

import torch
from torch import Tensor

from asddim_lib.calibration import calibrate
from asddim_lib.errors import WrongUse, check
from asddim_lib.evidence.path import Trajectory, fingerprint
from asddim_lib.evidence.profile import Profile
from asddim_lib.pipeline.replay import REMEDY
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.goals import Embedding, Goal
from asddim_lib.tuning.plan import Plan
from asddim_lib.tuning.trials import Meter, Shelf

WITHOUT = "measure without derivatives: plan=Plan(sweeps=0)"


def check_derivatives(run: Run, goal: Goal, plan: Plan) -> None:
    """Raises WrongUse for a pipeline without the derivatives that an encoder's profile needs."""
    needed = plan.sweeps > 0 and isinstance(goal, Embedding)
    remedy = "its blocks have no derivative for an encoder: use goal latents, the ordinary pipeline"
    kind = type(run.pipe).__name__
    check(not needed or not hasattr(run.pipe, "blocks"), "pipe", kind, f"{remedy}, or {WITHOUT}")


def measure(run: Run, goal: Goal, plan: Plan, shelf: Shelf, meter: Meter) -> Profile:
    """The error that steps make, and how much of it arrives, or is seen by the goal's encoder.

    Raises WrongUse for a pipeline whose derivatives are not had, and for one that begins later.
    """
    meter.doing = "measuring the model"
    meter.spend(0)
    part = run.part(slice(0, plan.profile_prompts))
    assert part.seeds is not None
    encoder = goal.encoder if isinstance(goal, Embedding) else None
    options = {"guidance_scale": part.guidance_scale, **part.options}
    try:
        profile = calibrate(
            part.pipe,
            list(part.prompts),
            num_steps=plan.profile_steps,
            estimator="path",
            adjoint_probes=0 if encoder else plan.sweeps,
            feature_probes=plan.sweeps if encoder else 0,
            encoder=encoder if plan.sweeps else None,
            batch_size=part.batch_size,
            seed=part.seeds[0],
            truncate=part.truncate,
            cache=shelf.folder,
            shift_steps=part.shift_steps,
            **options,
        )
    except WrongUse as error:  # in the words of `tune`
        raise WrongUse(str(error).replace(REMEDY, WITHOUT)) from error
    meter.spend(profile.evaluations)
    begin = profile.timesteps[0]
    what = f"{type(run.pipe).__name__}, whose samples begin at timestep {begin}"
    remedy = "give strength=1, or the pipeline that begins with pure noise"
    check(begin == len(run.schedule) - 1, "pipe", what, remedy)
    return profile


def recorded(run: Run, plan: Plan, shelf: Shelf, meter: Meter) -> Trajectory | None:
    """The model's own path, for the peers that are searched on it; None if the plan has none."""
    if not plan.path_prompts:
        return None
    part, steps = run.part(slice(0, plan.path_prompts)), plan.path_steps
    meter.doing = "recording its path"
    meter.spend((steps + 1) * part.evaluations_per_step)

    def drawn() -> dict[str, Tensor]:
        path = part.path(steps)
        tensors = {"samples": path.samples, "noises": path.noises, "end": path.end}
        tensors["timesteps"] = torch.tensor(path.timesteps)
        tensors["alpha_end"] = torch.tensor(path.alpha_end, dtype=torch.float64)
        return tensors

    found = shelf.kept(drawn, part.inputs, "path", steps)
    points, alpha = found["timesteps"].tolist(), float(found["alpha_end"])
    tensors = found["samples"], found["noises"], found["end"]
    return Trajectory(points, *tensors, alpha, schedule=fingerprint(run.schedule))
