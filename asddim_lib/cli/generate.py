"""`asddim generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asddim_lib.cli.options import (
    Allocation,
    Device,
    Dtype,
    Json,
    Model,
    Profile,
    Scale,
    Seed,
    StepCount,
    Truncate,
    torch_dtype,
    words,
)
from asddim_lib.cli.output import say

Prompt = Annotated[str, typer.Argument(help="What the picture shows.")]
Out = Annotated[Path, typer.Argument(help="File for the picture.")]
Override = Annotated[
    str,
    typer.Option(
        help="What may differ from what the profile was made for, comma-separated: "
        "model, schedule, guidance_scale."
    ),
]


def generate(
    prompt: Prompt,
    out: Out = Path("image.png"),
    model: Model = "bundled",
    steps: StepCount = 20,
    guidance_scale: Scale = 3.0,
    allocation: Allocation = "uniform",
    profile: Profile = None,
    override: Override = "",
    truncate: Truncate = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draws one picture with DDIM on the grid of an allocation.

    Example: asddim generate "a red boot on a white ground" boot.png --steps 20
    """
    import torch

    from asddim_lib.files import write_whole
    from asddim_lib.models.load import load_pipeline
    from asddim_lib.models.prompts import check_prompts
    from asddim_lib.schedulers.asddim import ASDDIMScheduler

    _check_allocation(allocation, profile)
    pipe = load_pipeline(model, device=device, dtype=torch_dtype(dtype))
    check_prompts(pipe, [prompt], truncate=truncate)
    values = _read(profile, override, pipe.scheduler, model, guidance_scale)
    how: dict[str, Any] = {"allocation": allocation, "profile": values}
    pipe.scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config, **how)
    how = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    picture = pipe(prompt, **how, generator=torch.Generator().manual_seed(seed)).images[0]
    write_whole(out, picture.save)
    grid = pipe.scheduler.timesteps.tolist()
    value = {"image": str(out), "width": picture.width, "height": picture.height}
    text = f"{out}: {picture.width}×{picture.height}, timesteps {grid}"
    say(value | {"timesteps": grid, "seed": seed}, text, as_json)


def _check_allocation(allocation: str, profile: Path | None) -> None:
    """Refuses, before the model is loaded, what the scheduler would refuse, or not use."""
    from asddim_lib.errors import check
    from asddim_lib.grids.methods import ALLOCATIONS, CALIBRATED

    remedy = f"use one of {', '.join(ALLOCATIONS)}"
    check(allocation in ALLOCATIONS, "allocation", allocation, remedy)
    needed, names = allocation in CALIBRATED, ", ".join(CALIBRATED)
    remedy = f"allocation {allocation} makes no use of it: use one of {names}"
    check(needed or profile is None, "profile", str(profile), remedy)
    remedy = f"allocation {allocation} needs one: run asddim calibrate, and give its file"
    check(not needed or profile is not None, "profile", profile, remedy)


def _read(
    profile: Path | None, override: str, scheduler: Any, model: str, guidance_scale: float
) -> dict[str, Any] | None:
    """The profile as a scheduler's config holds it, if it was made for this model and scale."""
    from asddim_lib.core.noise import NoiseSchedule
    from asddim_lib.evidence.profile import SensitivityProfile

    if profile is None:
        return None
    may_differ = words("override", override) if override else ()
    schedule = NoiseSchedule.from_config(scheduler)
    made_for: dict[str, Any] = {"model": model, "schedule": schedule, "override": may_differ}
    return SensitivityProfile.load(profile, guidance_scale=guidance_scale, **made_for).to_dict()
