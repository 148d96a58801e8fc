"""`asddim generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asddim_lib.cli.options import (
    Allocation,
    Call,
    Device,
    Dtype,
    Json,
    Model,
    Override,
    PipelineClass,
    Profile,
    Scale,
    Seed,
    StepCount,
    Truncate,
    Variant,
    called,
    loading,
    overridden,
    torch_dtype,
)
from asddim_lib.cli.output import check_file, say

Prompt = Annotated[str, typer.Argument(help="What the picture shows.")]
Out = Annotated[Path, typer.Argument(help="File for the picture.")]


def generate(
    prompt: Prompt,
    out: Out = Path("image.png"),
    model: Model = "bundled",
    steps: StepCount = 20,
    guidance_scale: Scale = 3.0,
    allocation: Allocation = "",
    profile: Profile = None,
    override: Override = "",
    call: Call = "",
    truncate: Truncate = False,
    variant: Variant = "",
    pipeline_class: PipelineClass = "",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draws one picture, by DDIM or flow matching's Euler, on the grid of an allocation.

    Without one it is the grid that the model's own scheduler holds, or that
    of its own allocation.

    Example: asddim generate "a red boot on a white ground" boot.png --steps 20
    """
    from asddim_lib.models.load import load_pipeline
    from asddim_lib.pipeline.run import Run
    from asddim_lib.schedulers.solvers import own_scheduler

    _check_picture(out)
    if allocation:  # before the model is loaded
        _check_allocation(allocation, profile)
    may_differ = overridden(override, profile)
    options, given = called(call), loading(variant, pipeline_class)
    pipe = load_pipeline(model, device=device, dtype=torch_dtype(dtype), **given)
    if not allocation and profile is not None:
        _check_allocation(pipe.scheduler.config.get("allocation", "uniform"), profile)
    run = Run(pipe, [prompt], [seed], guidance_scale, options=options, truncate=truncate)
    values = _read(profile, may_differ, run.schedule, model, guidance_scale)
    how: dict[str, Any] = {"profile": values} if allocation or profile else {}
    how |= {"allocation": allocation, "grid": None} if allocation else {}
    kind = own_scheduler(pipe.scheduler)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **how)
    drawn = run.pictures(num_inference_steps=steps)
    _save(drawn.images[0], out)
    grid = [round(t, 2) for t in pipe.scheduler.timesteps.tolist()]
    height, width = drawn.images.shape[-2:]
    value = {"image": str(out), "width": width, "height": height}
    text = f"{out}: {width}×{height}, timesteps {grid}"
    say(value | {"timesteps": grid, "seed": seed}, text, as_json)


def _save(picture: Any, out: Path) -> None:
    """Writes a picture (3 × h × w), or a video's frames, which need a format that moves."""
    from PIL import Image

    from asddim_lib.cache import write_whole
    from asddim_lib.errors import check

    frames = picture if picture.ndim == 4 else picture[None]
    moving = out.suffix in (".gif", ".webp", ".png")
    check(len(frames) == 1 or moving, "out", str(out), "a video's file ends in .gif or .webp")
    first, *rest = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    more: dict[str, Any] = {"save_all": True, "append_images": rest} if rest else {}
    write_whole(out, lambda part: first.save(part, **more))


def _check_picture(out: Path) -> None:
    """Refuses, before anything is drawn, a file that no picture can be written to."""
    from PIL import Image

    from asddim_lib.errors import check

    check_file(out)
    form = Image.registered_extensions().get(out.suffix.lower())
    check(form in Image.SAVE, "out", str(out), "give a name that ends as a picture's, such as .png")


def _check_allocation(allocation: str, profile: Path | None) -> None:
    """Refuses what the scheduler would refuse, or not use."""
    from asddim_lib.errors import check
    from asddim_lib.grids.table import ALLOCATIONS, CALIBRATED

    remedy = f"use one of {', '.join(ALLOCATIONS)}"
    check(allocation in ALLOCATIONS, "allocation", allocation, remedy)
    needed, names = allocation in CALIBRATED, ", ".join(CALIBRATED)
    remedy = f"allocation {allocation} makes no use of it: use one of {names}"
    check(needed or profile is None, "profile", str(profile), remedy)
    remedy = f"allocation {allocation} needs one: run asddim calibrate, and give its file"
    check(not needed or profile is not None, "profile", profile, remedy)


def _read(
    profile: Path | None,
    override: tuple[str, ...],
    schedule: Any,
    model: str,
    guidance_scale: float,
) -> dict[str, Any] | None:
    """The profile as a scheduler's config holds it, if it was made for this model and scale."""
    from asddim_lib.evidence.profile import Profile

    if profile is None:
        return None
    made_for: dict[str, Any] = {"model": model, "schedule": schedule, "override": override}
    return Profile.load(profile, guidance_scale=guidance_scale, **made_for).to_dict()
